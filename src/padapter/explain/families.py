"""How the text of a model family reads its picture: one line per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from padapter.errors import UserError

Inputs = Mapping[str, Any]
Places = NDArray[np.int64]


def _tiles(pixels: Any, inputs: Inputs, config: Any) -> Any:
    """Pixels (..., 3, h, w) of one sample as (T, 3, h, w)."""
    return pixels.reshape(-1, *pixels.shape[-3:])


def _rows_first(rows: int, columns: int, config: Any) -> Places:
    return np.arange(rows * columns)


def _unpacked(pixels: Any, inputs: Inputs, config: Any) -> Any:
    """Qwen2-VL's flat patches (N, 3 * frames * patch * patch), square by square, as (1, 3, h, w)."""
    vision = config.vision_config
    _, rows, columns = (int(number) for number in inputs["image_grid_thw"][0])
    patch = int(vision.patch_size)
    flat = pixels.reshape(rows * columns, 3, -1, patch, patch)[:, :, 0]  # a still picture is the same in every frame
    grid = np.empty((rows * columns, 3, patch, patch), dtype=flat.dtype)
    grid[_squares_first(rows, columns, config)] = flat
    joined = grid.reshape(rows, columns, 3, patch, patch).transpose(2, 0, 3, 1, 4)
    return joined.reshape(1, 3, rows * patch, columns * patch)


def _squares_first(rows: int, columns: int, config: Any) -> Places:
    """Places of patches that come in squares of merge x merge, each square row by row."""
    side = int(config.vision_config.spatial_merge_size)
    numbers = np.arange(rows * columns).reshape(rows // side, side, columns // side, side)
    places: Places = numbers.transpose(0, 2, 1, 3).reshape(-1)
    return places


@dataclass(frozen=True)
class Family:
    """How a family's text reads its picture.

    Attributes:
        reads: "cross": by cross-attention; "inside": tokens of the picture stand in the text, each a square of patches;
            "queries": tokens of a Q-Former, which reads the picture by cross-attention, stand in the text.
        tiles: from what the processor makes of pictures, the inputs and the model's config to pixels (T, 3, h, w).
        places: from rows, columns and the config to the place, counted row by row, of each patch in the order of the
            image encoder's tokens, behind its class token if it has one.
    """

    reads: Literal["cross", "inside", "queries"]
    tiles: Callable[[Any, Inputs, Any], Any] = _tiles
    places: Callable[[int, int, Any], Places] = _rows_first


#: By ``config.model_type``.
FAMILIES: dict[str, Family] = {
    "blip": Family("cross"),
    "llava": Family("inside"),
    "paligemma": Family("inside"),
    "idefics3": Family("inside"),
    "smolvlm": Family("inside"),
    "qwen2_vl": Family("inside", _unpacked, _squares_first),
    "blip-2": Family("queries"),
}


def family_of(config: Any) -> Family:
    """The line of a model's family.

    Raises:
        UserError: if there is none.
    """
    from padapter.backbones.encoder_decoder import is_encoder_decoder

    kind = str(getattr(config, "model_type", ""))
    if is_encoder_decoder(config):
        raise UserError(
            f"`padapter explain` cannot follow encoder-decoders, such as this model of type {kind!r}: what a word of "
            "the answer rests on passes through a text of another length. In Python, "
            "padapter.architectures.record_attention reaches their attention."
        )
    if kind not in FAMILIES:
        raise UserError(
            f"`padapter explain` cannot follow how models of type {kind!r} read pictures; it knows "
            f"{', '.join(FAMILIES)}. In Python, padapter.architectures.record_attention reaches their attention."
        )
    return FAMILIES[kind]
