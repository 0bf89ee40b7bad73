from __future__ import annotations

from dataclasses import replace

import datasets
import pytest

from padapter.errors import UserError
from padapter.metrics import EXACT_MATCH, OFFICIAL
from padapter.tasks import TASKS, CaptionTask, EntailmentTask, Prediction, Task, VqaTask, get_task

VQA, ENTAILMENT, CAPTION = (get_task(name) for name in ("vqa", "entailment", "caption"))
ROWS = {
    "vqa": {"id": "1", "question": "What is it?", "answers": ["a cat"]},
    "entailment": {"id": "1", "hypothesis": "It is a cat.", "label": "true"},
    "caption": {"id": "1", "captions": ["A cat."]},
}


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_keeps_the_interface(name):
    task = get_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    assert task.summary
    assert task.loss_reduction in ("sequence", "token")
    assert task.default_inference in ("generate", "rank")
    assert 0 < task.generation.min_new_tokens <= task.generation.max_new_tokens
    row = ROWS[name]
    assert task.prompt(row).strip()
    assert [weight > 0 and bool(text) for text, weight in task.targets(row)] == [True]
    assert {spec.name for spec in task.fields if spec.required} == set(row) - {"id"}
    scores = task.score([Prediction("1", task.targets(row)[0][0])], [row])
    assert task.primary_metric in scores.metrics
    assert set(scores.per_item) == {"1"}
    assert scores.rule in task.rules
    assert replace(task, rule=scores.rule).score([Prediction("1", task.targets(row)[0][0])], [row]) == scores


def test_the_registry():
    assert list(TASKS) == ["vqa", "entailment", "caption"]
    with pytest.raises(UserError, match="'retrieval'; there are: vqa, entailment, caption"):
        get_task("retrieval")


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("How many dogs?", "how many dogs?"),
        ("Is THIS (really) a #dog; or ~what...?!", "is this really a dog or what?"),
        ("name the colour", "name the colour?"),
        ("what?  ", "what?"),
        ("is it? or not", "is it? or not?"),
        (" ".join(f"w{n}" for n in range(30)) + "?", " ".join(f"w{n}" for n in range(20)) + "?"),
    ],
)
def test_questions_are_cleaned(question, prompt):
    assert VQA.prompt({"question": question}) == prompt


def test_vqa_targets_are_weighted_by_annotators():
    targets = VQA.targets({"answers": ["red", "red ", "blue", ""]})
    assert dict(targets) == pytest.approx({"red": 2 / 3, "blue": 1 / 3})


def test_vqa_candidates_by_frequency_whatever_the_case():
    rows = [{"answers": answers} for answers in (["no"], ["Yes"], ["yes", "maybe"], ["yes"], ["No"], [""])]
    assert VQA.candidates(rows) == ["yes", "no", "maybe"]


def test_vqa_scores_with_groups_and_the_rule_of_the_data():
    rows = [
        {"id": "1", "answers": ["red"], "answer_type": "OPEN"},
        {"id": "2", "answers": ["2"], "answer_type": "CLOSED"},
        {"id": "3", "answers": ["x"], "answer_type": None},
    ]
    scores = VQA.score([Prediction("1", "The red."), Prediction("2", "three"), Prediction("3", "x")], rows)
    assert scores.rule == EXACT_MATCH
    assert scores.metrics == pytest.approx(
        {"accuracy": 2 / 3, "accuracy[answer_type=CLOSED]": 0, "accuracy[answer_type=OPEN]": 1}
    )
    assert scores.per_item == {"1": 1, "2": 0, "3": 1}
    ten = [{"id": "1", "answers": ["red"] * 3 + ["blue"] * 7}]
    assert VQA.score([Prediction("1", "red")], ten).rule == OFFICIAL
    assert VQA.score([Prediction("1", "red")], ten).metrics["accuracy"] == pytest.approx(0.9)


