"""How time grows: of the operator with tokens, queries, heads and batch; of a training step with the reduction factor.

One size grows at a time; the others are those of ``START``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.models import blip_config
from benchmarks.operator import Sides
from benchmarks.timing import compare, interleaved

START = {"batch": 4, "heads": 12, "queries": 40, "keys": 577}
SIZES = {
    "keys": (64, 128, 256, 512, 1024, 2048, 4096),
    "queries": (16, 32, 64, 128, 256, 512, 1024),
    "heads": (1, 2, 4, 8, 16, 32),
    "batch": (1, 2, 4, 8, 16, 32),
}
FACTORS = (2, 4, 8, 16, 32)
WAYS = ("sdpa", "p-Laplacian")
REPEATS = 7
#: Of a training step.
ROWS = 2


def growing(what: str, sizes: tuple[int, ...], repeats: int) -> Iterator[dict[str, Any]]:
    """Forward + backward of the operator at each size."""
    for size in sizes:
        sides = Sides(**{**START, what: size}, width=64, dtype=torch.float32)
        seconds = interleaved({way: sides.side(way) for way in WAYS}, repeats)
        yield {"case": f"{what} = {size}", "grows": what, "size": size, **compare(seconds, "sdpa")}


def reduction(factors: tuple[int, ...], quick: bool, repeats: int) -> Iterator[dict[str, Any]]:
    """A training step of two decoder layers of BLIP base behind one layer of the image tower."""
    for factor in factors:
        seconds = interleaved({name: training_step(name, factor, quick) for name in ("adapter", "p-adapter")}, repeats)
        title = f"reduction factor = {factor}"
        yield {"case": title, "grows": "reduction_factor", "size": factor, **compare(seconds, "adapter")}


def training_step(method: str, factor: int, quick: bool) -> Callable[[], Any]:
    """A function that makes one step."""
    from padapter.backbones import BlipBackbone
    from padapter.backbones.steps import bare_training, random_batch
    from padapter.comparison.counting import skeletons_of
    from padapter.methods import get_method

    torch.manual_seed(0)
    config = blip_config(layers=1, width=64, side=32, words=64) if quick else blip_config(layers=2, towers=1, words=64)
    backbone = skeletons_of(config)("cpu")
    chosen = get_method(method)
    chosen.apply(backbone, chosen.parse({"reduction_factor": factor}))
    module = bare_training(BlipBackbone, backbone.model, "sequence").train()
    optimizer = torch.optim.AdamW([value for value in module.parameters() if value.requires_grad], lr=1e-4)
    batch = random_batch(BlipBackbone, backbone.base_model, rows=ROWS, tokens=40)

    def step() -> None:
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        optimizer.step()

    return step


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """One case per size."""
    repeats = 2 if quick else REPEATS
    for what, sizes in SIZES.items():
        yield from growing(what, sizes[:2] if quick else sizes, repeats)
    yield from reduction((2, 4) if quick else FACTORS, quick, repeats)
