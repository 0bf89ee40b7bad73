"""COCO Captions: ``[{"image_id": int, "caption": str}]``, exactly one per image."""

from __future__ import annotations

from padapter.evaluation.submit.base import Format, caption, whole_number

COCO = Format(
    name="coco",
    summary="COCO Captions: val2014 and test2014",
    task="caption",
    key_field="image_id",
    key=whole_number,
    value_field="caption",
    value=caption,
    file_name=r"captions_[A-Za-z0-9-]+_[^_]+_results\.json",
    file_name_form="captions_SPLIT_NAME_results.json, for example captions_test2014_padapter_results.json",
)
