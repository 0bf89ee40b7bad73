"""Every mistake a person makes: one message that says what to do, no traceback, exit code 2."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from tiny_world import write_model
from typer.testing import CliRunner

from padapter.cli import app
from padapter.training import train


@pytest.fixture
def refused():
    """Runs a command that must fail, and returns its one message."""

    def run(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("error: ") == 1
        assert "Traceback" not in result.output
        return " ".join(result.stderr.split())

    return run


@pytest.fixture
def train_words(model, data, tmp_path):
    """A command that would succeed; later words win."""

    def make(**changes):
        settings = {"task": "vqa", "model": model, "train": data["vqa"], "output": tmp_path / "run", **changes}
        words = [str(word) for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        return ["train", "--quiet", "--device", "cpu", "--max-steps", "1", *words]

    return make


@pytest.fixture(scope="module")
def run(model, data, tmp_path_factory):
    """A finished VQA run."""
    from tiny_world import short_run

    options = short_run(model, data["vqa"], output=str(tmp_path_factory.mktemp("runs") / "vqa"), max_steps=1)
    train(options)
    return Path(options.output)


def test_an_unknown_rule_lists_the_rules(refused, train_words, run, data):
    expected = "--rule: 'strict' is no rule of task 'vqa'; there are: vqa-official-2021, vqa-official-pre-2021, exact-"
    assert expected in refused(*train_words(rule="strict"))
    assert expected in refused("eval", "--run", run, "--data", data["vqa"], "--rule", "strict")
    words = ["--model", "m", "--task", "entailment", "--data", data["entailment"], "--rule", "vizwiz-released"]
    assert "is no rule of task 'entailment'; there are: label-accuracy." in refused("eval", *words)


def test_wrong_data_path(refused, train_words, data):
    assert "trian.jsonl: no such file or folder. Did you mean train.jsonl" in refused(
        *train_words(train=f"{data['vqa']}/trian.jsonl")
    )


def test_wrong_model_path(refused, train_words, tmp_path):
    assert "no such folder" in refused(*train_words(model=f"./{tmp_path.name}/missing"))
    assert "holds no config.json" in refused(*train_words(model=tmp_path))


def test_wrong_task_for_the_data(refused, train_words, data):
    message = refused(*train_words(task="caption"))
    assert "captions" in message
    assert f"padapter data check {data['vqa']} --task caption" in message


def test_unknown_task_method_and_method_option(refused, train_words):
    assert "Unknown task 'vqaa'; there are: vqa, entailment, caption" in refused(*train_words(task="vqaa"))
    known = "unknown method 'p-adaptor'. Did you mean 'p-adapter'? Known methods: p-adapter"
    assert known in refused(*train_words(method="p-adaptor"))
    assert "no option 'q'" in refused(*train_words(method="p-adapter:q=1"))
    assert "'soft' is not a number" in refused(*train_words(set="p=soft"))


def test_target_modules_that_match_nothing(refused, train_words, tmp_path):
    for method in ("p-adapter", "adapter", "lora"):
        message = refused(*train_words(method=method, set="target_modules=nothing_like_this"))
        assert "nothing_like_this" in message
        assert not (tmp_path / "run").exists()  # so that the mended command can be given at once


def test_bad_option_value(refused, train_words):
    assert "--batch-size: must be at least 1, got 0" in refused(*train_words(batch_size=0))
    assert "--save-every: 'x' is neither" in refused(*train_words(save_every="x"))


def test_option_value_of_the_wrong_type(train_words):
    """Typer's own message, in its own form; the exit code is the same."""
    result = CliRunner().invoke(app, train_words(batch_size="many"))
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr
    assert "Traceback" not in result.output


