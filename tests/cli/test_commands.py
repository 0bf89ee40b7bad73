"""The commands in the order a newcomer uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from padapter.cli import app


@pytest.fixture
def command():
    def run(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result.stdout

    return run


def test_train_evaluate_predict_resume(command, model, data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"task": "vqa", "model": model, "method": "p-adapter:p=1.25", "num_beams": 1, "quiet": True})
    )
    run, rows = tmp_path / "run", data["vqa"]
    shown = command(
        "train", "--config", recipe, "--train", rows, "--eval", rows, "--output", run, "--set", "mu=1",
        "--max-steps", 2, "--max-new-tokens", 3, "--device", "cpu",
    )  # fmt: skip
    assert "before" in shown
    assert "after" in shown
    assert "trained 1," in shown
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["method_options"]["p"], config["method_options"]["mu"]) == (1.25, 1.0)
    metrics = json.loads((run / "metrics.json").read_text())
    rule = metrics["scores"]["after"]["rule"]
    assert rule in shown

    # Scoring the run on the rows of its own evaluation gives the number in metrics.json.
    shown = command(
        "eval", "--run", run, "--data", rows, "--split", "validation", "--quiet", "--output", tmp_path / "e"
    )
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert report["scores"]["metrics"] == metrics["scores"]["after"]["metrics"]
    assert (tmp_path / "e" / "predictions.jsonl").read_text() == (run / "predictions.jsonl").read_text()
    assert rule in shown
    command("eval", "--run", run, "--data", rows, "--output", tmp_path / "e", code=2)

    # So does the adapter on its own.
    words = ("--model", model, "--adapter", run / "adapter", "--task", "vqa", "--num-beams", 1, "--max-new-tokens", 3)
    command("eval", *words, "--data", rows, "--split", "validation", "--quiet", "--output", tmp_path / "a")
    assert (tmp_path / "a" / "predictions.jsonl").read_text() == (run / "predictions.jsonl").read_text()

    predicted = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    one = ("--image", Path(rows) / "images" / "0.png", "--text", predicted[0]["question"])
    answer = json.loads(command("predict", "--run", run, *one, "--quiet"))
    assert answer["text"] == predicted[0]["text"]
    command(
        "predict", "--run", run, "--data", rows, "--split", "validation", "--quiet", "--output", tmp_path / "p.jsonl"
    )
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [(line["id"], line["text"]) for line in predicted]
    assert not (tmp_path / "p.jsonl.partial").exists()

    # `--resume --output RUN` is enough.
    assert "before" in command("train", "--resume", "--output", run)
    command("train", "--resume", "--output", run, "--seed", 1, code=2)


def test_predict_needs_no_answers(command, model, data, tmp_path):
    """Rows to answer have none yet."""
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "images").symlink_to(Path(data["vqa"]) / "images")
    (folder / "rows.jsonl").write_text('{"id": "a", "image": "images/3.png", "question": "what color is the cat ?"}\n')
    words = ("--model", model, "--task", "vqa", "--num-beams", 1, "--max-new-tokens", 3, "--quiet")
    line = json.loads(command("predict", *words, "--data", folder / "rows.jsonl"))
    assert line["id"] == "a"


def test_ranking_listed_candidates(command, model, data, tmp_path):
    (tmp_path / "words.txt").write_text("red\nblue\n\nred\ntwo\n")
    words = ("--model", model, "--task", "vqa", "--inference", "rank", "--candidates", tmp_path / "words.txt")
    image = Path(data["vqa"]) / "images" / "0.png"
    line = json.loads(command("predict", *words, "--image", image, "--text", "what color is it ?", "--quiet"))
    assert line["candidates"].keys() == {"red", "blue", "two"}
    assert line["text"] == max(line["candidates"], key=line["candidates"].get)


def test_entailment_ranks_the_labels_of_the_data(command, model, data):
    shown = command("eval", "--model", model, "--task", "entailment", "--data", data["entailment"], "--quiet")
    assert "inference by rank" in shown
    assert "  label=entailment " in shown


def test_data_check(command, data, tmp_path):
    assert "30 good" in command("data", "check", data["vqa"], "--task", "vqa")
    (tmp_path / "train.jsonl").write_text('{"image": "a.png", "question": "q?", "answer": "x"}\n{"image": 3}\n')
    shown = command("data", "check", tmp_path, "--task", "vqa", code=1)
    assert "train.jsonl, line 1" in shown
    assert "train.jsonl, line 2" in shown
    assert "more problems" in command("data", "check", tmp_path, "--task", "vqa", "--show", 1, code=1)


@pytest.mark.parametrize("task", ["vqa", "entailment", "caption"])
def test_data_check_tells_the_task_from_the_fields(command, data, task):
    shown = command("data", "check", data[task])
    assert shown.startswith(f"task: {task} (told from the field ")
    assert shown.split("\n", 1)[1] == command("data", "check", data[task], "--task", task)


def test_data_check_asks_for_the_task_where_fields_do_not_tell(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "q?", "answer": "x", "caption": "c"}\n')
    for spec in (str(tmp_path / "rows.jsonl"), "shapes:source:test:2"):
        result = CliRunner().invoke(app, ["data", "check", spec])
        assert result.exit_code == 2
        assert "name the task with --task" in result.stderr


def test_from_a_spreadsheet_to_a_run(command, model, tmp_path):
    """The way that the README shows."""
    from tiny_world import make_image

    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = ["photo;question;answer"]
    for number in range(10):
        make_image(number).save(folder / f"{number}.png")
        lines.append(f"{number}.png;what color is the dog ?;{'red' if number % 2 else 'blue'}")
    (folder / "table.csv").write_text("\n".join(lines))
    shown = command("data", "from-csv", folder / "table.csv", folder, "--validation", 0.2)
    assert "  train: 7 rows, 7 pictures\n  validation: 2 rows, 2 pictures\n  test: 1 rows, 1 pictures\n" in shown
    assert "columns guessed from their names: image is 'photo'" in shown
    assert "check: " in shown
    assert "10 rows, 10 good, 0 bad" in shown
    shown = command("data", "preview", folder, "-o", tmp_path / "page.html", "--model", model)
    assert "10 of 10 rows of the task vqa; no problems" in shown
    assert "<title>pictures: vqa</title>" in (tmp_path / "page.html").read_text()
    words = ("--task", "vqa", "--model", model, "--train", folder, "--eval", folder, "--max-steps", 1, "--quiet")
    assert "trained " in command("train", *words, "--output", tmp_path / "run", "--device", "cpu")


def test_data_from_a_published_set(command, tmp_path):
    from PIL import Image

    source = tmp_path / "rad"
    source.mkdir()
    Image.new("RGB", (4, 4)).save(source / "x.png")
    row = {"qid": 1, "phrase_type": "freeform", "image_name": "x.png", "question": "Is it?", "answer": 3}
    (source / "VQA_RAD.json").write_text(json.dumps([row]))
    assert "train: 1 rows" in command("data", "from-vqa-rad", source, tmp_path / "out")
    assert "1 good" in command("data", "check", tmp_path / "out", "--task", "vqa")


def test_a_preview_of_a_built_in_world(command, tmp_path):
    words = ("data", "preview", "shapes:source:test:5", "--task", "caption", "--rows", 3)
    assert "3 of 5 rows of the task caption" in command(*words, "-o", tmp_path / "deep" / "page.html")


def test_methods_are_listed_with_their_options(command):
    from padapter.methods import METHODS

    shown = command("methods")
    assert all(f"{name}  " in shown for name in METHODS)
    assert "--set p=float" in shown
    assert "Literal" not in shown
    assert "Other tuners of PEFT, by name: adamss, " in shown
    assert "adalora" not in shown
