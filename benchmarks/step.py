"""One training step of the built-in model with each method: time relative to LoRA, and peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.process import interleaved_processes
from benchmarks.timing import REPEATS, compare, compare_memory

METHODS = ("lora", "adapter", "p-adapter", "p-adapter:form=bottleneck", "prefix", "full")


def steps(method: str, rows: int) -> Iterator[Any]:
    """In a process of its own: facts, then seconds of one step after the other."""
    import torch

    from padapter.backbones import TrainingExample, load_backbone
    from padapter.comparison.measure import forget_peak, peak_memory
    from padapter.data import open_image
    from padapter.methods import get_method
    from padapter.tasks import get_task
    from padapter.worlds import load_world

    name, _, options = method.partition(":")
    backbone = load_backbone("shapes-blip")
    chosen = get_method(name)
    chosen.apply(backbone, chosen.parse(dict(item.split("=") for item in options.split(",") if item)))
    task = get_task("vqa")
    examples = [
        TrainingExample(open_image(row["image"]), task.prompt(row), tuple(task.targets(row)))
        for row in load_world("new-questions", "vqa", "train", rows)
    ]
    batch = backbone.collate(examples)
    module = backbone.training_module(task.loss_reduction).train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        optimizer.step()
        return time.perf_counter() - start

    forget_peak()
    step()
    yield {"trainable": trainable, "peak": peak_memory()[0]}
    while True:
        yield step()


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """One case with all methods."""
    rows, repeats = (2, 2) if quick else (32, REPEATS)
    sides = {method: {"method": method, "rows": rows} for method in METHODS}
    facts, seconds = interleaved_processes("benchmarks.step:steps", sides, repeats)
    yield {
        "case": f"shapes-blip, {rows} rows",
        "trainable": {method: fact["trainable"] for method, fact in facts.items()},
        **compare(seconds, "lora"),
        **compare_memory({method: fact["peak"] for method, fact in facts.items()}, "lora"),
    }
