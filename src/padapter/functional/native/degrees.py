"""Column sums of M on processors, in blocks of rows and with PyTorch's own products: M itself never exists whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of M that exist at a time.
_BLOCK = 1 << 21


class _Rows(NamedTuple):
    """Some rows of M of one sample, and what they were made of."""

    batch: int
    rows: slice
    query: Tensor  # (H, n, dk)
    key: Tensor  # (H, N2, dk)
    M: Tensor  # (H, n, N2)


def degrees(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Compute the column sums of M (B, H, N2) in float32; arguments as in `padapter.functional.fused.operators`."""
    D = query.new_zeros((*query.shape[:2], key.shape[2]), dtype=torch.float32)
    for part in _blocks(query, key, mask, scale, causal):
        D[part.batch] += part.M.sum(dim=1)
    return D


def degrees_backward(
    upstream: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of query (B, H, N1, dk) and, per query head, of key (B, H, N2, dk), in float32."""
    d_query = torch.empty_like(query, dtype=torch.float32, memory_format=torch.contiguous_format)
    d_key = query.new_zeros((*query.shape[:2], *key.shape[2:]), dtype=torch.float32)
    for part in _blocks(query, key, mask, scale, causal):
        g = upstream[part.batch].float().unsqueeze(1)  # (H, 1, N2)
        d_S = part.M * (g - (part.M * g).sum(dim=-1, keepdim=True)) * scale
        d_query[part.batch, :, part.rows] = d_S @ part.key
        d_key[part.batch] += d_S.mT @ part.query
    return d_query, d_key


def _blocks(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Iterator[_Rows]:
    B, H, N1, _ = query.shape
    N2 = key.shape[2]
    whole = None if mask is None else mask.expand(B, H, N1, N2)
    step = max(1, _BLOCK // (H * N2))
    for batch in range(B):
        keys = key[batch].float()
        keys = keys.repeat_interleave(H // keys.shape[0], dim=0) if keys.shape[0] < H else keys
        for start in range(0, N1, step):
            rows = slice(start, min(start + step, N1))
            queries = query[batch, :, rows].float()
            scores = (queries * scale) @ keys.mT
            if whole is not None:
                added = whole[batch, :, rows]
                scores = scores.masked_fill(~added, -torch.inf) if added.dtype == torch.bool else scores + added.float()
            if causal:
                positions = torch.arange(max(rows.stop, N2), device=scores.device)
                later = positions[:N2] > positions[start : rows.stop, None]
                scores = scores.masked_fill(later, -torch.inf)
            empty = scores.amax(dim=-1, keepdim=True) == -torch.inf  # a query without any key has no edges
            M = scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
            yield _Rows(batch, rows, queries, keys, M)
