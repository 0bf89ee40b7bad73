"""TextCaps: ``[{"image_id": hexadecimal, "caption": str}]``, one per image and not per reference."""

from __future__ import annotations

from padapter.evaluation.submit.base import Format, caption, hexadecimal

TEXTCAPS = Format(
    name="textcaps",
    summary="TextCaps on EvalAI",
    task="caption",
    key_field="image_id",
    key=hexadecimal,
    value_field="caption",
    value=caption,
)
