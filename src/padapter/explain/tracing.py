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
    found: NDArray[np.bool_] = (change > 1e-4 * one.detach().abs().amax()).cpu().numpy()
    return found


def destinations(
    outputs: Sequence[tuple[torch.Tensor, Numbers]], leaves: Sequence[torch.Tensor], *, entries: bool = False
) -> list[Numbers]:
    """What becomes of tokens: the number of the one output that each token of some leaves has a part in.

    A backward pass adds up what a token gives to every output, each in a direction of its own at random. Passes in
    which outputs count 1, 2, ... `_BASE` times, by the digits of their numbers, multiply a token's gradient by the
    digit of its destination; what has several is no multiple.

    Args:
        outputs: tensors (B, H, N, d), and (B, N) numbers, from 0; several may have the same number. `NOWHERE` for
            those that do not matter.
        leaves: tensors (B, N, ...), whose graph the outputs have.
        entries: whether every entry of a leaf is a token of its own, instead.

    Returns:
        Per leaf, (B, N) or its whole shape: numbers, `NOWHERE` or `SEVERAL`.
    """
    outputs = [(tensor, numbers) for tensor, numbers in outputs if tensor.requires_grad]
    shapes = [tuple(leaf.shape) if entries else tuple(leaf.shape[:2]) for leaf in leaves]
    if not outputs:
        return [np.full(shape, NOWHERE) for shape in shapes]
    most = max(int(numbers.max(initial=0)) for _, numbers in outputs)
    digits = next(digits for digits in itertools.count(1) if _BASE**digits > most)
    # A single entry has no direction: it takes several.
    draws = range(4 if entries else 1)
    found = [_gradients(outputs, leaves, shapes, digits, seed) for seed in draws]
    return [_read(np.concatenate([found[seed][i] for seed in draws], axis=-1), most) for i in range(len(leaves))]


def _gradients(
    outputs: Sequence[tuple[torch.Tensor, Numbers]],
    leaves: Sequence[torch.Tensor],
    shapes: Sequence[tuple[int, ...]],
    digits: int,
    seed: int,
) -> list[NDArray[np.float32]]:
    """Per leaf (1 + digits, tokens..., features): gradients where every output counts once, and by its digits."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(tensor.shape, generator=generator) for tensor, _ in outputs]
    passes = []
    for digit in range(-1, digits):
        cotangents = []
        for (tensor, numbers), direction in zip(outputs, directions, strict=True):
            times = np.ones_like(numbers) if digit < 0 else 1 + numbers // _BASE**digit % _BASE
            times = np.where(numbers < 0, 0, times)
            factors = torch.from_numpy(times)[:, None, :, None] * direction
            cotangents.append(factors.to(tensor.device, tensor.dtype))
        of_leaves = torch.autograd.grad(
            [tensor for tensor, _ in outputs], leaves, cotangents, retain_graph=True, allow_unused=True
        )
        passes.append(of_leaves)
    return [
        np.stack(
            [
                np.zeros((*shape, 1), np.float32)
                if one[i] is None
                else one[i].float().cpu().numpy().reshape(*shape, -1)
                for one in passes
            ]
        )
        for i, shape in enumerate(shapes)
    ]


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
