"""The weight of a row: read, checked, packed, and multiplied into what is learnt."""

from __future__ import annotations

import pytest
from data_cases import CAPTION, ENTAILMENT, VQA, problems, vqa_file, vqa_row

from padapter.data import check_data, load_data
from padapter.data.schema import parse_row
from padapter.data.shards.write import write_shards
from padapter.errors import UserError
from padapter.importers import IMPORTERS
from padapter.training.batches import Collator

ROWS = (vqa_row(answer="yes", weight=0.2), vqa_row(id="2"), vqa_row(id="3", weight="3"))


@pytest.mark.parametrize("value", [0, -0.2, True, float("nan"), float("inf"), 10**400, 1e-9, "half", [1], {}])
def test_what_is_no_weight(value):
    ((name, message),) = parse_row(vqa_row(weight=value), VQA.fields).problems
    assert name == "weight"
    assert message.endswith("expected a number from 0.000001 to 1,000,000")


def test_a_wrong_weight_is_a_problem_with_file_and_line(tmp_path):
    path = vqa_file(tmp_path, vqa_row(), vqa_row(id="2", weight=0))
    report = check_data(str(path), VQA)
    ((line, name, _),) = problems(report)
    assert (line, name) == (2, "weight")
    with pytest.raises(UserError, match=r"train.jsonl, line 2: weight: is the value \(0\)"):
        load_data(str(path), VQA)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (VQA, {"answers": ["a", "a", "b", ""]}),
        (CAPTION, {"captions": ["One.", "One!", "Two."]}),
        (ENTAILMENT, {"label": "neutral"}),
    ],
)
def test_a_weight_multiplies_whatever_the_task_weighs(task, row):
    plain = task.targets(row)
    assert task.targets(row | {"weight": None}) == plain
    assert task.targets(row | {"weight": 0.2}) == [(text, pytest.approx(0.2 * share)) for text, share in plain]


def test_weights_reach_training_from_files_and_from_shards(tmp_path):
    class Recorder:
        def picture(self, source):
            return source

        def collate(self, examples):
            return [example.targets for example in examples]

    path = vqa_file(tmp_path / "plain", *ROWS)
    write_shards(str(path), tmp_path / "shards", VQA)
    plain, packed = load_data(str(path), VQA), load_data(str(tmp_path / "shards"), VQA)
    assert plain.fingerprint == packed.fingerprint
    for data in (plain, packed):
        assert data.dataset["weight"][:] == [0.2, None, 3.0]
        assert "2 rows have a weight of their own in training: 0.2 to 3" in data.report.notes
        learnt = Collator(Recorder(), VQA)([dict(row) for row in data.dataset])
        assert learnt == [(("yes", 0.2),), (("a cat", 1.0),), (("a cat", 3.0),)]


def test_a_weight_changes_the_fingerprint_and_its_absence_does_not(tmp_path):
    prints = [
        load_data(str(vqa_file(tmp_path / str(number), vqa_row(**more))), VQA).fingerprint
        for number, more in enumerate([{}, {"weight": None}, {"weight": 2}])
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_column_of_a_table_is_the_weight_only_if_it_is_named(tmp_path):
    vqa_file(tmp_path)
    (tmp_path / "table.csv").write_text("image,question,answer,weight\na.png,Is it?,yes,70\n")
    done = IMPORTERS["csv"](tmp_path / "table.csv", tmp_path / "guessed")
    assert any("columns not used: weight" in note for note in done.notes)
    IMPORTERS["csv"](tmp_path / "table.csv", tmp_path / "named", weight="weight")
    weights = {
        name: load_data(str(tmp_path / name / "train.jsonl"), VQA).dataset.to_dict().get("weight")
        for name in ("guessed", "named")
    }
    assert weights == {"guessed": None, "named": [70.0]}
