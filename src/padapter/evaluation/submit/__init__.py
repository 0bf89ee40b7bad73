"""Files that evaluation servers accept: one file per format, one line each in the registry."""

from __future__ import annotations

from padapter.evaluation.submit.base import Answer, Format
from padapter.evaluation.submit.coco import COCO
from padapter.evaluation.submit.textcaps import TEXTCAPS
from padapter.evaluation.submit.vizwiz_answerability import VIZWIZ_ANSWERABILITY
from padapter.evaluation.submit.vizwiz_caption import VIZWIZ_CAPTION
from padapter.evaluation.submit.vizwiz_vqa import VIZWIZ_VQA
from padapter.evaluation.submit.vqav2 import VQAV2

#: Formats by name.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        VQAV2,
        VIZWIZ_VQA,
        VIZWIZ_ANSWERABILITY,
        TEXTCAPS,
        COCO,
        VIZWIZ_CAPTION,
    )
}

__all__ = ["FORMATS", "Answer", "Format"]
