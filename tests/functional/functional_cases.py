"""Inputs that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PS = (1.0, 1.25, 1.5, 2.0, 2.5, 4.0)
MUS = (0.0, 0.1, 10.0)
DEGREES = ("row", "symmetric")
MASKS = ("none", "bool", "column", "additive", "causal", "causal and bool")

B, H, HKV, N1, N2, DH, D = 2, 4, 2, 5, 7, 6, 9


def inputs(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, kv_heads: int = HKV, dk: int = DH, dh: int = DH
) -> dict[str, Tensor]:
    """Query, key and value; also node features where the widths differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    drawn = {
        "query": draw(B, H, N1, dk),
        "key": draw(B, kv_heads, N2, dk),
        "value": draw(B, kv_heads, N2, dh),
    }
    if dk != dh:
        drawn["node_query"] = draw(B, H, N1, dh)
    return drawn


def mask_arguments(name: str, *, dead_rows: bool = True) -> dict[str, Any]:
    """The mask arguments of each of MASKS; "bool" and "additive" hold a row without any key if dead_rows."""
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(B, 1, N1, N2, generator=generator) > 0.4
    keep[..., 0] = True
    if dead_rows:
        keep[0, 0, 2] = False
    if name == "none":
        return {}
    if name == "bool":
        return {"attention_mask": keep}
    if name == "column":
        column = torch.ones(B, 1, 1, N2, dtype=torch.bool)
        column[0, ..., -2:] = False
        return {"attention_mask": column}
    if name == "additive":
        finite = torch.randn(1, H, N1, N2, generator=generator, dtype=torch.float64)
        return {"attention_mask": finite.masked_fill(~keep, -torch.inf)}
    if name == "causal":
        return {"is_causal": True}
    return {"is_causal": True, "attention_mask": keep}


def output_weight(seed: int = 2, *, d: int = D, dh: int = DH) -> Tensor:
    return torch.randn(d, H * dh, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number (absolute where zero is expected)."""
    largest = expected.double().abs().max().item()
    return (actual.double() - expected.double()).abs().max().item() / (largest or 1.0)
