"""Mixed batches: each row of a batch through its own adapter.

Names are given per sample. Inside ``generate`` a sample becomes several rows, one per beam (or per returned sequence),
next to each other. What rows the image encoder sees depends on the model: one per sample, one per image or tile, or the
patches of all images in one packed sequence. They always stand in the order of the samples, so it is enough to know how
many belong to each: the same number, or in proportion to the image tokens of the samples. Any other number is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from padapter.architectures import UNIONS
from padapter.errors import UserError

BASE = "__base__"


@dataclass(frozen=True)
class Group:
    """The rows of a batch that one adapter serves; ``rows`` None means all of them."""

    name: str
    rows: tuple[int, ...] | None

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """The rows of the group, (rows, ...)."""
        if self.rows is None:
            return states
        return states[torch.tensor(self.rows, device=states.device)]

    def add(self, states: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Add delta (rows, ...) to the rows of the group."""
        if self.rows is None:
            return states + delta
        return states.index_add(0, torch.tensor(self.rows, device=states.device), delta)

    def put(self, states: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Put new (rows, ...) in place of the rows of the group."""
        if self.rows is None:
            return new
        return states.index_copy(0, torch.tensor(self.rows, device=states.device), new.to(states.dtype))


@dataclass(frozen=True)
class Batch:
    """One adapter name per sample, and what is known about the rows a sample becomes.

    Attributes:
        samples: the names.
        repeats: rows of text that ``generate`` makes of a sample.
        image_tokens: how many image tokens the text of each sample has, or other numbers that its rows in the image
            encoder are in proportion to; None where a model has no such tokens, empty where nothing can be told.
        images: images (or tiles) per sample where every sample has the same number, padded or not; 0 if unknown.
    """

    samples: tuple[str, ...]
    repeats: int = 1
    image_tokens: tuple[int, ...] | None = None
    images: int = 0

    @property
    def names(self) -> list[str]:
        """The adapters that occur, without the base model."""
        return [name for name in dict.fromkeys(self.samples) if name != BASE]

    def groups(self, rows: int, part: str = "decoder", flat: bool = False) -> list[Group]:
        """Which adapter serves which of ``rows`` rows of a layer in this part of the model.

        Args:
            rows: size of the first dimension.
            part: the part of the model.
            flat: whether batch and sequence are one dimension.

        Raises:
            UserError: if it cannot be told which rows belong to which sample.
        """
        if part not in UNIONS["language"]:
            shares = self._image_rows(rows)
        elif flat and rows % len(self.samples) == 0:  # every sample has as many positions
            shares = [rows // len(self.samples)] * len(self.samples)
        else:
            shares = self._text_rows(rows)
        per_row = [name for name, share in zip(self.samples, shares, strict=True) for _ in range(share)]
        found = [Group(name, tuple(i for i, row in enumerate(per_row) if row == name)) for name in self.names]
        return [group for group in found if group.rows]

    def _text_rows(self, rows: int) -> list[int]:
        samples = len(self.samples)
        if rows not in (samples, samples * self.repeats):
            expected = f"{samples}" if self.repeats == 1 else f"{samples} (or {samples * self.repeats} with beams)"
            raise UserError(
                f"`adapter_names` has {samples} names, so {expected} rows were expected, but a layer got a batch of "
                f"{rows} rows. Give one name per sample."
            )
        return [rows // samples] * samples

    def _image_rows(self, rows: int) -> list[int]:
        samples = len(self.samples)
        same = rows % samples == 0 and (
            self.image_tokens is None
            or len(set(self.image_tokens)) == 1
            or (self.images and rows % (samples * self.images) == 0)
        )
        if same:
            return [rows // samples] * samples
        tokens = self.image_tokens or ()
        total = sum(tokens)
        if total == 0 or any(rows * count % total for count in tokens):
            raise UserError(
                f"`adapter_names` has {samples} names, but the image encoder got {rows} rows, and it cannot be told "
                f"which belong to which sample (image tokens per sample: {list(tokens) or 'unknown'}). Give every "
                "sample the same number of images of the same size, or run the samples one by one."
            )
        return [rows * count // total for count in tokens]


@contextmanager
def mixed_batch(
    model: nn.Module,
    adapter_names: Sequence[str],
    *,
    num_beams: int = 1,
    inputs: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Within this context, row i of a batch goes through the adapter ``adapter_names[i]``.

    ``PeftModel``'s ``forward`` and ``generate`` open it for ``adapter_names=[...]``; open it yourself to call a part
    of the model directly, for example ``text_decoder.generate``.

    Args:
        model: the adapted model.
        adapter_names: one name per sample; ``"__base__"`` is the base model.
        num_beams: rows that ``generate`` makes of one sample: beams or returned sequences, whichever is more.
        inputs: the arguments of the call; needed where samples have different numbers of images.

    Raises:
        UserError: if a name is unknown, the model is in training mode, or an adapter has ``modules_to_save``.
    """
    from padapter.tuners.base_layer import modules_of

    layers = list(modules_of(model))
    if isinstance(adapter_names, str) or not adapter_names:
        raise UserError(f"`adapter_names` must be a list with one name per sample, got {adapter_names!r}.")
    known = {name for layer in layers for name in layer.settings}
    unknown = sorted(set(adapter_names) - known - {BASE})
    if unknown:
        raise UserError(
            f"`adapter_names` names unknown adapters: {', '.join(unknown)}. Known: {', '.join(sorted(known))}, {BASE}."
        )
    if any(layer.training for layer in layers):
        raise UserError("`adapter_names` works only at inference; call model.eval() first.")
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules()):
        raise UserError("`adapter_names` cannot be used with adapters that have `modules_to_save`.")
    batch = Batch(tuple(adapter_names), num_beams, *_images(model, len(adapter_names), inputs or {}))
    before = [layer.batch for layer in layers]
    for layer in layers:
        layer.batch = batch
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.batch = value


