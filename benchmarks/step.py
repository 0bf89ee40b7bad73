"""One training step of the built-in model with each method: time relative to LoRA, and peak memory.

One process per method and size, because memory is a property of a process; the interleaving is done by the parent.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.timing import ratios, write

METHODS = ("lora", "adapter", "p-adapter", "p-adapter:form=bottleneck", "prefix", "full")
_ROUNDS, _STEPS = 3, 7


def measure(method: str) -> dict[str, Any]:
    """Seconds per step and peak memory of one method, in this process."""
    import torch

    torch.set_flush_denormal(True)  # before the first operation, or backward drowns in denormals
    from padapter.backbones import TrainingExample, load_backbone
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
        for row in load_world("new-questions", "vqa", "train", 32)
    ]
    batch = backbone.collate(examples)
    module = backbone.training_module(task.loss_reduction).train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        optimizer.step()

    step()
    seconds = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": round(peak, 1), "trainable": trainable}


def main() -> None:
    """Measure all methods in turn and write ``results/step.json``."""
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    facts: dict[str, dict[str, Any]] = {}
    for _ in range(_ROUNDS):
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks", "--step", method]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds[method].append(statistics.median(found.pop("seconds")))
            facts[method] = found
    relative = ratios(seconds, "lora")
    cases = [{"method": m, "ratio_to_lora": relative[m], **facts[m], "seconds": seconds[m]} for m in METHODS]
    for case in cases:
        print({k: v for k, v in case.items() if k != "seconds"})
    print(write("step", cases))
