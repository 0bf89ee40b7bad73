"""VizWiz-VQA, second task: ``[{"image": name, "answerable": float}]``, 1 for a question that can be answered."""

from __future__ import annotations

from padapter.evaluation.submit.base import Answer, Format, image_name
from padapter.metrics import answerable_score


def answerable(answer: Answer) -> float:
    """How likely it is that the question can be answered, in [0, 1], as ``padapter eval`` scores it too."""
    return answerable_score(answer.text, answer.candidates)


def _note(answers: list[Answer]) -> str | None:
    if all(answer.candidates for answer in answers):
        return None
    return (
        "the predictions rank no candidates, so every value is 0 or 1 and average precision says little; rank with "
        "--inference rank and candidates that have 'unanswerable' among them"
    )


VIZWIZ_ANSWERABILITY = Format(
    name="vizwiz-answerability",
    summary="VizWiz-VQA on EvalAI, whether a question can be answered",
    task="vqa",
    key_field="image",
    key=image_name,
    value_field="answerable",
    value=answerable,
    note=_note,
)
