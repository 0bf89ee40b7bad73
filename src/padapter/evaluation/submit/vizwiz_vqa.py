"""VizWiz-VQA, first task: ``[{"image": name, "answer": str}]``."""

from __future__ import annotations

from padapter.evaluation.submit.base import Format, image_name, short_answer

VIZWIZ_VQA = Format(
    name="vizwiz-vqa",
    summary="VizWiz-VQA on EvalAI, answers",
    task="vqa",
    key_field="image",
    key=image_name,
    value_field="answer",
    value=short_answer,
)
