"""Visual question answering: a question and one or more annotators' answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from padapter.data.schema import Field
from padapter.metrics.vqa import score_vqa, strip_answer
from padapter.tasks.base import GenerationDefaults, Prediction, Row, Scores, Task, by_id, fill, iterate_texts
from padapter.tasks.text import clean_question


@dataclass(frozen=True)
class VqaTask(Task):
    """Answer a question about an image.

    Attributes:
        prompt_template: The prompt; ``{question}`` is the cleaned question.
        max_question_words: Longer questions are cut.
    """

    prompt_template: str = "{question}"
    max_question_words: int = 20

    name: ClassVar[str] = "vqa"
    summary: ClassVar[str] = "answer a question about an image"
    fields: ClassVar[tuple[Field, ...]] = (
        Field("question", "text"),
        Field("answers", "texts", alias="answer", words=False, keep_empty=True),
        Field("question_type", "text", required=False),
        Field("answer_type", "text", required=False),
    )
    primary_metric: ClassVar[str] = "accuracy"
    loss_reduction: ClassVar[Literal["sequence", "token"]] = "sequence"
    generation: ClassVar[GenerationDefaults] = GenerationDefaults(num_beams=3, max_new_tokens=16)
    default_inference: ClassVar[Literal["generate", "rank"]] = "generate"

    def prompt(self, row: Row) -> str:
        """The cleaned question in the template."""
        return fill(self.prompt_template, "question", clean_question(row["question"], self.max_question_words))

    def targets(self, row: Row) -> list[tuple[str, float]]:
        """Each distinct answer with the share of annotators who gave it; empty answers are no target."""
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
        """VQA accuracy by the rule that fits the number of answers, overall and per type of question and answer."""
        listed = list(iterate_texts(rows))
        texts = by_id(predictions)
        answers = {row["id"]: row["answers"] for row in listed}
        scores = score_vqa(texts, answers)
        metrics = {"accuracy": scores.accuracy}
        for column in ("answer_type", "question_type"):
            groups = {row["id"]: row[column] for row in listed if row.get(column)}
            if groups:
                grouped = score_vqa(texts, answers, rule=scores.rule, groups=groups).groups
                metrics |= {f"accuracy[{column}={name}]": value for name, value in grouped.items()}
        return Scores(metrics, scores.rule, scores.per_question)


def _answers(row: Row) -> list[str]:
    return [text for answer in row["answers"] if (text := strip_answer(answer))]
