"""Which rule scores, and whether METEOR is computed."""

from __future__ import annotations

import pytest

from padapter.errors import UserError
from padapter.evaluation.scoring import with_scoring
from padapter.options import EvalOptions, PredictOptions, TrainOptions
from padapter.tasks import get_task

VQA, ENTAILMENT, CAPTION = (get_task(name) for name in ("vqa", "entailment", "caption"))


def training(**changes):
    return TrainOptions(task="caption", model="m", train="d", output="o", **changes)


def scoring(**changes):
    return EvalOptions(run="r", data="d", **changes)


def test_a_rule_is_the_commands_else_the_runs_else_the_tasks():
    assert with_scoring(VQA, scoring()).rule is None
    trained = training(rule="vizwiz-released")
    assert with_scoring(VQA, trained).rule == "vizwiz-released"
    assert with_scoring(VQA, scoring(), trained).rule == "vizwiz-released"
    assert with_scoring(VQA, scoring(rule="vqa-official-2021"), trained).rule == "vqa-official-2021"


@pytest.mark.parametrize("task", [VQA, ENTAILMENT, CAPTION])
def test_an_unknown_rule_lists_those_there_are(task):
    with pytest.raises(
        UserError, match=f"^--rule: 'strict' is no rule of task '{task.name}'; there are: {task.rules[0]}"
    ):
        with_scoring(task, scoring(rule="strict"))


def test_meteor_is_computed_by_eval_and_in_training_only_when_asked_for():
    assert with_scoring(CAPTION, scoring()).meteor
    assert not with_scoring(CAPTION, scoring(meteor=False)).meteor
    assert not with_scoring(CAPTION, training()).meteor
    assert with_scoring(CAPTION, training(meteor=True)).meteor
    assert not with_scoring(CAPTION, scoring(), training(meteor=False)).meteor
    assert with_scoring(CAPTION, scoring(), training()).meteor
    assert with_scoring(CAPTION, scoring(meteor=True), training(meteor=False)).meteor
    assert not with_scoring(CAPTION, PredictOptions(run="r", data="d"), training()).meteor


@pytest.mark.parametrize("task", [VQA, ENTAILMENT])
def test_meteor_is_a_score_of_captions(task):
    assert with_scoring(task, scoring()) == task
    assert with_scoring(task, scoring(meteor=False)) == task
    with pytest.raises(UserError, match=f"^--meteor: is a score of captions; task '{task.name}' has none"):
        with_scoring(task, scoring(meteor=True))


def test_what_is_missing_for_scoring_is_named_before_anything_is_done(monkeypatch):
    def missing():
        raise UserError("no Java")

    monkeypatch.setattr("padapter.metrics.caption.find_java", missing)
    for options in (scoring(), scoring(meteor=False), training(eval="d")):
        with pytest.raises(UserError, match="no Java"):
            with_scoring(CAPTION, options)
    for options in (training(), PredictOptions(run="r", data="d")):
        with_scoring(CAPTION, options)
    with_scoring(VQA, scoring())
