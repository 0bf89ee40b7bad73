"""Server files: what goes in comes out in the server's form, and nothing goes out that does not fit the data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from padapter.cli import app
from padapter.errors import UserError
from padapter.evaluation import predict_source
from padapter.evaluation.journal import Journal
from padapter.evaluation.submit import FORMATS
from padapter.evaluation.submit.base import Answer
from padapter.evaluation.submit.convert import read_answers, read_rows, submit
from padapter.options import PredictOptions, SubmitOptions
from padapter.tasks import TASKS

# Per format: ids as readers give them, answers, and the list that the server is to read.
CASES = {
    "vqav2": (
        ["262148000", "393225001"],
        [" Down ", "2 dogs."],
        [{"question_id": 262148000, "answer": "Down"}, {"question_id": 393225001, "answer": "2 dogs."}],
    ),
    "vizwiz-vqa": (
        ["VizWiz_test_00000000.jpg", "VizWiz_test_00000001.jpg"],
        ["unanswerable", "soup"],
        [
            {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
            {"image": "VizWiz_test_00000001.jpg", "answer": "soup"},
        ],
    ),
    "vizwiz-answerability": (
        ["VizWiz_test_00000000.jpg", "VizWiz_test_00000001.jpg"],
        ["Unanswerable.", "soup"],
        [
            {"image": "VizWiz_test_00000000.jpg", "answerable": 0.0},
            {"image": "VizWiz_test_00000001.jpg", "answerable": 1.0},
        ],
    ),
    "textcaps": (
        ["0aed0f4c18d4b2a1", "0054c91397f2fe05"],
        ["a sign\r\nthat says\u2028stop", "a caf\u00e9"],
        [
            {"image_id": "0aed0f4c18d4b2a1", "caption": "a sign that says stop"},
            {"image_id": "0054c91397f2fe05", "caption": "a caf\u00e9"},
        ],
    ),
    "coco": (
        ["42", "7"],
        ["a dog", "two\x0bcats"],
        [{"image_id": 42, "caption": "a dog"}, {"image_id": 7, "caption": "two cats"}],
    ),
    "vizwiz-caption": (
        ["31181", "0"],
        ["a can", "a box"],
        [{"image_id": 31181, "caption": "a can"}, {"image_id": 0, "caption": "a box"}],
    ),
}
WRONG_IDS = {
    "vqav2": ["007", "a1", "-3", "1.0"],
    "vizwiz-vqa": ["train/1.jpg", "12"],
    "vizwiz-answerability": ["train\\1.jpg", "12"],
    "textcaps": ["sign", "12.5"],
    "coco": ["COCO_val2014_000000000042.jpg", "\u0664"],
    "vizwiz-caption": ["VizWiz_val_00000000.jpg", "01"],
}
FIELDS = {"vqa": {"question": "what is it ?"}, "caption": {}}


@pytest.fixture
def make(tmp_path):
    """Writes data and predictions with these ids, and gives options that submit them; keywords win."""

    def options(name, ids, answers, **changes):
        rows = [{"id": key, "image": f"{key}.jpg", **FIELDS[FORMATS[name].task]} for key in ids]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines = [{"id": key, "text": text} for key, text in reversed(list(zip(ids, answers, strict=True)))]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return SubmitOptions(
            **{
                "predictions": str(tmp_path / "p.jsonl"),
                "data": str(tmp_path / "rows.jsonl"),
                "format": name,
                "output": str(tmp_path / "out.json"),
                **changes,
            }
        )

    return options


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(make, name):
    ids, answers, expected = CASES[name]
    done = submit(make(name, ids, answers))
    content = done.path.read_text(encoding="ascii")
    assert json.loads(content) == expected  # in the order of the data, though predictions were in another
    assert [list(map(type, entry.values())) for entry in json.loads(content)] == [
        list(map(type, entry.values())) for entry in expected
    ]
    assert (done.entries, done.form) == (2, FORMATS[name])
    assert done.form.task in TASKS


@pytest.mark.parametrize("name", FORMATS)
def test_ids_of_another_kind(make, name):
    wrong = WRONG_IDS[name]
    options = make(name, [*CASES[name][0], *wrong], ["x"] * (2 + len(wrong)))
    with pytest.raises(UserError) as error:
        submit(options)
    assert f"not of {name}, where an id " in str(error.value)
    assert f": {len(wrong)} ({', '.join(map(repr, reversed(wrong)))})" in str(error.value)


def test_everything_that_does_not_fit_is_said_at_once(make, tmp_path):
    options = make("coco", [str(number) for number in range(10, 20)], ["x"] * 10)
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    extra = [json.dumps({"id": key, "text": "y"}) for key in ("77", "dog")]
    (tmp_path / "p.jsonl").write_text("\n".join([*lines[:3], lines[0], *extra]))
    with pytest.raises(UserError) as error:
        submit(options)
    message = str(error.value)
    assert "rows.jsonl, split test, 10 rows:" in message
    assert "without an answer: 7 ('10', '11', '12', '13', '14' and 2 more)" in message
    assert "answered, but not in the data: 2 ('77', 'dog')" in message
    assert "answered more than once: 1 ('19')" in message
    assert "not of coco, where an id is a whole number: 1 ('dog')" in message
    assert not (tmp_path / "out.json").exists()


def test_a_split_with_answers_is_mentioned(make, tmp_path):
    ids, answers, _ = CASES["vqav2"]
    options = make("vqav2", ids, answers)
    assert submit(options).notes == ()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    def answer(some):
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({**row, "answer": "x"}) for row in rows[:some]))
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.writelines("\n" + json.dumps(row) for row in rows[some:])

    answer(1)
    assert submit(replace(options, overwrite=True)).notes == ()
    answer(2)
    (note,) = submit(replace(options, overwrite=True)).notes
    assert "the rows of split 'test' have answers" in note
    assert "`padapter eval` does" in note


def test_how_likely_a_question_can_be_answered():
    value = FORMATS["vizwiz-answerability"].value
    ranked = {"soup": math.log(0.3) - 90, "unanswerable": math.log(0.5) - 90, "unsuitable": math.log(0.2) - 90}
    assert value(Answer("a", "unanswerable", ranked)) == pytest.approx(0.3)
    assert value(Answer("a", "soup", {"soup": -3.0, "dog": -4.0})) == 1.0
    assert value(Answer("a", "Unsuitable")) == 0.0


def test_notes(make, tmp_path):
    ids, answers, _ = CASES["coco"]
    assert "captions_SPLIT_NAME_results.json" in submit(make("coco", ids, answers)).notes[0]
    named = str(tmp_path / "captions_val2014_ours_results.json")
    assert submit(make("coco", ids, answers, output=named)).notes == ()
    done = submit(make("vqav2", ids, ["yes", " "], overwrite=True))
    assert done.notes == ("1 answers are empty, and score as such: '7'",)
    images = CASES["vizwiz-vqa"][0]
    options = make("vizwiz-answerability", images, answers, overwrite=True)
    assert "rank no candidates" in submit(options).notes[0]
    lines = [{"id": key, "text": "a", "candidates": {"a": -1.0, "unanswerable": -2.0}} for key in images]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert submit(options).notes == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "text', r"p.jsonl, line 1: is no JSON"),
        ('{"id": 1, "text": "x"}', "line 1: is no prediction"),
        ('{"id": "1", "answer": "x"}', "line 1: is no prediction"),
        ("[]", "line 1: is no prediction"),
        ('{"id": "1", "text": "x", "candidates": {"x": NaN}}', "line 1: candidates: is no object of finite numbers"),
    ],
)
def test_lines_that_are_no_predictions(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / "p.jsonl")


def test_unfinished_answers_are_refused(tmp_path):
    with Journal(tmp_path / "p.jsonl", {"data": "x"}):
        pass
    with pytest.raises(UserError, match="these answers are unfinished"):
        read_answers(tmp_path / "p.jsonl.partial")
    with pytest.raises(UserError, match="PREDICTIONS: cannot read"):
        read_answers(tmp_path / "nothing.jsonl")


def test_rows_without_an_id(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "image": "a.png"}\n{"image": "b.png"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: has no id"):
        read_rows(str(tmp_path / "rows.jsonl"), "caption", "test")


def test_the_format(make, monkeypatch):
    ids, answers, expected = CASES["vqav2"]
    with pytest.raises(UserError, match=r"--format: .*rows.jsonl is no benchmark .* give one of: vqav2: VQA v2"):
        submit(make("vqav2", ids, answers, format=None))
    with pytest.raises(UserError, match="--format: 'vqa' is none of: vqav2: "):
        submit(make("vqav2", ids, answers, format="vqa"))
    options = make("vqav2", ids, answers, format=None)
    rows = options.data
    options.data = "vqav2:/somewhere"  # a benchmark's own spec tells it
    from padapter.evaluation.submit import convert

    original = convert.open_source
    monkeypatch.setattr(convert, "open_source", lambda spec, task, split: original(rows, task, split=split))
    assert json.loads(submit(options).path.read_text()) == expected


def test_results_are_not_overwritten(make, tmp_path):
    ids, answers, _ = CASES["coco"]
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(UserError, match=r"--output: .*out.json exists"):
        submit(make("coco", ids, answers))
    assert (tmp_path / "out.json").read_text() == "mine"
    submit(make("coco", ids, answers, overwrite=True))
    with pytest.raises(UserError, match=r"--output: .* cannot be used"):
        submit(make("coco", ids, answers, output=str(tmp_path / "out.json" / "x.json")))


def test_from_question_to_server_file(model, data, tmp_path):
    """`padapter predict` on questions without answers, then `padapter submit`."""
    rows = [{"id": 100 + number, "image": f"{number}.png", "question": "how many cats"} for number in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(3):
        (tmp_path / f"{number}.png").symlink_to(f"{data['vqa']}/images/{number}.png")
    common = {"model": model, "task": "vqa", "num_beams": 1, "max_new_tokens": 3, "quiet": True, "device": "cpu"}
    found = predict_source(PredictOptions(**common, data=str(tmp_path), output=str(tmp_path / "p.jsonl")))
    words = ["submit", tmp_path / "p.jsonl", "--data", tmp_path, "--format", "vqav2", "--output", tmp_path / "out.json"]
    shown = CliRunner().invoke(app, [str(word) for word in words])
    assert shown.exit_code == 0, shown.output
    assert "3 entries for vqav2" in shown.output
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"question_id": int(answer.id), "answer": answer.text.strip()} for answer in found
    ]
