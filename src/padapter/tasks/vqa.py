"""Visual question answering: a question and one or more annotators' answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from padapter.data.schema import WEIGHT, Field, is_visible
from padapter.metrics.answerability import answerable_score, score_answerability
from padapter.metrics.answers import strip_answer
from padapter.metrics.vqa import group_means, score_vqa
from padapter.metrics.vqa_rules import VQA_RULES
from padapter.tasks.base import GenerationDefaults, Prediction, Row, Scores, Task, fill, first_by_id, iterate_texts
from padapter.tasks.text import clean_question


@dataclass(frozen=True)
class VqaTask(Task):
    """Answer a question about an image.

    Attributes:
        prompt_template: The prompt; ``{question}`` is the cleaned question.
        max_question_words: Longer questions are cut.
        rule: How answers are compared, a name of ``padapter.metrics.VQA_RULES``; None: chosen by the number of answers.
    """

    prompt_template: str = "{question}"
    max_question_words: int = 20
    rule: str | None = None

    name: ClassVar[str] = "vqa"
    summary: ClassVar[str] = "answer a question about an image"
    fields: ClassVar[tuple[Field, ...]] = (
        Field("question", "text"),
        Field("answers", "texts", alias="answer", words=False, keep_empty=True),
        Field("question_type", "text", required=False),
        Field("answer_type", "text", required=False),
        Field("answerable", "flag", required=False),
        WEIGHT,
    )
    primary_metric: ClassVar[str] = "accuracy"
    rules: ClassVar[tuple[str, ...]] = tuple(VQA_RULES)
    loss_reduction: ClassVar[Literal["sequence", "token"]] = "sequence"
    generation: ClassVar[GenerationDefaults] = GenerationDefaults(num_beams=3, max_new_tokens=16)
    default_inference: ClassVar[Literal["generate", "rank"]] = "generate"

    def prompt(self, row: Row) -> str:
        """The cleaned question in the template."""
        return fill(self.prompt_template, "question", clean_question(row["question"], self.max_question_words))

    def shares(self, row: Row) -> list[tuple[str, float]]:
        """Each distinct answer with the share of annotators who gave it; those that show nothing are no target."""
        answers = _answers(row)
        return [(answer, count / len(answers)) for answer, count in Counter(answers).items()]

    def candidates(self, rows: Iterable[Row]) -> list[str]:
        """Every distinct answer, most frequent first; of spellings that differ by case, the most frequent one."""
        counts = Counter(answer for row in iterate_texts(rows) for answer in _answers(row))
        totals: Counter[str] = Counter()
        spelling: dict[str, str] = {}
        for answer in sorted(counts, key=lambda answer: (-counts[answer], answer.swapcase())):
            totals[answer.casefold()] += counts[answer]
            spelling.setdefault(answer.casefold(), answer)
        return [spelling[key] for key in sorted(totals, key=lambda key: (-totals[key], key))]

    def score(self, predictions: Sequence[Prediction], rows: Iterable[Row]) -> Scores:
        """VQA accuracy by one rule, overall and per type of question and answer.

        Of the rows that say whether they can be answered at all (``answerable``), also average precision and F1 of
        the class "unanswerable", as far as the answers imply it; nothing if none of them is unanswerable.
        """
        listed = list(iterate_texts(rows))
        found = first_by_id(predictions)
        answers = {row["id"]: row["answers"] for row in listed}
        scores = score_vqa({key: said.text for key, said in found.items()}, answers, rule=self.rule)
        metrics = {"accuracy": scores.accuracy}
        for column in ("answer_type", "question_type"):
            groups = {row["id"]: row[column] for row in listed if row.get(column)}
            means = group_means(scores.per_question, groups)
            metrics |= {f"accuracy[{column}={name}]": value for name, value in means.items()}
        answerable = {row["id"]: row["answerable"] for row in listed if row.get("answerable") is not None}
        if not all(answerable.values()):
            implied = {key: answerable_score(found[key].text, found[key].scores) for key in answerable}
            unanswerable = score_answerability(implied, answerable)
            metrics |= {"unanswerable_ap": unanswerable.average_precision, "unanswerable_f1": unanswerable.f1}
        return Scores(metrics, scores.rule, scores.per_question)


def _answers(row: Row) -> list[str]:
    return [text for answer in row["answers"] if is_visible(text := strip_answer(answer))]