def _images(model: nn.Module, samples: int, inputs: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, int]:
    """Image tokens of each sample, and images per sample if they come padded to the same number."""
    pixels, ids = inputs.get("pixel_values"), inputs.get("input_ids")
    images = 0
    if isinstance(pixels, torch.Tensor) and pixels.dim() > 4 and len(pixels) == samples:
        images = math.prod(pixels.shape[1:-3])
    config = getattr(model, "config", None)
    token = next(
        (getattr(config, name) for name in ("image_token_id", "image_token_index") if hasattr(config, name)), None
    )
    sizes = inputs.get("image_sizes")
    if sizes is not None and len({tuple(size) for size in torch.as_tensor(sizes).tolist()}) > 1:
        # The number of tokens depends on the shape of an image then, not on the number of its tiles.
        counts = inputs.get("batch_num_images")
        one_each = len(sizes) == samples and (counts is None or all(int(count) == 1 for count in counts))
        return _tiles(config, sizes) if one_each else (), images
    if token is None or not isinstance(ids, torch.Tensor):
        return None, images
    return tuple((ids == token).sum(dim=1).tolist()), images


def _tiles(config: Any, sizes: torch.Tensor | Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Tiles of each sample's one image (LLaVA-NeXT, LLaVA-OneVision), the whole image counted; empty if not known."""
    from transformers.image_processing_utils import select_best_resolution

    grids = getattr(config, "image_grid_pinpoints", None)
    if grids is None:
        return ()
    tile: int = config.vision_config.image_size
    best = (select_best_resolution(tuple(size), grids) for size in torch.as_tensor(sizes).tolist())
    return tuple(1 + math.ceil(height / tile) * math.ceil(width / tile) for height, width in best)


_ONE_PER_SAMPLE = ("input_ids", "inputs_embeds", "attention_mask", "decoder_input_ids", "pixel_values")


def check_one_name_per_sample(adapter_names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Compare the number of names with the number of samples.

    Args:
        adapter_names: one name per sample.
        args: positional arguments of the model.
        kwargs: its keyword arguments; the first tensor that has one row per sample counts. (Pictures may not have.)

    Raises:
        UserError: if they differ.
    """
    given = [*args, *(kwargs.get(name) for name in _ONE_PER_SAMPLE), *kwargs.values()]
    tensor = next((value for value in given if isinstance(value, torch.Tensor) and value.dim() > 0), None)
    if tensor is not None and len(tensor) != len(adapter_names):
        raise UserError(
            f"`adapter_names` has {len(adapter_names)} names, but the batch has {len(tensor)} samples. Give one name "
            "per sample."
        )


def rows_per_sample(model: nn.Module, arguments: dict[str, Any]) -> int:
    """Rows that ``generate`` makes of a sample, from its arguments or else from the model's generation configs."""
    configs = [getattr(module, "generation_config", None) for module in model.modules()]
    given = arguments.get("generation_config")
    sources = [given] if given is not None else [config for config in configs if config is not None]

    def largest(option: str) -> int:
        if arguments.get(option) is not None:
            return int(arguments[option])
        return max((int(getattr(source, option, None) or 1) for source in sources), default=1)

    return max(largest("num_beams"), largest("num_return_sequences"))
