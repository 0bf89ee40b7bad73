"""From pictures to the pixels of models that see squares: size, resizing and normalisation, and another size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from padapter.backbones.base import Backbone
from padapter.data import Picture, opened
from padapter.data.fit import RESIZES, fit
from padapter.errors import UserError


class SquarePictures(Backbone):
    """The part of a backbone that looks, for models that see squares of one size in patches.

    Attributes:
        resize: A key of :data:`padapter.data.fit.RESIZES`, with bicubic interpolation; ``None``: squashed to a
            square with the filter of the model's own image processor, which for published BLIP and mPLUG is the same.
    """

    resize: str | None = None

    @abstractmethod
    def set_image_size(self, side: int) -> None:
        """Make the model see pictures of ``side`` x ``side`` pixels from now on; its image processor is not changed.

        Raises:
            UserError: if the side is no multiple of a patch.
        """

    def fit(self, image: Image.Image) -> Image.Image:
        """See :meth:`Backbone.fit`."""
        own = self.processor.image_processor
        size = own.size["width"], own.size["height"]
        if self.resize is None:
            return fit(image, size, resample=int(own.resample))
        red, green, blue = (round(255 * value) for value in own.image_mean)
        return fit(image, size, self.resize, fill=(red, green, blue))

    def preprocess(self, *, image_size: int | None = None, resize: str | None = None) -> None:
        """See :meth:`Backbone.preprocess`."""
        if resize is not None:
            if resize not in RESIZES:
                raise UserError(f"--resize: {resize!r} is not one of {', '.join(RESIZES)}")
            self.resize = resize
        if image_size is not None:
            self.set_image_size(image_size)
            self.processor.image_processor.size = {"height": image_size, "width": image_size}

    def preprocessing(self) -> dict[str, Any]:
        """See :meth:`Backbone.preprocessing`."""
        return {**super().preprocessing(), "resize": self.resize}

    def preprocess_as(self, record: Mapping[str, Any]) -> None:
        """See :meth:`Backbone.preprocess_as`."""
        try:
            side, resize = int(record["processor"]["size"]["height"]), record["resize"]
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"what the run says of its pictures is damaged ({what})") from error
        if resize not in (None, *RESIZES):
            raise UserError(f"the run prepares pictures by {resize!r}, which is not one of {', '.join(RESIZES)}")
        if side != self.base_model.config.vision_config.image_size:
            self.set_image_size(side)
        self.resize = resize
        super().preprocess_as(record)

    def _pixels(self, images: Sequence[Image.Image | Picture]) -> torch.Tensor:
        """Pixels (I, 3, h, w)."""
        fitting = [self.fit(opened(image)) for image in images]
        return self.processor.image_processor(fitting, return_tensors="pt")["pixel_values"]


def check_side(side: int, patch: int) -> None:
    """Refuse pictures that are not made of whole patches.

    Raises:
        UserError: naming ``--image-size`` and the nearest size that is.
    """
    if side < patch or side % patch:
        near = max(1, round(side / patch)) * patch
        raise UserError(
            f"--image-size: the model sees patches of {patch} px; give a multiple, such as {near}, not {side}"
        )


def check_processor(config: Any, processor: Any, name: str, roles: Sequence[tuple[str, int, int]]) -> None:
    """Refuse a tokenizer or image processor that belongs to another model: the result would be noise, not an error.

    Args:
        config: of the model.
        processor: image processor and tokenizer.
        name: what the user calls the model.
        roles: special tokens with the id that the model has for each, and the tokenizer's.

    Raises:
        UserError: saying in what they disagree.
    """
    tokenizer, text = processor.tokenizer, config.text_config
    for role, ours, theirs in roles:
        if ours != theirs:
            raise UserError(
                f"model '{name}' and its tokenizer disagree: {role} token {ours} in the model's text_config, {theirs} "
                "in the tokenizer. Save the tokenizer the model was trained with beside it."
            )
    if len(tokenizer) > text.vocab_size or text.bos_token_id >= text.vocab_size:
        raise UserError(
            f"model '{name}' embeds {text.vocab_size} tokens, but its tokenizer has {len(tokenizer)} and its start "
            f"token is {text.bos_token_id}."
        )
    size, side = processor.image_processor.size, config.vision_config.image_size
    if (size["height"], size["width"]) != (side, side):
        raise UserError(
            f"model '{name}' sees images of {side} x {side}, but its image processor makes {size['height']} x "
            f"{size['width']}. Set size in its processor_config.json to the model's image_size."
        )
