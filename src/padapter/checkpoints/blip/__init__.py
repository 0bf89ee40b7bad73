"""Official BLIP checkpoints (``.pth`` of github.com/salesforce/BLIP) to transformers.

Three kinds of file: pre-training (image tower, text encoder, decoder, momentum copies, queues), captioning (image tower
and decoder) and question answering (image tower, text encoder, decoder). Sizes are read from the shapes; what shapes
cannot say (64 channels per head, epsilons, dropout, label smoothing) is that of all published BLIP models.
"""

from __future__ import annotations

from dataclasses import dataclass

from padapter.checkpoints.base import Conversion, ConvertOptions
from padapter.options.fields import option

CAPTION, VQA = "caption", "vqa"


@dataclass(kw_only=True)
class BlipOptions(ConvertOptions):
    """Options of ``padapter convert blip``."""

    arrangement: str | None = option(
        None,
        choices=(CAPTION, VQA),
        metavar="caption|vqa",
        help="Image tower and decoder, which `padapter train` reads for every task, or these and the text encoder, for "
        "transformers alone. (default: vqa for files fine-tuned on questions, caption for others)",
    )


def convert(options: BlipOptions) -> Conversion:
    """See :func:`padapter.checkpoints.blip.model.convert_blip`; torch is imported only when it is called."""
    from padapter.checkpoints.blip.model import convert_blip

    return convert_blip(options)