def test_vqa_is_scored_by_the_rule_that_is_named():
    rows = [{"id": "1", "answers": ["red"] * 3 + ["blue"] * 7}, {"id": "2", "answers": ["yes"] * 10}]
    said = [Prediction("1", "red"), Prediction("2", "Yes")]
    accuracy = {}
    for rule in VqaTask.rules:
        scores = replace(VQA, rule=rule).score(said, rows)
        assert scores.rule == rule
        accuracy[rule] = scores.metrics["accuracy"]
    assert accuracy == pytest.approx(
        {
            "vqa-official-2021": 0.45,
            "vqa-official-pre-2021": 0.95,
            "exact-match-normalised": 1,
            "vizwiz-released": 1,
            "vizwiz-leave-one-out": 0.95,
        }
    )


@pytest.mark.parametrize("task", [VQA, ENTAILMENT, CAPTION])
def test_a_rule_of_another_task_is_refused(task):
    with pytest.raises(UserError, match=f"'strict' is no rule of task '{task.name}'; there are: {task.rules[0]}"):
        replace(task, rule="strict")
    others = {rule for name, other in TASKS.items() if name != task.name for rule in other.rules}
    for rule in others:
        with pytest.raises(UserError, match="is no rule of task"):
            replace(task, rule=rule)


def test_unanswerable_questions_are_found():
    rows = [
        {"id": "1", "answers": ["red"], "answerable": True},
        {"id": "2", "answers": ["unanswerable"], "answerable": False},
        {"id": "3", "answers": ["unsuitable"], "answerable": False},
        {"id": "4", "answers": ["blue"], "answerable": None},
    ]
    said = [Prediction(str(n), text) for n, text in enumerate(["Unanswerable.", "unanswerable", "red", "x"], 1)]
    metrics = VQA.score(said, rows).metrics
    assert metrics["unanswerable_ap"] == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert metrics["unanswerable_f1"] == pytest.approx(2 / 4)
    ranked = [replace(said[0], scores={"unanswerable": -2.0, "red": -2.5}), *said[1:]]
    metrics = VQA.score(ranked, rows).metrics
    assert metrics["unanswerable_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics["unanswerable_f1"] == pytest.approx(2 / 4)
    assert "unanswerable_ap" not in VQA.score(said[:1] + said[3:], rows[:1] + rows[3:]).metrics


@pytest.mark.parametrize(
    ("hypothesis", "prompt"),
    [
        ("A dog runs.", "Is it correct that a dog runs ? "),
        ("two dogs", "Is it correct that two dogs ? "),
        ("He waits...", "Is it correct that he waits.. ? "),
        ("{curly}.", "Is it correct that {curly} ? "),
    ],
)
def test_hypotheses_become_questions(hypothesis, prompt):
    assert ENTAILMENT.prompt({"hypothesis": hypothesis}) == prompt


def test_standard_labels_are_spoken_as_the_authors_do():
    rows = [{"label": label} for label in ("neutral", "entailment", "contradiction", "neutral")]
    assert ENTAILMENT.candidates(rows) == ["incorrect", "correct", "ambiguous"]
    assert ENTAILMENT.targets(rows[0]) == [("ambiguous", 1.0)]


def test_other_labels_are_spoken_as_they_stand():
    assert ENTAILMENT.candidates([{"label": "true"}, {"label": "false"}]) == ["false", "true"]
    with pytest.raises(UserError, match="at least two labels"):
        ENTAILMENT.candidates([{"label": "true"}])
    with pytest.raises(UserError, match="cannot be told apart"):
        ENTAILMENT.candidates([{"label": "not sure"}, {"label": "not-sure"}])
    with pytest.raises(UserError, match="cannot be told apart"):
        ENTAILMENT.candidates([{"label": "correct"}, {"label": "entailment"}])


def test_entailment_scores_by_label_name():
    rows = [{"id": str(n), "label": label} for n, label in enumerate(["entailment", "neutral", "not-sure", "neutral"])]
    said = ["Correct", "ambiguous.", "not - sure", "incorrect"]
    scores = ENTAILMENT.score([Prediction(str(n), text) for n, text in enumerate(said)], rows)
    assert scores.per_item == {"0": 1, "1": 1, "2": 1, "3": 0}
    assert scores.metrics["accuracy"] == 0.75
    assert scores.metrics["accuracy[label=neutral]"] == 0.5
    assert scores.details["per_class"]["neutral"] == {"precision": 1, "recall": 0.5, "f1": 2 / 3, "count": 2}
    assert scores.details["confusion"]["neutral"] == {"entailment": 0, "neutral": 1, "not-sure": 0, "contradiction": 1}


def test_false_is_not_true():
    rows = [{"id": "1", "label": "false"}, {"id": "2", "label": "true"}]
    said = [Prediction("1", "true"), Prediction("2", "true")]
    assert ENTAILMENT.score(said, rows).metrics["accuracy"] == 0.5


def test_caption_prompt_targets_and_candidates():
    row = {"captions": ["A dog, on  a MAT.", "a dog, on a mat", "#two* (dogs)", "w " * 40]}
    assert CAPTION.prompt(row) == "What does the image describe? "
    targets = CAPTION.targets(row)
    assert targets[:2] == [("a dog, on a mat", 2.0), ("two dogs", 1.0)]
    assert len(targets[2][0].split()) == 30
    assert CAPTION.candidates([row]) is None


def test_caption_scores():
    rows = [{"id": "1", "captions": ["A cat sits on a mat."]}, {"id": "2", "captions": ["Two dogs run in the snow."]}]
    scores = CAPTION.score([Prediction("1", "a cat sits on a mat"), Prediction("2", "a cat")], rows)
    assert scores.per_item["1"] > 5 > scores.per_item["2"]
    assert scores.metrics["cider"] == pytest.approx(sum(scores.per_item.values()) / 2)
    assert set(scores.metrics) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}


