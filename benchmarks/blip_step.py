"""One training step at BLIP base size: what an adapter costs beside LoRA, and what fused attention saves.

Random weights, 224 px, 40 text tokens, batch 8, adapters in the decoder; a step is forward, backward and AdamW, the
image tower included. One process per side, all of them alive at once (some 2 GB each): the parent lets them take one
step each in turn, so that whatever else the machine does meets every side alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.models import blip_config
from benchmarks.process import interleaved_processes
from benchmarks.timing import REPEATS, compare, compare_memory

PLAIN = "PEFT's LoRA, eager attention"
#: What is measured, the first being the baseline of all.
SIDES = (PLAIN, "lora", "adapter:location=attention", "p-adapter")
#: What is measured against what: (baseline, side).
PAIRS = (("adapter:location=attention", "p-adapter"), ("lora", "p-adapter"))
TARGET = 1.05
TOKENS = 40


def prepare(side: str, rows: int, size: dict[str, int]) -> tuple[Callable[[], None], int]:
    """One training step of a side, and how many parameters it trains."""
    import torch
    from transformers import BlipForConditionalGeneration

    torch.manual_seed(0)
    config = blip_config(**size)
    blip, words = BlipForConditionalGeneration(config), config.text_config.vocab_size
    generator = torch.Generator().manual_seed(1)
    picture = config.vision_config.image_size
    pixels = torch.randn(rows, 3, picture, picture, generator=generator)
    ids = torch.randint(words // 2, words, (rows, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    module: torch.nn.Module
    if side == PLAIN:
        from peft import LoraConfig, get_peft_model

        module = get_peft_model(blip, LoraConfig(r=8, target_modules=["query", "value"])).train()
        batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": ids}
    else:
        from transformers import BlipProcessor
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        from padapter.architectures.blip import use_attention
        from padapter.backbones import BlipBackbone
        from padapter.methods import get_method
        from padapter.models.vocabulary import build_tokenizer

        use_attention(blip, "sdpa")
        images = BlipImageProcessorPil(size={"height": picture, "width": picture})
        backbone = BlipBackbone(blip, BlipProcessor(image_processor=images, tokenizer=build_tokenizer()), "blip-base")
        name, _, options = side.partition(":")
        method = get_method(name)
        method.apply(backbone, method.parse(dict(item.split("=") for item in options.split(",") if item)))
        module = backbone.training_module("token").train()
        batch = {"pixel_values": pixels, "image_index": torch.arange(rows), "input_ids": ids}
        batch |= {"attention_mask": mask, "labels": ids, "weights": torch.ones(rows)}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        module.train()  # as trainers do
        optimizer.zero_grad()
        module(**batch)["loss"].backward()
        optimizer.step()

    return step, sum(parameter.numel() for parameter in trained)


def steps(side: str, rows: int, size: dict[str, int]) -> Iterator[Any]:
    """In a process of its own: facts, then seconds of one step after the other."""
    from padapter.comparison.measure import forget_peak, peak_memory

    step, trainable = prepare(side, rows, size)
    forget_peak()
    for _ in range(2):  # the optimizer's state is made in the first
        step()
    yield {"trainable": trainable, "peak": peak_memory()[0]}
    while True:
        start = time.perf_counter()
        step()
        yield time.perf_counter() - start


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """All sides against PEFT's own LoRA, and the pairs that have a target."""
    return compared(SIDES, PAIRS, quick)


def compared(sides: Sequence[str], pairs: Sequence[tuple[str, str]], quick: bool) -> Iterator[dict[str, Any]]:
    """All sides against the first, and pairs of them."""
    size = {"layers": 1, "width": 32, "side": 32, "words": 600} if quick else {}
    rows, repeats = (2, 2) if quick else (8, REPEATS)
    every = {side: {"side": side, "rows": rows, "size": size} for side in sides}
    facts, seconds = interleaved_processes("benchmarks.blip_step:steps", every, repeats)
    peaks = {side: fact["peak"] for side, fact in facts.items()}
    yield {
        "case": f"{rows} pictures",
        "trainable": {side: fact["trainable"] for side, fact in facts.items()},
        **compare(seconds, sides[0]),
        **compare_memory(peaks, sides[0]),
    }
    for baseline, side in pairs:
        pair = (baseline, side)
        yield {
            "case": f"{side} against {baseline}",
            **compare({name: seconds[name] for name in pair}, baseline, **{side: TARGET}),
            **compare_memory({name: peaks[name] for name in pair}, baseline, **{side: TARGET}),
        }
