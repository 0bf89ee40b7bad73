"""Which token becomes which: a model run without attention, and the way of every token through it.

With all contexts of attention zero, nothing is exchanged between tokens but by construction: patches are embedded,
tokens cut into windows, merged, cropped, joined and put into a text. What depends on what is then read off gradients.
The zeros that the first attention module of a part hands on are *tags*, one per token, class tokens included: a tag
reaches whatever its token becomes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.tuners_utils import BaseTunerLayer

from padapter.architectures import AttentionSite, attention_sites
from padapter.architectures.interface import AttentionAdapter, AttentionCall
from padapter.architectures.recording import redirected
from padapter.backbones import Backbone

Numbers = NDArray[np.int64]

#: In place of a number: what goes nowhere, and what goes to several places.
NOWHERE, SEVERAL = -1, -2
_BASE = 8
#: How far from a whole number a factor may be, and how far from a multiple a gradient, in bfloat16 too.
_WHOLE, _MULTIPLE = 0.25, 0.1


@dataclass(frozen=True)
class Pass:
    """One call of an attention module in a run without attention.

    Attributes:
        site: the module.
        query: (B, H, N1, dk).
        key: (B, Hkv, N2, dk).
        tags: (B, N1, H, dh), the context; a leaf in calls of the first module of an image encoder or a connector.
        query_moves: (B, N1), whether tags of the image encoder reach a query at all.
        key_moves: (B, N2), the same of keys.
    """

    site: AttentionSite
    query: torch.Tensor
    key: torch.Tensor
    tags: torch.Tensor | None
    query_moves: NDArray[np.bool_]
    key_moves: NDArray[np.bool_]


@dataclass(frozen=True)
class _Call:
    site: AttentionSite
    query: torch.Tensor
    key: torch.Tensor
    tags: torch.Tensor | None


@dataclass(frozen=True)
class _WithoutAttention:
    """The adapter layer of a module that hands on zeros; with noise, from the image encoder's first module, noise."""

    site: AttentionSite
    calls: list[_Call]
    first: dict[str, str]
    noise: torch.Generator | None

    def changes_attention(self) -> bool:
        """Always: the module must ask."""
        return True

    def attend(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The context, and zeros for weights."""
        rows, heads, queries, _ = call.query.shape
        part, shape = self.site.part, (rows, queries, heads, call.value.shape[-1])
        tagged = part in ("vision", "connector") and self.first.setdefault(part, self.site.name) == self.site.name
        context = call.value.new_zeros(shape).requires_grad_(tagged and self.noise is None)
        if tagged and part == "vision" and self.noise is not None:
            context += torch.randn(shape, generator=self.noise).to(context)
        self.calls.append(_Call(self.site, call.query, call.key, context if tagged else None))
        return context, call.query.new_zeros(rows, heads, queries, call.key.shape[2]) if call.need_weights else None


def run_without_attention(backbone: Backbone, batch: Mapping[str, torch.Tensor]) -> list[Pass]:
    """All calls of attention modules while a model reads a batch with every context zero, in their order.

    Call it in evaluation mode with gradients enabled. Reaches what `record_attention` reaches.

    Args:
        backbone: the model; as it was at the end.
        batch: of :meth:`Backbone.collate`, on the model's device.
    """
    still = _calls(backbone, batch, None)
    with torch.no_grad():
        moved = _calls(backbone, batch, torch.Generator().manual_seed(0))
    return [
        Pass(one.site, one.query, one.key, one.tags, _moves(one.query, other.query), _moves(one.key, other.key))
        for one, other in zip(still, moved, strict=True)
    ]


def _calls(backbone: Backbone, batch: Mapping[str, torch.Tensor], noise: torch.Generator | None) -> list[_Call]:
    calls: list[_Call] = []
    first: dict[str, str] = {}

    with ExitStack() as undo:

        def without(site: AttentionSite, inner: AttentionAdapter | None) -> AttentionAdapter:
            # An adapter that is not asked for a context must not look for one behind the output projection.
            if isinstance(inner, BaseTunerLayer) and not inner.disable_adapters:
                inner._disable_adapters = True
                undo.callback(setattr, inner, "_disable_adapters", False)
            return _WithoutAttention(site, calls, first, noise)

        undo.enter_context(redirected(attention_sites(backbone.model), without))
        backbone.training_module("token")(**batch)
    return calls


def _moves(one: torch.Tensor, other: torch.Tensor) -> NDArray[np.bool_]:
    """(B, N), which tokens of two tensors (B, H, N, d) are different."""
    change = (one - other).detach().abs().amax(dim=(1, 3))
    found: NDArray[np.bool_] = (change > 1e-6 * one.detach().abs().amax()).cpu().numpy()
    return found


def destinations(outputs: Sequence[tuple[torch.Tensor, Numbers]], leaves: Sequence[torch.Tensor]) -> list[Numbers]:
    """What becomes of tokens: the number of the one output that each token of some leaves has a part in.

    A backward pass adds up what a token gives to every output, each in a direction of its own at random. Passes in
    which outputs count 1, 2, ... `_BASE` times, by the digits of their numbers, multiply a token's gradient by the
    digit of its destination; what has several is no multiple.

    Args:
        outputs: tensors (B, H, N, d), and (B, N) numbers, from 0; several may have the same number. `NOWHERE` for
            those that do not matter.
        leaves: tensors (B, N, ...), whose graph the outputs have.

    Returns:
        Per leaf, (B, N): numbers, `NOWHERE` or `SEVERAL`.
    """
    outputs = [(tensor, numbers) for tensor, numbers in outputs if tensor.requires_grad]
    shapes = [tuple(leaf.shape[:2]) for leaf in leaves]
    if not outputs:
        return [np.full(shape, NOWHERE) for shape in shapes]
    most = max(int(numbers.max(initial=0)) for _, numbers in outputs)
    digits = next(digits for digits in itertools.count(1) if _BASE**digits > most)
    counted = [np.where(numbers < 0, 0, 1) for _, numbers in outputs]
    passes = [_gradients(outputs, counted, leaves)]
    for place in (_BASE**digit for digit in range(digits)):
        times = [one * (1 + numbers // place % _BASE) for one, (_, numbers) in zip(counted, outputs, strict=True)]
        passes.append(_gradients(outputs, times, leaves))
    stacked = [
        np.stack([one[i].float().cpu().numpy().reshape(*shape, -1) for one in passes]) for i, shape in enumerate(shapes)
    ]
    return [_read(gradients, most) for gradients in stacked]


def owners(outputs: Sequence[tuple[torch.Tensor, Numbers]], leaf: torch.Tensor) -> Numbers:
    """What becomes of every single entry of a leaf: the number of the one output that it has a part in.

    A gradient of one entry may be small, and rounded away to some multiple; here it only counts whether there is one,
    when outputs with a one, or with a zero, at some place of their numbers in binary are looked at.

    Args:
        outputs: tensors (B, H, N, d), and (B, N) numbers, from 0, all of which have the leaf in their graph.
        leaf: of any shape.

    Returns:
        Of its shape: numbers, `NOWHERE` or `SEVERAL`.
    """
    most = max(int(numbers.max(initial=0)) for _, numbers in outputs)
    nothing = np.zeros(tuple(leaf.shape), dtype=bool)
    found, several, reached = nothing.astype(np.int64), nothing, nothing
    for bit in range(max(1, most.bit_length())):
        touched = []
        for digit in (0, 1):
            times = [np.where(numbers >> bit & 1 == digit, 1, 0) for _, numbers in outputs]
            # Twice: what adds up to nothing by chance does not do so in two directions.
            drawn = (_gradients(outputs, times, [leaf], seed)[0] for seed in (0, 1))
            touched.append(np.any([(one != 0).cpu().numpy() for one in drawn], axis=0))
        several = several | touched[0] & touched[1]
        reached = reached | touched[0] | touched[1]
        found |= touched[1].astype(np.int64) << bit
    owned: Numbers = np.where(several, SEVERAL, np.where(reached, found, NOWHERE))
    return owned


def _gradients(
    outputs: Sequence[tuple[torch.Tensor, Numbers]],
    times: Sequence[NDArray[np.int64]],
    leaves: Sequence[torch.Tensor],
    seed: int = 0,
) -> Sequence[torch.Tensor]:
    """Gradients of the sum of all outputs, each ``times`` (B, N) a direction of its own at random."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(tensor.shape, generator=generator) for tensor, _ in outputs]
    cotangents = [
        (torch.from_numpy(factor)[:, None, :, None] * direction).to(tensor.device, tensor.dtype)
        for (tensor, _), factor, direction in zip(outputs, times, directions, strict=True)
    ]
    summed = [tensor for tensor, _ in outputs]
    return torch.autograd.grad(summed, leaves, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True)


def _read(gradients: NDArray[np.float32], most: int) -> Numbers:
    """Numbers (tokens...) from gradients (1 + digits, tokens..., features)."""
    plain, others = gradients[0], gradients[1:]
    size = (plain**2).sum(axis=-1)
    reached = size > 0
    factors = (others * plain).sum(axis=-1) / np.where(reached, size, 1.0)
    rest = np.sqrt(((others - factors[..., None] * plain) ** 2).sum(axis=-1))
    whole = factors.round()
    single = (np.abs(factors - whole) < _WHOLE) & (rest < _MULTIPLE * np.sqrt(size) * np.maximum(whole, 1.0))
    single &= (whole >= 1) & (whole <= _BASE)
    places = _BASE ** np.arange(len(others)).reshape(-1, *[1] * (factors.ndim - 1))
    numbers = ((whole - 1) * places).sum(axis=0).astype(np.int64)
    single_all = single.all(axis=0) & (numbers <= most)
    found: Numbers = np.where(reached, np.where(single_all, numbers, SEVERAL), NOWHERE)
    return found
