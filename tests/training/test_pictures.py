"""Pictures of real runs: drawn by seed, epoch and row alone, and prepared the same way ever after."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import write_model

from padapter.data.augment import Augmentation, parse_augmentation
from padapter.errors import UserError
from padapter.evaluation import evaluate_source, predict_source
from padapter.evaluation.source import load_source
from padapter.options import EvalOptions, PredictOptions
from padapter.tasks import get_task
from padapter.training import AdapterTrainer, train
from padapter.training.batches import VISIT, Collator
from padapter.training.run import Interrupted

# 10 rows in batches of 4 are 3 steps per epoch: step 5 is in the middle of the second.
LENGTH = {"epochs": 3, "save_every": "2", "log_every": 1, "augment": "crop,flip-all,randaugment:m=8"}


@pytest.fixture
def seen(monkeypatch):
    """(epoch, row) -> digests of the training pictures that were made for it, in this process."""
    found: dict[tuple[int, int], list[str]] = {}
    original = Collator._picture

    def recorded(self, row):
        picture = original(self, row)
        pixels = picture if not hasattr(picture, "tobytes") else picture.tobytes()
        found.setdefault(row["visit"], []).append(hashlib.sha256(pixels).hexdigest())
        return picture

    monkeypatch.setattr(Collator, "_picture", recorded)
    return found


def weights(run):
    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def equal(run, other):
    ours, theirs = weights(run), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def interrupt_in_step_5(options, monkeypatch):
    original, calls = AdapterTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", interrupted)
        with pytest.raises(Interrupted):
            train(options)


def test_a_run_resumed_in_mid_epoch_sees_the_same_pictures(options, tmp_path, seen, monkeypatch):
    whole = options(output=str(tmp_path / "whole"), **LENGTH)
    report = train(whole)
    expected = {visit: digests for visit, (*digests,) in seen.items()}
    assert set(expected) == {(epoch, row) for epoch in range(3) for row in range(10)}
    assert all(len(digests) == 1 for digests in expected.values())
    for row in range(10):
        assert len({expected[epoch, row][0] for epoch in range(3)}) == 3  # another picture in every epoch
    assert report.metrics["augmentation"]["operations"].startswith("crop:p=1:scale=0.5,flip-all:p=0.5,randaugment")

    seen.clear()
    broken = options(output=str(tmp_path / "broken"), **LENGTH)
    interrupt_in_step_5(broken, monkeypatch)
    assert len(seen) < 30
    train(replace(broken, resume=True))
    assert seen.keys() == expected.keys()
    assert all(set(digests) == set(expected[visit]) for visit, digests in seen.items())
    assert equal(tmp_path / "broken", tmp_path / "whole")


def test_workers_and_batches_make_no_difference_but_seeds_do(options, tmp_path, seen):
    def run(name, **changes):
        seen.clear()
        train(options(output=str(tmp_path / name), **{**LENGTH, "epochs": 1, **changes}))
        return dict(seen)

    plain = run("plain")
    assert run("smaller", batch_size=3) == plain
    assert run("seed", seed=43).keys() == plain.keys()
    assert run("seed2", seed=43) != plain
    run("workers", num_workers=2)
    assert equal(tmp_path / "workers", tmp_path / "plain")
    run("none", augment="none")
    assert not equal(tmp_path / "none", tmp_path / "plain")


def test_only_training_pictures_are_changed(options, data, monkeypatch):
    shown = []
    original = Augmentation.__call__
    monkeypatch.setattr(Augmentation, "__call__", lambda *args: shown.append(1) or original(*args))
    train(options(eval=data["vqa"], eval_every="epoch", augment="published", epochs=1))
    assert len(shown) == 10


def test_rows_that_flips_make_untrue_are_counted_and_named(options, data, tmp_path, capsys):
    rows = [json.loads(line) for line in (Path(data["vqa"]) / "train.jsonl").read_text().splitlines()]
    rows[0]["question"] = "Is the dog on the left?"
    rows[1]["answers"] = ["the right one"]
    rows[2]["question"] = "What does the sign say?"
    file = Path(data["vqa"]) / "sides.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    common = {"train": str(file), "epochs": 1, "quiet": False}
    told = train(options(augment="published", output=str(tmp_path / "all"), **common)).metrics["augmentation"]["flips"]
    assert told == {"rows": 10, "sides": 2, "reading": 1, "spared": False}
    assert "of 10 training rows 2 speak of sides and 1 of something to be read" in capsys.readouterr().err
    told = train(options(augment="crop,flip", output=str(tmp_path / "some"), **common)).metrics["augmentation"]["flips"]
    assert told == {"rows": 10, "sides": 2, "reading": 1, "spared": True}
    assert "--augment" not in capsys.readouterr().err
    assert train(options(output=str(tmp_path / "none"), **common)).metrics["augmentation"] is None


def test_features_cannot_be_kept_of_changing_pictures(options):
    with pytest.raises(UserError, match="--augment: contradicts --cache-features: a picture that is another one"):
        options(augment="crop", cache_features=True)
    options(augment="none", cache_features=True)


def test_an_unknown_operation_is_refused_before_anything_is_read(options):
    with pytest.raises(UserError, match="--augment: 'flop' is no operation"):
        options(augment="flop", train="nowhere")


def test_resume_refuses_other_pictures(options):
    train(options(epochs=1))
    with pytest.raises(UserError, match=r"--image-size was None and is 24.*--augment was 'none' and is 'crop'"):
        train(options(epochs=1, resume=True, augment="crop", image_size=24))


def pixels_of(run, image, **changes):
    source = load_source(EvalOptions(run=str(run), data="unused", device="cpu", **changes))
    return source.backbone._pixels([source.backbone.picture(image)])


@pytest.mark.parametrize("changes", [{}, {"image_size": 24, "resize": "pad"}])
def test_a_run_prepares_pictures_as_in_training_whatever_happens_to_the_model(
    options, data, tmp_path, images_of_odd_shape, changes
):
    folder = tmp_path / "model"
    model = write_model(folder)
    report = train(replace(options(eval=data["vqa"], epochs=1, **changes), model=model))
    run, image = report.output, images_of_odd_shape
    record = json.loads((run / "preprocessing.json").read_text())
    assert record == report.metrics["preprocessing"]
    assert record["processor"]["size"]["height"] == changes.get("image_size", 16)
    before = pixels_of(run, image)
    answers = evaluate_source(EvalOptions(run=str(run), data=data["vqa"], quiet=True, device="cpu"))
    assert answers["scores"]["metrics"] == report.metrics["scores"]["after"]["metrics"]
    assert answers["preprocessing"] == record

    config = folder / "processor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.9"))
    assert torch.equal(pixels_of(run, image), before)
    assert not torch.equal(pixels_of(run, image, resize="crop"), before)
    (run / "preprocessing.json").unlink()
    assert not torch.equal(pixels_of(run, image), before)


@pytest.fixture
def images_of_odd_shape():
    from tiny_blip import make_image

    return make_image(3, 40).resize((40, 17))


def test_a_resumed_run_keeps_its_preprocessing(options, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    model = write_model(folder)
    broken = replace(options(epochs=2, save_every="2", resize="crop", image_size=24), model=model)
    interrupt_in_step_5(broken, monkeypatch)
    shutil.copytree(broken.output, tmp_path / "copy")
    train(replace(broken, resume=True))
    config = folder / "processor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.9"))
    train(replace(broken, resume=True, output=str(tmp_path / "copy")))
    assert equal(tmp_path / "copy", broken.output)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_runs_at_another_size_are_loaded_at_it(options, data, tmp_path, method):
    report = train(options(method=method, eval=data["vqa"], epochs=1, image_size=32))
    scores = report.metrics["scores"]["after"]["metrics"]
    again = evaluate_source(EvalOptions(run=str(report.output), data=data["vqa"], quiet=True, device="cpu"))
    assert again["scores"]["metrics"] == scores
    larger = evaluate_source(
        EvalOptions(run=str(report.output), data=data["vqa"], quiet=True, device="cpu", image_size=40)
    )
    assert larger["preprocessing"]["processor"]["size"] == {"height": 40, "width": 40}
    picture = next((Path(data["vqa"]) / "images").iterdir())
    (answer,) = predict_source(
        PredictOptions(run=str(report.output), image=str(picture), text="what color", quiet=True, device="cpu")
    )
    assert isinstance(answer.text, str)
    if method == "full":  # the saved model knows its size by itself
        alone = evaluate_source(
            EvalOptions(
                model=str(report.output / "model"),
                task="vqa",
                data=data["vqa"],
                quiet=True,
                device="cpu",
                num_beams=1,
                max_new_tokens=3,
            )
        )
        assert alone["scores"]["metrics"] == scores


def test_a_size_that_the_model_cannot_see_leaves_no_folder(options):
    with pytest.raises(UserError, match="--image-size: the model sees patches of 8 px; give a multiple, such as 24"):
        train(options(image_size=25))
    assert not Path(options().output).exists()


def test_rows_are_spared_by_their_own_texts():
    from tiny_blip import make_backbone, make_image

    backbone, task, image = make_backbone(), get_task("vqa"), make_image(0)
    said = {"left": "what is on the left", "plain": "what color is it"}

    def pixels(text, question):
        row = {"image": image, "question": question, "answers": ["red"], VISIT: (0, 0)}
        return Collator(backbone, task, parse_augmentation(text))([row])["pixel_values"]

    plain = pixels("none", said["plain"])
    flipped = pixels("flip-all:p=1", said["left"])
    assert torch.equal(flipped, plain.flip(-1))
    assert torch.equal(pixels("flip:p=1", said["plain"]), flipped)
    assert torch.equal(pixels("flip:p=1", said["left"]), plain)
