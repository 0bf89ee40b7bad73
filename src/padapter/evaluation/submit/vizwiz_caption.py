"""VizWiz-Captions: COCO's form, with the global number of the image (not the one in its file name)."""

from __future__ import annotations

from padapter.evaluation.submit.base import Format, caption, whole_number

VIZWIZ_CAPTION = Format(
    name="vizwiz-caption",
    summary="VizWiz-Captions on EvalAI",
    task="caption",
    key_field="image_id",
    key=whole_number,
    value_field="caption",
    value=caption,
)
