"""An interrupted evaluation goes on from what was answered, and ends as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from padapter.backbones import BlipBackbone, load_backbone
from padapter.backbones.digest import backbone_digest
from padapter.data import load_data
from padapter.errors import UserError
from padapter.evaluation import evaluate, evaluate_source, predict_source, resolve_asking
from padapter.methods import get_method
from padapter.options import EvalOptions, InferenceOptions, PredictOptions
from padapter.tasks import get_task
from padapter.training import train

VQA = get_task("vqa")
WORDS = ["red", "blue", "two", "green"]


class KilledError(Exception):
    pass


@pytest.fixture
def rows(data):
    return load_data(data["vqa"], VQA, split="test")


@pytest.fixture
def backbone(model):
    return load_backbone(model)


@pytest.fixture
def asked(monkeypatch):
    """What backbones were asked, batch by batch; `asked.limit` batches, then an interruption."""

    class Asked(list):
        limit = None

        @property
        def rows(self):
            return sum(self)

    found = Asked()
    for name in ("generate", "rank"):
        original = getattr(BlipBackbone, name)

        def spy(self, images, prompts, *args, original=original, **settings):
            if found.limit is not None and len(found) >= found.limit:
                raise KilledError
            found.append(len(prompts))
            return original(self, images, prompts, *args, **settings)

        monkeypatch.setattr(BlipBackbone, name, spy)
    return found


def asking(inference="generate", **changes):
    generates = {"num_beams": 1, "max_new_tokens": 3} if inference == "generate" else {}
    return resolve_asking(VQA, InferenceOptions(inference=inference, eval_batch_size=4, **generates, **changes))


def answer(backbone, rows, output, how=None, **changes):
    settings = {"candidates": WORDS, "output": output, "quiet": True, **changes}
    return evaluate(backbone, VQA, rows, how or asking(), **settings)


def interrupt(asked, batches, *arguments, **settings):
    asked.clear()
    asked.limit = batches
    with pytest.raises(KilledError):
        answer(*arguments, **settings)
    asked.clear()
    asked.limit = None


@pytest.mark.parametrize("inference", ["generate", "rank"])
def test_only_the_rest_is_asked_and_nothing_shows(backbone, rows, tmp_path, asked, inference):
    how = asking(inference)
    whole = answer(backbone, rows, tmp_path / "whole.jsonl", how)
    output = tmp_path / "torn.jsonl"
    interrupt(asked, 2, backbone, rows, output, how)
    assert not output.exists()
    found = answer(backbone, rows, output, how)
    assert asked == [2]  # the third batch of 4, 4 and 2
    assert found.predictions == whole.predictions
    assert found.metrics == whole.metrics
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn.jsonl", "whole.jsonl"]


def test_a_torn_line_does_not_count(backbone, rows, tmp_path, asked):
    whole = answer(backbone, rows, tmp_path / "whole.jsonl")
    output, partial = tmp_path / "p.jsonl", tmp_path / "p.jsonl.partial"
    for cut in (b'{"id": "', b'{"id": "0", "text": "caf\xc3', b'{"id": "0", "text": "red"}'):
        interrupt(asked, 1, backbone, rows, output)
        with partial.open("ab") as file:
            file.write(cut)
        asked.limit = 1  # again, with what comes next behind it
        with pytest.raises(KilledError):
            answer(backbone, rows, output)
        asked.limit = None
        assert answer(backbone, rows, output).predictions == whole.predictions
        assert asked == [4, 2]
        output.unlink()
    partial.write_bytes(b'{"kind": "answers on th')  # killed in its first line
    assert answer(backbone, rows, output).predictions == whole.predictions


def test_lines_of_a_batch_that_is_torn_are_kept(backbone, rows, tmp_path, asked):
    whole = answer(backbone, rows, tmp_path / "whole.jsonl")
    interrupt(asked, 1, backbone, rows, tmp_path / "p.jsonl")
    partial = tmp_path / "p.jsonl.partial"
    partial.write_text("".join(partial.read_text().splitlines(keepends=True)[:4]))
    assert answer(backbone, rows, tmp_path / "p.jsonl").predictions == whole.predictions
    assert asked == [1, 4, 2]


def test_another_batch_size_goes_on(backbone, rows, tmp_path, asked):
    interrupt(asked, 2, backbone, rows, tmp_path / "p.jsonl")
    answer(backbone, rows, tmp_path / "p.jsonl", replace(asking(), batch_size=1))
    assert asked == [1, 1]


def test_answers_of_another_origin_are_refused(backbone, model, rows, data, tmp_path, asked):
    output = tmp_path / "p.jsonl"

    def refused(what, *arguments, differences=1, **settings):
        with pytest.raises(UserError, match=f"another one: {what} was .* and is .*--overwrite") as error:
            answer(*arguments, **settings)
        assert error.value.args[0].count(" was ") == 1 + differences  # 'a run that was another one'
        assert not asked

    interrupt(asked, 1, backbone, rows, output)
    kept = (tmp_path / "p.jsonl.partial").read_bytes()
    refused("max_new_tokens", backbone, rows, output, replace(asking(), max_new_tokens=2))
    refused("min_new_tokens", backbone, rows, output, replace(asking(), min_new_tokens=2))
    refused("data", backbone, load_data(data["vqa"], VQA, split="test", limit=9), output, differences=2)  # and prompts
    refused("precision", backbone, rows, output, replace(asking(), precision="bf16"))
    changed = load_backbone(model)
    with torch.no_grad():
        next(changed.model.parameters()).view(-1)[0] += 1e-3
    refused("model and adapter", changed, rows, output)
    with pytest.raises(UserError, match=r"prompt was 'question\?' and is 'so question\?'; prompts was"):
        evaluate(backbone, replace(VQA, prompt_template="so {question}"), rows, asking(), output=output, quiet=True)
    assert (tmp_path / "p.jsonl.partial").read_bytes() == kept

    answer(changed, rows, output, overwrite=True)
    assert asked.rows == 10
    interrupt(asked, 1, backbone, rows, output)
    answer(backbone, rows, output, overwrite=True)  # as the command that was interrupted said
    assert asked.rows == 6


def test_candidates_belong_to_the_origin(backbone, rows, tmp_path, asked):
    interrupt(asked, 1, backbone, rows, tmp_path / "p.jsonl", asking("rank"))
    with pytest.raises(UserError, match="candidates was"):
        answer(backbone, rows, tmp_path / "p.jsonl", asking("rank"), candidates=WORDS[:3])


def test_files_that_are_something_else(backbone, rows, tmp_path, asked):
    partial = tmp_path / "p.jsonl.partial"
    partial.write_text('{"id": "0", "text": "red"}\n')
    with pytest.raises(UserError, match="it does not say what gave them"):
        answer(backbone, rows, tmp_path / "p.jsonl")
    partial.unlink()
    interrupt(asked, 1, backbone, rows, tmp_path / "p.jsonl")
    lines = partial.read_text().splitlines()
    lines[2] = lines[2][:9]
    partial.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"p.jsonl.partial, line 3: is damaged"):
        answer(backbone, rows, tmp_path / "p.jsonl")


def test_what_a_model_is(model, tmp_path):
    """Content counts, not the place; adapters count with all that makes them."""
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    plain = backbone_digest(load_backbone(model))
    assert backbone_digest(load_backbone(str(moved))) == plain

    def adapted(**settings):
        backbone, method = load_backbone(model), get_method("p-adapter")
        torch.manual_seed(0)
        method.apply(backbone, method.options(**settings))
        return backbone

    one = adapted(p=1.5)
    assert len({plain, backbone_digest(one), backbone_digest(adapted(p=1.25))}) == 3
    assert backbone_digest(one) == backbone_digest(adapted(p=1.5))
    with one.model.disable_adapter():
        off = backbone_digest(one)
    assert off != backbone_digest(one)
    one.max_length -= 1
    assert off != backbone_digest(one) != backbone_digest(adapted(p=1.5))


def test_the_commands_go_on(model, data, tmp_path, asked):
    common = {"model": model, "task": "vqa", "data": data["vqa"], "num_beams": 1, "max_new_tokens": 3}
    common |= {"eval_batch_size": 4, "quiet": True, "device": "cpu"}
    scoring = EvalOptions(**common, output=str(tmp_path / "whole"))
    writing = PredictOptions(**common, output=str(tmp_path / "whole.jsonl"))
    evaluate_source(scoring)
    predict_source(writing)
    for run, options, output in (
        (evaluate_source, scoring, tmp_path / "torn"),
        (predict_source, writing, tmp_path / "torn.jsonl"),
    ):
        again = replace(options, output=str(output))
        asked.clear()
        asked.limit = 2
        with pytest.raises(KilledError):
            run(again)
        asked.limit = None
        run(again)
        assert asked == [4, 4, 2]
    assert (tmp_path / "torn.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == ["metrics.json", "predictions.jsonl"]
    lines = (tmp_path / "torn" / "predictions.jsonl").read_bytes()
    assert lines == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


def test_a_picture_is_part_of_the_data(model, data, tmp_path, asked):
    """`predict --image` too; the same name with another content is another picture."""
    image = tmp_path / "a.png"
    shutil.copy(Path(data["vqa"]) / "images" / "0.png", image)
    options = PredictOptions(
        model=model, task="vqa", image=str(image), text="how many cats", output=str(tmp_path / "p.jsonl"), quiet=True,
        num_beams=1, max_new_tokens=3, device="cpu",
    )  # fmt: skip
    asked.limit = 0
    with pytest.raises(KilledError):
        predict_source(options)
    asked.limit = None
    shutil.copy(Path(data["vqa"]) / "images" / "1.png", image)
    with pytest.raises(UserError, match="data was"):
        predict_source(options)


def test_a_run_goes_on_scoring(options, data, asked):
    """Training that was killed while the unadapted model was scored."""
    settings = {"eval": data["vqa"], "max_steps": 1, "eval_batch_size": 4}
    asked.limit = 2
    with pytest.raises(KilledError):
        train(options(**settings))
    asked.limit = None
    run = train(options(**settings, resume=True))
    assert asked == [4, 4, 2, 4, 4, 2]
    lines = (run.output / "predictions_base.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 10
    assert not list(run.output.glob("*.partial*"))


def test_a_run_drops_answers_of_other_weights(options, data, asked):
    """In its own folder they are no reason to stop; those of the same weights are kept."""
    settings = {"eval": data["vqa"], "max_steps": 1, "eval_batch_size": 4, "score_base": False}
    for change, expected in ((False, 2), (True, 10)):
        asked.clear()
        asked.limit = 2
        with pytest.raises(KilledError):
            train(options(**settings, overwrite=True))
        asked.clear()
        asked.limit = None
        partial = Path(options().output) / "predictions.jsonl.partial"
        if change:
            partial.write_text(partial.read_text().replace('"model and adapter": "', '"model and adapter": "0'))
        train(options(**settings, resume=True))
        assert asked.rows == expected
        assert not partial.exists()
