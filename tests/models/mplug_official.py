"""Checkpoints in the official mPLUG layout, with random weights: names and shapes only, no code of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; the defaults are tiny. ``base()`` has the published ones."""

    width: int = 8
    heads: int = 2
    hidden: int = 12
    words: int = 30
    positions: int = 24
    type_words: int = 2
    vision_width: int = 8
    vision_hidden: int = 12
    vision_layers: int = 2
    patch: int = 4
    grid: int = 2
    text_layers: int = 2
    fusion_built: int = 7
    fusion_layers: int = 5
    stride: int = 2
    decoder_layers: int = 2
    clip_width: int = 6
    clip_layers: int = 2
    clip_words: int = 9
    clip_positions: int = 5
    projection: int = 6


def base() -> Sizes:
    return Sizes(
        width=768, heads=12, hidden=3072, words=30522, positions=512, vision_width=768, vision_hidden=3072,
        vision_layers=12, patch=16, grid=24, text_layers=6, fusion_built=12, fusion_layers=6, stride=3,
        decoder_layers=12, clip_width=512, clip_layers=12, clip_words=49408, clip_positions=77, projection=512,
    )  # fmt: skip


def shapes(sizes: Sizes, *, distilled: bool = False) -> dict[str, Shape]:
    """Every entry of a fine-tuned file; integers are the position numbers."""
    found = dict(_parts(sizes))
    if distilled:
        for part in ("visual_encoder", "text_encoder", "fusion_encoder", "text_decoder"):
            found |= {f"{part}_m{name.removeprefix(part)}": shape for name, shape in found.items() if _in(name, part)}
    return found


def official_state(sizes: Sizes, *, seed: int = 0, distilled: bool = False) -> dict[str, torch.Tensor]:
    """Random float64 weights in the fine-tuned layout, large enough that no layer is nearly linear."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.arange(shape[1])[None] if name.endswith("position_ids") else _random(name, shape, generator)
        for name, shape in shapes(sizes, distilled=distilled).items()
    }
    for part in ("text_decoder", "text_decoder_m"):
        if f"{part}.cls.predictions.bias" in state:
            state[f"{part}.cls.predictions.decoder.weight"] = state[f"{part}.bert.embeddings.word_embeddings.weight"]
            state[f"{part}.cls.predictions.decoder.bias"] = state[f"{part}.cls.predictions.bias"]
    return state


def as_pretraining(state: dict[str, torch.Tensor], fusion_level: str = "fusion") -> dict[str, torch.Tensor]:
    """The layout of a pre-training file: a level more in text encoder and fusion, heads, projections and queues."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("text_encoder.", "text_encoder.bert.")
        renamed[name.replace("fusion_encoder.", f"fusion_encoder.{fusion_level}.")] = value
    width = state["text_decoder.bert.embeddings.LayerNorm.bias"].shape[0]
    for name in ("vision_proj", "text_proj", "vision_proj_m", "text_proj_m", "itm_head"):
        renamed |= {f"{name}.weight": torch.zeros(2, width), f"{name}.bias": torch.zeros(2)}
    for name in ("temp", "image_queue", "text_queue", "idx_queue"):
        renamed[name] = torch.zeros(3)
    renamed["queue_ptr"] = torch.zeros(1, dtype=torch.long)
    for part in ("text_encoder", "fusion_encoder"):
        renamed[f"{part}.cls.predictions.bias"] = torch.zeros(4)
        renamed[f"{part}.cls.predictions.transform.dense.weight"] = torch.zeros(4, 4)
    return renamed


def as_modelscope(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{name}": value for name, value in state.items()}


def _in(name: str, part: str) -> bool:
    return name.startswith(f"{part}.")


def _random(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    value = torch.randn(shape, generator=generator, dtype=torch.float64)
    norm = "LayerNorm.weight" in name or (".ln_" in name and name.endswith("weight"))
    return 1 + 0.3 * value if norm else 0.5 * value


def _parts(s: Sizes) -> Iterator[tuple[str, Shape]]:
    visual = "visual_encoder.visual"
    yield f"{visual}.class_embedding", (s.vision_width,)
    yield f"{visual}.positional_embedding", (1 + s.grid**2, s.vision_width)
    yield f"{visual}.conv1.weight", (s.vision_width, 3, s.patch, s.patch)
    for norm in ("ln_pre", "ln_post"):
        yield from _norm(f"{visual}.{norm}", s.vision_width)
    yield f"{visual}.proj", (s.vision_width, s.projection)
    yield from _clip_blocks(visual, s.vision_layers, s.vision_width, s.vision_hidden)
    yield from _clip_blocks("visual_encoder", s.clip_layers, s.clip_width, 4 * s.clip_width)
    yield "visual_encoder.token_embedding.weight", (s.clip_words, s.clip_width)
    yield "visual_encoder.positional_embedding", (s.clip_positions, s.clip_width)
    yield from _norm("visual_encoder.ln_final", s.clip_width)
    yield "visual_encoder.text_projection", (s.clip_width, s.projection)
    yield "visual_encoder.logit_scale", ()
    if s.vision_width != s.width:
        yield from _linear("visn_fc", s.vision_width, s.width)
        yield from _norm("visn_layer_norm", s.width)
    yield from _bert(s, "text_encoder", s.text_layers, cross=False)
    yield from _bert(s, "fusion_encoder", s.fusion_built, cross=True)
    yield from _bert(s, "text_decoder.bert", s.decoder_layers, cross=True)
    head = "text_decoder.cls.predictions"
    yield f"{head}.bias", (s.words,)
    yield from _linear(f"{head}.transform.dense", s.width, s.width)
    yield from _norm(f"{head}.transform.LayerNorm", s.width)
    yield from _linear(f"{head}.decoder", s.width, s.words)


def _clip_blocks(prefix: str, layers: int, width: int, hidden: int) -> Iterator[tuple[str, Shape]]:
    for i in range(layers):
        block = f"{prefix}.transformer.resblocks.{i}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_1", width)
        yield from _linear(f"{block}.mlp.c_fc", width, hidden)
        yield from _linear(f"{block}.mlp.c_proj", hidden, width)
        yield from _norm(f"{block}.ln_2", width)


def _bert(s: Sizes, prefix: str, layers: int, *, cross: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.embeddings.position_ids", (1, s.positions)
    yield f"{prefix}.embeddings.word_embeddings.weight", (s.words, s.width)
    yield f"{prefix}.embeddings.position_embeddings.weight", (s.positions, s.width)
    yield f"{prefix}.embeddings.token_type_embeddings.weight", (s.type_words, s.width)
    yield from _norm(f"{prefix}.embeddings.LayerNorm", s.width)
    for i in range(layers):
        layer = f"{prefix}.encoder.layer.{i}"
        for attention in ("attention", "crossattention") if cross else ("attention",):
            for name in ("query", "key", "value"):
                yield from _linear(f"{layer}.{attention}.self.{name}", s.width, s.width)
            yield from _linear(f"{layer}.{attention}.output.dense", s.width, s.width)
            yield from _norm(f"{layer}.{attention}.output.LayerNorm", s.width)
        yield from _linear(f"{layer}.intermediate.dense", s.width, s.hidden)
        yield from _linear(f"{layer}.output.dense", s.hidden, s.width)
        yield from _norm(f"{layer}.output.LayerNorm", s.width)


def _linear(name: str, before: int, after: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (after, before)
    yield f"{name}.bias", (after,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
