"""p-Laplacian attention against plain attention, and against the formulation that makes an (N, N, d) tensor.

Tensors lie as a model hands them over: (B, N, H, d) in memory, seen as (B, H, N, d). p and mu are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from benchmarks.process import interleaved_processes
from benchmarks.timing import REPEATS, compare, compare_memory, interleaved, peak_above
from padapter.functional import p_laplacian_attention

TARGET = 1.3
Attend = Callable[..., Tensor]


def materialising(query: Tensor, key: Tensor, value: Tensor, p: Tensor, mu: Tensor) -> Tensor:
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


def softmax(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Plain attention as eager PyTorch: what BLIP's text layers do."""
    return dropout((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1), dropout_p) @ value


class Sides:
    """The ways to attend, on the same tensors.

    Args:
        batch: B.
        heads: H.
        queries: N1.
        keys: N2.
        width: dk = dh.
        dtype: of the tensors; p and mu stay float32.
        frozen_keys: key and value need no gradient, as those of a frozen image tower behind frozen projections.
        metric: distances are taken behind an output projection, as in a model.
        dropout: probability of dropping a weight.
    """

    def __init__(
        self, batch: int, heads: int, queries: int, keys: int, width: int, dtype: torch.dtype,
        *, frozen_keys: bool = False, metric: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.tensors = [torch.randn(batch, n, heads, width, dtype=dtype).transpose(1, 2) for n in (queries, keys, keys)]
        self.leaves = [t.requires_grad_() for t in (self.tensors[:1] if frozen_keys else self.tensors)]
        self.p, self.mu = torch.tensor(1.5, requires_grad=True), torch.tensor(0.1, requires_grad=True)
        factor = torch.randn(heads, width, width) / width**0.5 if metric else None
        self.ours = {"p": self.p, "mu": self.mu, "metric_factor": factor, "dropout_p": dropout}
        self.plain = {"dropout_p": dropout}
        self.upstream = torch.randn(batch, queries, heads, width, dtype=dtype).transpose(1, 2)

    def side(self, name: str) -> Callable[[], Any]:
        """Forward and backward of one of them."""
        trained = [self.p, self.mu]
        ways: dict[str, tuple[Attend, Mapping[str, Any], list[Tensor]]] = {
            "sdpa": (scaled_dot_product_attention, self.plain, []),
            "softmax": (softmax, self.plain, []),
            "p-Laplacian": (p_laplacian_attention, self.ours, trained),
            "materialising": (materialising, {"p": self.p, "mu": self.mu}, trained),
        }
        compiled = name.removesuffix(", compiled")
        attend, values, more = ways[compiled]
        if compiled != name:
            attend = torch.compile(attend)
        leaves = [*self.leaves, *more]
        return lambda: torch.autograd.grad(attend(*self.tensors, **values), leaves, self.upstream)


def case(name: str, sides: Sides, against: list[str], repeats: int = REPEATS) -> dict[str, Any]:
    """Time of forward + backward of the named sides against SDPA."""
    seconds = interleaved({side: sides.side(side) for side in ("sdpa", "p-Laplacian", *against)}, repeats)
    (batch, heads, queries, width), keys = sides.tensors[0].shape, sides.tensors[1].shape[2]
    size = {"batch": batch, "heads": heads, "queries": queries, "keys": keys, "width": width}
    target = {} if "materialising" in against else {"p-Laplacian": TARGET}
    dtype = str(sides.upstream.dtype).removeprefix("torch.")
    title = f"{batch} x {heads} x {queries} x {keys}, {dtype}, {name}"
    return {"case": title, **size, "dtype": dtype, **compare(seconds, "sdpa", **target)}


def peak(side: str, sizes: list[int], heads: int) -> Iterator[Any]:
    """In a process of its own: bytes above the tensors at N x N, for each N."""
    Sides(1, heads, 256, 256, 64, torch.float32).side(side)()  # loads libraries, starts threads
    yield {}
    for n in sizes:
        sides = Sides(1, heads, n, n, 64, torch.float32)
        yield peak_above(sides.side(side))


def memory(sizes: list[int], heads: int) -> Iterator[dict[str, Any]]:
    """Peak memory at N x N, a process per side."""
    names = ("sdpa", "p-Laplacian", "softmax")
    every = {name: {"side": name, "sizes": sizes, "heads": heads} for name in names}
    _, found = interleaved_processes("benchmarks.operator:peak", every, len(sizes))
    for index, n in enumerate(sizes):
        peaks = {name: values[index] for name, values in found.items()}
        size = {"batch": 1, "heads": heads, "queries": n, "keys": n, "width": 64}
        title = f"1 x {heads} x {n:,} x {n:,}, float32, above {3 * heads * n * 64 / 2**18:g} MiB of inputs"
        yield {"case": title, **size, **compare_memory(peaks, "sdpa", **{"p-Laplacian": TARGET})}


def run(quick: bool = False, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """Cases with ``ratio``: time. Cases with ``peak_ratio``: memory."""
    against = ["softmax", *(["p-Laplacian, compiled"] if compiled else [])]
    batch, heads, repeats = (2, 2, 2) if quick else (16, 12, REPEATS)
    for keys in (17, 33) if quick else (197, 577):
        for dtype in (torch.float32, torch.bfloat16):
            yield case("all train", Sides(batch, heads, 40, keys, 64, dtype), against, repeats)
        frozen = Sides(batch, heads, 40, keys, 64, torch.float32, frozen_keys=True)
        yield case("keys and values frozen", frozen, against, repeats)
        metric = Sides(batch, heads, 40, keys, 64, torch.float32, frozen_keys=True, metric=True)
        yield case("the same, distances behind the projection", metric, against, repeats)
    dropped = Sides(batch, heads, 40, 17 if quick else 197, 64, torch.float32, dropout=0.1)
    yield case("all train, dropout 0.1", dropped, against, repeats)
    for keys, width in ((5, 4), (9, 4)) if quick else ((24, 64), (197, 64)):
        small = Sides(1, heads, 40, keys, width, torch.float32)
        yield case("one picture", small, ["materialising"], repeats)
    yield from memory([64, 128] if quick else [1024, 2048, 4096], heads)