def test_meteor_is_computed_only_where_it_is_wanted(monkeypatch):
    class Unwanted:
        def __init__(self, **arguments):
            raise RuntimeError("started")

    monkeypatch.setattr("padapter.metrics.caption.Meteor", Unwanted)
    CAPTION.score([Prediction("1", "a cat")], [ROWS["caption"]])
    with pytest.raises(RuntimeError, match="started"):
        replace(CAPTION, meteor=True).score([Prediction("1", "a cat")], [ROWS["caption"]])


@pytest.mark.parametrize("name", list(TASKS))
def test_repeats_count_once_and_gaps_are_refused(name):
    task, first = TASKS[name], ROWS[name]
    rows = [first, first | {"id": "2"}]
    text = task.targets(first)[0][0]
    twice = [Prediction("1", text), Prediction("2", "nothing"), Prediction("2", text), Prediction("1", "nothing")]
    assert task.score(twice, rows) == task.score(twice[:2], rows)
    with pytest.raises(UserError, match=r"1 items have no prediction \('2'\)"):
        task.score(twice[:1], rows)
    with pytest.raises(UserError, match="belong to no item"):
        task.score(twice, rows[:1])


def test_tables_are_scored_without_reading_their_pictures():
    table = datasets.Dataset.from_dict(
        {"id": ["1"], "answers": [["x"]], "image": [{"bytes": b"no picture", "path": None}]},
        features=datasets.Features(
            {
                "id": datasets.Value("string"),
                "answers": datasets.List(datasets.Value("string")),
                "image": datasets.Image(),  # would be decoded, and fail, if it were read
            }
        ),
    )
    assert VQA.score([Prediction("1", "x")], table).metrics["accuracy"] == 1
    assert VQA.candidates(table) == ["x"]


def test_prompts_are_options():
    assert replace(VqaTask(), prompt_template="Q: {question} A:").prompt(ROWS["vqa"]) == "Q: what is it? A:"
    changed = EntailmentTask(prompt_template="{hypothesis}, right?", label_words=(("true", "yes"), ("false", "no")))
    assert changed.prompt(ROWS["entailment"]) == "it is a cat, right?"
    assert changed.targets(ROWS["entailment"]) == [("yes", 1.0)]
    assert CaptionTask(prompt_template="a picture of ").prompt({}) == "a picture of "
    with pytest.raises(UserError, match=r"no place for the question: write \{question\}"):
        VqaTask(prompt_template="Question: ").prompt(ROWS["vqa"])


def test_labels_that_are_words_of_other_labels_are_scored():
    rows = [{"id": "1", "hypothesis": "x", "label": "correct"}, {"id": "2", "hypothesis": "x", "label": "incorrect"}]
    scores = ENTAILMENT.score([Prediction("1", "correct"), Prediction("2", "correct")], rows)
    assert scores.metrics["accuracy"] == 0.5
    assert scores.details["confusion"]["incorrect"]["correct"] == 1
