"""The number of trainable parameters is what docs/mathematics.md says ("How many parameters"), for every architecture.

Widths, heads and numbers of blocks are written down here; nothing is read from the adapter or from the table of
architectures.
"""

from __future__ import annotations

import pytest
from peft import get_peft_model
from test_every_architecture import base
from tiny_models import HEADS, MODELS, WIDTH

from padapter.tuners import BottleneckConfig, PAdapterConfig

#: Attention modules and feed-forward blocks adapted by default, and those that ``where="all"`` adds: an encoder's,
#: an image encoder's, and what connects the two. All have WIDTH and HEADS.
BLOCKS = {
    "blip": (4, 2, 2, 2),
    "blip (VQA)": (4, 2, 4 + 2, 2 + 2),
    "mplug": (4, 2, 2, 2),
    "mplug (VQA)": (4, 2, 1 + 2 + 2 + 1 + 2, 1 + 3 + 2),  # text encoder, two co-attention layers, one connected, image
    "blip-2 (OPT)": (2, 2, 2 + 4, 2 + 2),
    "blip-2 (T5)": (4, 2, 2 + 2 + 4, 2 + 2 + 2),
    "instructblip": (2, 2, 2 + 4, 2 + 2),
    "instructblip (T5)": (4, 2, 2 + 2 + 4, 2 + 2 + 2),
    "git": (2, 2, 2, 2),
    "florence-2": (4, 2, 2 + 1, 2 + 2),  # and FLORENCE's
    "kosmos-2": (2, 2, 2 + 1, 2),
    "pix2struct": (4, 2, 2, 2),
    "vit + gpt-2": (4, 2, 2, 2),
    "vit + trocr": (4, 2, 2, 2),
    "llava": (2, 2, 2, 2 + 1),
    "llava-onevision": (2, 2, 2, 2 + 1),
    "qwen2-vl": (2, 2, 2, 2 + 1),
    "qwen2.5-vl": (2, 2, 2, 2 + 1),
    "qwen3-vl": (2, 2, 2, 2 + 2),
    "smolvlm": (2, 2, 2, 2 + 1),
    "idefics3": (2, 2, 2, 2 + 1),
    "paligemma": (2, 2, 2, 2 + 1),
    "gemma3": (2, 2, 2, 2),
    "internvl": (2, 2, 2, 2 + 1),
    "mllama": (3, 3, 3, 3),
    "vit": (2, 2, 0, 0),
    "clip": (4, 4, 0, 0),
    "siglip": (2, 2, 0, 0),
    "dinov2": (2, 2, 0, 0),
    "llama": (2, 2, 0, 0),
    "qwen3": (2, 2, 0, 0),
    "t5": (4, 2, 2, 2),
    "bart": (4, 2, 2, 2),
    "gpt-2": (2, 2, 0, 0),
    "bert": (2, 2, 0, 0),
}
#: The first stage of Florence-2's image encoder: attention modules, feed-forward blocks, width, heads.
FLORENCE = (1, 2, 16, 2)


def vanilla(d: int, reduction: float, scale: int = 0) -> int:
    r = max(1, int(d / reduction))
    return 2 * d * r + r + d + scale


def projected(d: int, reduction: float, exponents: int) -> int:
    return vanilla(d, reduction) + exponents


def bottleneck_form(d: int, heads: int, reduction: float, exponents: int, gate: bool = True) -> int:
    r = heads * max(1, round(d / (reduction * heads)))
    down, up, gates = d * r + r, r * d + d, (d * r + r) * gate
    return down + up + gates + exponents


#: name -> config, where, parameters of an attention module (d, heads), parameters of a feed-forward block (d).
CASES = {
    "projected": (PAdapterConfig(), lambda d, h: projected(d, 8, 2), lambda d: 0),
    "bottleneck form": (
        PAdapterConfig(form="bottleneck"),
        lambda d, h: bottleneck_form(d, h, 8, 2),
        lambda d: vanilla(d, 8),
    ),
    "vanilla": (BottleneckConfig(), lambda d, h: vanilla(d, 8), lambda d: vanilla(d, 8)),
    "projected, heads apart": (
        PAdapterConfig(per_head=True, ffn_adapter=True, reduction_factor=3, ffn_reduction_factor=5, where="all"),
        lambda d, h: projected(d, 3, 2 * h),
        lambda d: vanilla(d, 5),
    ),
    "bottleneck form, no gate, fixed p": (
        PAdapterConfig(form="bottleneck", gate=False, learn_p=False, ffn_reduction_factor=64, where="all"),
        lambda d, h: bottleneck_form(d, h, 8, 1, gate=False),
        lambda d: vanilla(d, 64),
    ),
    "bottleneck form, wide": (
        PAdapterConfig(form="bottleneck", per_head=True, reduction_factor=2, ffn_adapter=False, where="all"),
        lambda d, h: bottleneck_form(d, h, 2, 2 * h),
        lambda d: 0,
    ),
    "vanilla, learned scale": (
        BottleneckConfig(scaling="learned", reduction_factor=2.5, where="all"),
        lambda d, h: vanilla(d, 2.5, scale=1),
        lambda d: vanilla(d, 2.5, scale=1),
    ),
    "vanilla, feed-forward": (
        BottleneckConfig(location="pfeiffer", where="all"),
        lambda d, h: 0,
        lambda d: vanilla(d, 8),
    ),
    "vanilla, parallel": (
        BottleneckConfig(mode="parallel", r=7),
        lambda d, h: vanilla(d, d / 7),
        lambda d: vanilla(d, d / 7),
    ),
    "no exponents": (PAdapterConfig(message_passing="gcn"), lambda d, h: projected(d, 8, 0), lambda d: 0),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_number_of_parameters_is_what_the_formula_says(name):
    model = base(name)
    everything = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    for case, (config, attention, feed_forward) in CASES.items():
        modules, blocks, more_modules, more_blocks = BLOCKS[name]
        if config.where == "all":
            modules, blocks = modules + more_modules, blocks + more_blocks
        expected = modules * attention(WIDTH, HEADS) + blocks * feed_forward(WIDTH)
        if name == "florence-2" and config.where == "all":
            modules, blocks, width, heads = FLORENCE
            expected += modules * attention(width, heads) + blocks * feed_forward(width)
        config.target_modules = None  # what another model has made of it
        adapted = get_peft_model(model, config)
        assert adapted.get_nb_trainable_parameters() == (expected, everything + expected), case
        model = adapted.unload()


def test_every_architecture_is_counted():
    assert BLOCKS.keys() == MODELS.keys()
