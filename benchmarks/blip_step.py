"""One training step at BLIP base size: what an adapter costs beside LoRA, and what fused attention saves.

    python -m benchmarks.blip_step --threads 2 --rounds 9

Random weights, 224 px, 40 text tokens, adapters in the decoder; a step is forward, backward and AdamW. One process per
side, all of them alive at once (some 2 GB each): the parent lets them take one step each in turn, so that whatever else
the machine does meets every side alike. ``step_mb`` is by how much the resident memory of a process has risen at the
peak of its first two steps above what it was with model, batch and optimizer in place (Linux; None elsewhere);
``peak_mb`` is that peak itself. Times are of later steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_flush_denormal(True)  # before the first operation, or backward drowns in denormals

from benchmarks.timing import ratios, write  # noqa: E402

PLAIN = "plain PEFT LoRA, eager attention"
#: Side -> what it is measured against: the vanilla adapter at the same places.
SIDES = {
    PLAIN: None,
    "lora": None,
    "adapter:location=attention": None,
    "p-adapter": "adapter:location=attention",
    "adapter": None,
    "p-adapter:form=bottleneck": "adapter",
}
BATCH, TOKENS, SIDE, VOCABULARY = 8, 40, 224, 30522

Step = Callable[[], None]


def model() -> Any:
    """A random BLIP in the shape of the published base models."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    # transformers' defaults but for the side of an image and the decoder's heads, of which published models have 12.
    config = BlipConfig(text_config={"num_attention_heads": 12}, vision_config={"image_size": SIDE})
    return BlipForConditionalGeneration(config)


def processor() -> Any:
    """A processor that fits the model; nothing is read with it."""
    from transformers import BertTokenizer, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    tokenizer = BertTokenizer(vocab={special.get(i, f"[unused{i}]"): i for i in range(VOCABULARY)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    image_processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return BlipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def prepare(side: str) -> tuple[Step, int]:
    """One training step of a side, and how many parameters it trains."""
    blip, generator = model(), torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    ids = torch.randint(1000, VOCABULARY, (BATCH, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    if side == PLAIN:
        from peft import LoraConfig, get_peft_model

        module = get_peft_model(blip, LoraConfig(r=8, target_modules=["query", "value"])).train()
        batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": ids}
    else:
        from padapter.architectures.blip import use_attention
        from padapter.backbones import BlipBackbone
        from padapter.methods import get_method

        use_attention(blip, "sdpa")
        backbone = BlipBackbone(blip, processor(), "blip-base")
        name, _, options = side.partition(":")
        method = get_method(name)
        method.apply(backbone, method.parse(dict(item.split("=") for item in options.split(",") if item)))
        module = backbone.training_module("token").train()
        batch = {"pixel_values": pixels, "image_index": torch.arange(BATCH), "input_ids": ids}
        batch |= {"attention_mask": mask, "labels": ids, "weights": torch.ones(BATCH)}
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        optimizer.step()

    return step, sum(p.numel() for p in trained)


def work(side: str, threads: int) -> None:
    """Be one side: say what it takes, then take a step for every line that comes in and print its seconds."""
    torch.set_num_threads(threads)
    step, trained = prepare(side)
    before = _resident()
    for _ in range(2):
        step()
    peak = _resident("VmHWM") if before is not None else None
    facts = {"trainable": trained, "threads": threads, "peak_mb": peak}
    facts["step_mb"] = round(peak - before, 1) if peak is not None and before is not None else None
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def _resident(field: str = "VmRSS") -> float | None:
    """Resident memory in MB now, or its peak (VmHWM) since the last call that asked for what it is now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return round(int(lines[field].split()[0]) / 1024, 1)


def measure(threads: int, rounds: int) -> list[dict[str, Any]]:
    """All sides, step by step in turn."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    workers: dict[str, subprocess.Popen[str]] = {}
    try:
        facts: dict[str, dict[str, Any]] = {}
        for side in SIDES:  # one after another: the peaks of two sides must not fall together
            command = [sys.executable, "-m", "benchmarks.blip_step", "--side", side, "--threads", str(threads)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            workers[side] = subprocess.Popen(command, text=True, env=environment, **pipes)
            facts[side] = _answer(workers[side])
        wall: dict[str, list[float]] = {side: [] for side in SIDES}
        cpu: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side, worker in workers.items():
                print("step", file=worker.stdin, flush=True)
                seconds, busy = _answer(worker)
                wall[side].append(seconds)
                cpu[side].append(busy)
    finally:
        for worker in workers.values():
            worker.communicate()  # the end of its input ends it
    return [_case(side, facts, wall, cpu) for side in SIDES]


def _answer(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"{worker.args} has ended before its time; its error is above")
    return json.loads(line)


def _case(
    side: str, facts: dict[str, dict[str, Any]], wall: dict[str, list[float]], cpu: dict[str, list[float]]
) -> dict[str, Any]:
    case = {
        "side": side,
        "ratio_to_plain": ratios(wall, PLAIN)[side],
        "ratio_to_lora": ratios(wall, "lora")[side],
        "cpu_ratio_to_lora": ratios(cpu, "lora")[side],
    }
    adapter = SIDES[side]
    if adapter is not None:
        case |= {"ratio_to_adapter": ratios(wall, adapter)[side], "cpu_ratio_to_adapter": ratios(cpu, adapter)[side]}
        for memory in ("peak_mb", "step_mb"):
            mine, theirs = facts[side][memory], facts[adapter][memory]
            case[f"{memory[:-3]}_memory_to_adapter"] = round(mine / theirs, 3) if mine is not None else None
    seconds = [round(value, 4) for value in wall[side]]
    return case | facts[side] | {"median": round(statistics.median(seconds), 4), "seconds": seconds}


def main(arguments: list[str]) -> None:
    """Measure all sides and write ``results/blip_step.json``; ``--side`` is one of them, used by the parent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blip_step", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side is not None:
        work(options.side, options.threads)
        return
    cases = measure(options.threads, options.rounds)
    for case in cases:
        print({k: v for k, v in case.items() if k != "seconds"})
    if not options.dry:
        print(write("blip_step", cases))


if __name__ == "__main__":
    main(sys.argv[1:])
