"""Mixed batches: each row of a batch through its own adapter.

Names are given per sample. Inside ``generate`` a sample becomes several rows, one per beam (or per returned sequence),
next to each other; the vision tower still sees one row per sample. Any other number of rows is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

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
    """One adapter name per sample, and how many rows a sample may become."""

    samples: tuple[str, ...]
    repeats: int = 1

    @property
    def names(self) -> list[str]:
        """The adapters that occur, without the base model."""
        return [name for name in dict.fromkeys(self.samples) if name != BASE]

    def groups(self, rows: int) -> list[Group]:
        """Which adapter serves which of ``rows`` rows.

        Raises:
            UserError: if ``rows`` is neither the number of samples nor that times the number of beams.
        """
        samples = len(self.samples)
        if rows not in (samples, samples * self.repeats):
            expected = f"{samples}" if self.repeats == 1 else f"{samples} (or {samples * self.repeats} with beams)"
            raise UserError(
                f"`adapter_names` has {samples} names, so {expected} rows were expected, but a layer got a batch of "
                f"{rows} rows. Give one name per sample."
            )
        repeat = rows // samples
        per_row = [name for name in self.samples for _ in range(repeat)]
        return [Group(name, tuple(i for i, row in enumerate(per_row) if row == name)) for name in self.names]


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str], *, num_beams: int = 1) -> Iterator[None]:
    """Within this context, row i of a batch goes through the adapter ``adapter_names[i]``.

    ``PeftModel``'s ``forward`` and ``generate`` open it for ``adapter_names=[...]``; open it yourself to call a part
    of the model directly, for example ``text_decoder.generate``.

    Args:
        model: the adapted model.
        adapter_names: one name per sample; ``"__base__"`` is the base model.
        num_beams: rows that ``generate`` makes of one sample: beams or returned sequences, whichever is more.

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
    batch = Batch(tuple(adapter_names), num_beams)
    before = [layer.batch for layer in layers]
    for layer in layers:
        layer.batch = batch
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.batch = value


def check_one_name_per_sample(adapter_names: Sequence[str], inputs: Iterable[Any]) -> None:
    """Compare the number of names with the number of samples.

    Args:
        adapter_names: one name per sample.
        inputs: arguments of the model; the first tensor with a batch dimension counts.

    Raises:
        UserError: if they differ.
    """
    tensor = next((given for given in inputs if isinstance(given, torch.Tensor) and given.dim() > 0), None)
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
