"""Checkpoints of the official mPLUG code (github.com/X-PLUG/mPLUG) and of ModelScope's port.

Files from pre-training, from fine-tuning (plain or DeepSpeed) and ModelScope's, which hold the same parts: image
encoder, text encoder, fusion network, decoder. Sizes are read from the shapes. What shapes cannot say (64 channels per
head, how many layers of the fusion network run and which of them are connected, epsilons, dropout) is that of the
published models; the layers may be given.
"""

from __future__ import annotations

from dataclasses import dataclass

from padapter.checkpoints.base import Conversion, ConvertOptions
from padapter.options.fields import check_at_least, option, refuse

CAPTION, VQA = "caption", "vqa"


@dataclass(kw_only=True)
class MPlugOptions(ConvertOptions):
    """Options of ``padapter convert mplug``."""

    arrangement: str = option(
        VQA,
        choices=(VQA, CAPTION),
        metavar="vqa|caption",
        help="The whole model, from which captioning can be loaded too, or only image encoder and decoder.",
    )
    fusion_layers: int = option(
        6, help="How many layers of the fusion network run: the last ones of those in the file."
    )
    stride_layer: int | None = option(
        None, help="Every how many layers the fusion network is connected. (default: 3, and 6 for ViT-L)"
    )
    trailing_sep: bool | None = option(
        None, help="Let questions end with [SEP]. (default: as they were trained: no, and yes for files of ModelScope)"
    )

    image_dropout: float | None = option(
        None,
        help="Share of attention weights that the image encoder drops in training; 0 lets `train --cache-features` "
        "keep its output. (default: as they were trained: 0.1, and 0 for files of ModelScope)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "fusion_layers", "stride_layer")
        check_at_least(self, 0, "image_dropout")
        if self.image_dropout is not None and self.image_dropout >= 1:
            raise refuse("--image-dropout", f"must be below 1, got {self.image_dropout}")


def convert(options: MPlugOptions) -> Conversion:
    """See :func:`padapter.checkpoints.mplug.model.convert_mplug`; torch is imported only when it is called."""
    from padapter.checkpoints.mplug.model import convert_mplug

    return convert_mplug(options)
