"""VQA v2.0: ``[{"question_id": int, "answer": str}]``, all questions of the split and no other."""

from __future__ import annotations

from padapter.evaluation.submit.base import Format, short_answer, whole_number

VQAV2 = Format(
    name="vqav2",
    summary="VQA v2.0 on EvalAI: test-dev, test-standard",
    task="vqa",
    key_field="question_id",
    key=whole_number,
    value_field="answer",
    value=short_answer,
)
