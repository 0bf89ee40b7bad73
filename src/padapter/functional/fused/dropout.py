"""Which attention weights the kernels drop: a pure function of a seed and of a weight's place, written here in PyTorch.

Weights are dropped by numbers that every kernel makes for itself, forward and again backward, so no mask is stored and
none depends on blocks, threads or device. Numbers come from keys of two words of 32 bits each, in three steps with one
function, `scrambled`: the seed is the key of pairs (batch, head), number ``batch * H + head``; a pair's key is that of
queries, a query's that of its keys' columns. A key (a, b) gives its i-th child the key ``(scrambled(2 i), scrambled(2 i
+ 1))``, and its i-th weight the number ``scrambled(i)``.

The C library and `kernel_parts` hold the same function; `dropout_mask` is what they are tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


class Dropout(NamedTuple):
    """Attention dropout as kernels take it.

    Attributes:
        seed: (1,) int64, on their device, so that nobody waits for it.
        below: a weight is dropped if the upper 31 bits of its number are below this.
        factor: what kept weights are multiplied by, ``1 / (1 - p)``; 0 where all are dropped.
    """

    seed: Tensor
    below: int
    factor: float

    @classmethod
    def of(cls, seed: Tensor, dropout_p: float) -> Dropout:
        """With the probability to the next multiple of 2^-31.

        Args:
            seed: (1,) int64.
            dropout_p: probability of dropping a weight, in (0, 1].
        """
        factor = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
        return cls(seed, min(round(dropout_p * 2**31), 2**31 - 1), factor)


def draw_seed(device: torch.device) -> Tensor:
    """A seed (1,) int64 from PyTorch's generator of a device.

    `torch.manual_seed` repeats it, and checkpointing that restores the generator's state does too.
    """
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)


def dropout_mask(seed: Tensor, batch: int, heads: int, queries: int, keys: int, dropout_p: float) -> Tensor:
    """Which weights the kernels keep.

    Args:
        seed: (1,) int64.
        batch: B.
        heads: H.
        queries: N1.
        keys: N2.
        dropout_p: probability of dropping a weight.

    Returns:
        (B, H, N1, N2) boolean, True where a weight is kept, then to be divided by ``1 - dropout_p``.
    """
    dropout = Dropout.of(seed, dropout_p)

    def places(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.int64, device=seed.device)

    key = (seed & _WORD, (seed >> 32) & _WORD)
    pairs = _child(key, places(batch * heads))
    rows = _child((pairs[0][:, None], pairs[1][:, None]), places(queries))
    numbers = scrambled(places(keys), rows[0][..., None], rows[1][..., None])  # (B * H, N1, N2)
    kept = (numbers >> 1 >= dropout.below) & (dropout.factor > 0)
    return kept.unflatten(0, (batch, heads))


def scrambled(place: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The number of 32 bits at a place of a key's sequence.

    Two rounds of multiplying and folding the upper bits down, the second half of the key being added between them. For
    one key it is a permutation of all numbers of 32 bits.

    Args:
        place: int64 below 2^32; it and the key are broadcast.
        first: the key's first word, int64 below 2^32.
        second: its second word.
    """
    number = (place * 0x9E3779B1 + first) & _WORD
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & _WORD
    number = ((number ^ (number >> 15)) + second) & _WORD
    number = (number * 0x846CA68B) & _WORD
    return number ^ (number >> 16)


def _child(key: tuple[Tensor, Tensor], place: Tensor) -> tuple[Tensor, Tensor]:
    return scrambled(2 * place, *key), scrambled(2 * place + 1, *key)
