"""The operator against plain attention and against the formulation that materialises an (N, N, d) tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import interleaved, ratios, write
from padapter.functional import p_laplacian_attention


def materialising(query: Tensor, key: Tensor, value: Tensor, p: Tensor, mu: float) -> Tensor:
    """Equations (7)-(8) on the whole graph of N1 + N2 nodes, degrees 1, difference tensor and all."""
    batch, heads, queries, width = query.shape
    nodes = queries + key.shape[2]
    attention = (query @ key.mT / width**0.5).softmax(-1)
    adjacency = query.new_zeros(batch, heads, nodes, nodes)
    adjacency[:, :, :queries, queries:] = attention
    adjacency[:, :, queries:, :queries] = attention.mT
    features = torch.cat([query, value], dim=2)
    differences = (adjacency + 1e-8).sqrt().unsqueeze(-1) * (features.unsqueeze(3) - features.unsqueeze(2))
    calibrated = adjacency * ((differences + 1e-8).square().sum(-1) + 1e-12) ** ((p - 2) / 2)
    alpha = 1 / (calibrated.sum(-1, keepdim=True) + 2 * mu / p)
    return (alpha * (calibrated @ features + 2 * mu / p * features))[:, :, :queries]


def case(
    batch: int, heads: int, queries: int, keys: int, width: int, dtype: torch.dtype, whole: bool
) -> dict[str, Any]:
    """Forward + backward at one size; ``whole`` includes the materialising side (it needs memory and patience)."""
    torch.manual_seed(0)
    tensors = [torch.randn(batch, heads, n, width, dtype=dtype, requires_grad=True) for n in (queries, keys, keys)]
    p = torch.tensor(1.5, requires_grad=True)
    sides = {
        "sdpa": lambda: scaled_dot_product_attention(*tensors).sum().backward(),
        "p_laplacian": lambda: p_laplacian_attention(*tensors, p=p, mu=0.1).sum().backward(),
    }
    if whole:
        sides["materialising"] = lambda: materialising(*tensors, p.to(dtype), 0.1).sum().backward()
    seconds = interleaved(sides)
    size = {"batch": batch, "heads": heads, "queries": queries, "keys": keys, "width": width, "dtype": str(dtype)}
    return {**size, "ratio_to_sdpa": ratios(seconds, "sdpa"), "seconds": seconds}


def main() -> None:
    """Measure the sizes that matter and write ``results/operator.json``."""
    cases = [
        case(4, 12, 40, 197, 64, torch.float32, whole=False),
        case(4, 12, 40, 577, 64, torch.float32, whole=False),
        case(16, 5, 20, 65, 32, torch.float32, whole=False),
        case(1, 12, 40, 24, 8, torch.float32, whole=True),
        case(1, 12, 40, 197, 8, torch.float32, whole=True),
    ]
    for found in cases:
        print({k: v for k, v in found.items() if k != "seconds"})
    print(write("operator", cases))