def test_unknown_yaml_key(refused, train_words, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epoch: 3\n")
    assert f"{path}: unknown key 'epoch'; did you mean 'epochs'" in refused(*train_words(config=path))


def test_output_that_exists(refused, train_words, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("x")
    assert "not empty" in refused(*train_words())
    (tmp_path / "file").write_text("x")
    assert "is a file; give a folder" in refused(*train_words(output=tmp_path / "file"))
    assert "holds no run" in refused(*train_words(output=tmp_path / "nowhere"), "--resume")


def test_output_that_cannot_be_made(refused, train_words, run, data, tmp_path):
    """Every command that writes says so before it works, or when it tries."""
    (tmp_path / "file").write_text("x")
    below, image = tmp_path / "file" / "run", Path(data["vqa"]) / "images" / "0.png"
    score = ("eval", "--run", run, "--data", data["vqa"], "--quiet")
    ask = ("predict", "--run", run, "--image", image, "--text", "what?", "--quiet")
    for words in (train_words(output=below), (*score, "--output", below), (*ask, "--output", below / "x.jsonl")):
        message = refused(*words)
        assert "--output: " in message
        assert f"{tmp_path / 'file'}: is not a folder" in message
    assert "is not a folder" in refused(*score, "--output", tmp_path / "file")
    assert "is a folder, not a file" in refused(*ask, "--output", tmp_path, "--overwrite")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make one")
def test_output_where_nothing_can_be_written(refused, train_words, run, data):
    nowhere = Path("/proc/padapter/run")
    assert "--output: /proc/padapter/run cannot be used (/proc" in refused(*train_words(output=nowhere))
    score = ("eval", "--run", run, "--data", data["vqa"], "--quiet", "--output", nowhere)
    assert "--output: /proc/padapter/run cannot be used (/proc" in refused(*score)


def test_no_permission_is_seen_before_the_data_is_read(refused, train_words, monkeypatch):
    monkeypatch.setattr("padapter.evaluation.files.os.access", lambda *_: False)
    assert "no permission to write" in refused(*train_words(train="missing.jsonl"))


def test_disk_full(refused, train_words, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("padapter.evaluation.results.os.fsync", full)
    assert "No space left on device" in refused(*train_words())


def test_other_errors_of_the_system_are_not_blamed_on_the_output(train_words, monkeypatch):
    def broken(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/file")

    monkeypatch.setattr("padapter.training.run._Run._train", broken)
    assert isinstance(CliRunner().invoke(app, train_words()).exception, FileNotFoundError)


def test_target_modules_that_are_no_regular_expression(refused, train_words, tmp_path):
    for method in ("p-adapter", "adapter", "lora"):
        message = refused(*train_words(method=method, set="target_modules=.*("))
        assert "target_modules" in message
        assert "regular expression" in message
        assert ".*(" in message
        assert not (tmp_path / "run").exists()


def test_damaged_weights(refused, run, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    weights = copy / "adapter" / "adapter_model.safetensors"
    for content in (weights.read_bytes()[:-5], b"no weights"):
        weights.write_bytes(content)
        assert f"'{weights}' is damaged" in refused("eval", "--run", copy, "--data", data["vqa"], "--quiet")


def test_damaged_metrics_and_candidates(refused, run, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for content in ('{"status": ', "[]"):
        (copy / "metrics.json").write_text(content)
        message = refused("train", "--resume", "--output", copy)
        assert f"{copy / 'metrics.json'}: is damaged" in message
        assert "delete it to resume without it" in message
    for content in ('{"candidates"', '{"candidates": 3}'):
        (copy / "candidates.json").write_text(content)
        message = refused("eval", "--run", copy, "--data", data["vqa"], "--quiet")
        assert f"{copy / 'candidates.json'}: is damaged" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_picture(refused, train_words, data, tmp_path, workers):
    """Also from a data worker the message comes alone, without the worker's traceback."""
    folder = tmp_path / "data"
    shutil.copytree(data["vqa"], folder)
    picture = folder / "images" / "3.png"
    good = picture.read_bytes()
    # Header and end are whole, so that only decoding finds it, after the data was accepted.
    middle = len(good) // 2
    picture.write_bytes(good[:middle] + bytes(20) + good[middle + 20 :])
    words = train_words(train=folder, num_workers=workers, max_steps=3, batch_size=4)
    message = refused(*words)
    assert message.startswith(f"error: {picture}: ")
    assert "worker" not in message


def test_prompt_without_a_place_for_the_question(refused, train_words):
    assert "--prompt: " in refused(*train_words(prompt="Answer me!"))


def test_ranking_captions(refused, train_words, data):
    assert "has no candidates to rank" in refused(*train_words(task="caption", train=data["caption"], inference="rank"))


def test_no_gpu(refused, train_words):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert "--device: this machine has no GPU" in refused(*train_words(device="cuda"))


def test_adapter_for_another_model(refused, run, data, tmp_path):
    other = write_model(tmp_path / "other", layers=3)
    words = ("--task", "vqa", "--data", data["vqa"], "--adapter", run / "adapter", "--quiet")
    assert "does not fit model" in refused("eval", "--model", other, *words)


def test_adapter_folder_that_is_none(refused, model, data, tmp_path):
    words = ("eval", "--task", "vqa", "--data", data["vqa"], "--model", model)
    assert "is not a folder" in refused(*words, "--adapter", tmp_path / "missing")
    assert "adapter_config.json" in refused(*words, "--adapter", tmp_path)


def test_run_that_is_none_or_has_another_task(refused, run, data, tmp_path):
    assert "not a folder written by `padapter train`" in refused("eval", "--run", tmp_path, "--data", data["vqa"])
    assert "was trained for 'vqa'" in refused("eval", "--run", run, "--data", data["vqa"], "--task", "caption")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    message = refused("eval", "--run", tmp_path, "--data", data["vqa"])
    assert f"padapter train --resume --output {tmp_path}" in message


def test_prediction_mistakes(refused, run, data, tmp_path):
    image = Path(data["vqa"]) / "images" / "0.png"
    assert "is not a file" in refused("predict", "--run", run, "--image", tmp_path / "no.png", "--text", "what?")
    assert "needs the question" in refused("predict", "--run", run, "--image", image)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    assert "broken.png" in refused("predict", "--run", run, "--image", broken, "--text", "what?", "--quiet")
    assert "'rank' needs candidates" in refused(
        "predict", "--run", run, "--image", image, "--text", "what?", "--quiet", "--inference", "rank"
    )


def test_bad_rows_are_refused_or_skipped(refused, train_words, data, tmp_path):
    lines = [json.loads(line) for line in (Path(data["vqa"]) / "train.jsonl").read_text().splitlines()]
    del lines[2]["question"]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images").symlink_to(Path(data["vqa"]) / "images")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "train.jsonl, line 3: question" in refused(*train_words(train=folder))
    result = CliRunner().invoke(app, [*train_words(train=folder), "--skip-bad-rows"])
    assert result.exit_code == 0, result.output
    assert "note: 1 bad rows of the train data were skipped" in result.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["data"]["train"]["rows"] == 9
    assert metrics["data"]["train"]["skipped"] == 1


def test_data_that_cannot_be_converted_or_shown(refused, data, tmp_path):
    assert "missing.csv: no such file or folder" in refused(
        "data", "from-csv", tmp_path / "missing.csv", tmp_path / "x"
    )
    assert "DST: is needed" in refused("data", "from-csv", tmp_path / "missing.csv")
    (tmp_path / "page.html").write_text("x")
    page = ("-o", tmp_path / "page.html")
    assert "page.html exists; --overwrite replaces it" in refused("data", "preview", data["vqa"], *page)
    assert "is a folder; name a file" in refused("data", "preview", data["vqa"], "-o", tmp_path)
    assert "--prompt: " in refused("data", "preview", data["vqa"], *page, "--overwrite", "--prompt", "No place.")
    assert (tmp_path / "page.html").read_text() == "x"


def test_interrupt_is_130_with_a_hint(train_words, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("padapter.training.run._Run._train", interrupted)
    result = CliRunner().invoke(app, train_words())
    assert result.exit_code == 130
    assert f"padapter train --resume --output {tmp_path / 'run'}" in result.stderr


def test_a_bug_is_not_hidden(train_words, monkeypatch):
    """Only a person's mistakes become one line."""

    def broken(*_, **__):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr("padapter.training.run._Run._train", broken)
    assert isinstance(CliRunner().invoke(app, train_words()).exception, ZeroDivisionError)
