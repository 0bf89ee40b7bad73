"""Checkpoints in the layout of the official BLIP code, made from a table of names and shapes, with random weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import WORDS

PARTS = {
    "pretraining": ("visual_encoder", "text_encoder", "text_decoder"),
    "captioning": ("visual_encoder", "text_decoder"),
    "vqa": ("visual_encoder", "text_encoder", "text_decoder"),
}


@dataclass(frozen=True)
class Sizes:
    """Those of the tiny model of these tests; `PUBLISHED` are those of BLIP base."""

    vision: int = 128
    vision_mlp: int = 96
    vision_layers: int = 2
    text: int = 64
    text_mlp: int = 80
    text_layers: int = 2
    patch: int = 4
    grid: int = 3
    words: int = len(WORDS) + 2
    positions: int = 24
    projection: int = 16
    queue: int = 12


PUBLISHED = Sizes(768, 3072, 12, 768, 3072, 12, 16, 14, 30524, 512, 256, 57600)


def pair(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def image_tower(s: Sizes) -> dict[str, tuple[int, ...]]:
    shapes = {"cls_token": (1, 1, s.vision), "pos_embed": (1, s.grid**2 + 1, s.vision)}
    shapes |= pair("patch_embed.proj", s.vision, 3, s.patch, s.patch)
    for i in range(s.vision_layers):
        shapes |= pair(f"blocks.{i}.norm1", s.vision) | pair(f"blocks.{i}.norm2", s.vision)
        shapes |= pair(f"blocks.{i}.attn.qkv", 3 * s.vision, s.vision)
        shapes |= pair(f"blocks.{i}.attn.proj", s.vision, s.vision)
        shapes |= pair(f"blocks.{i}.mlp.fc1", s.vision_mlp, s.vision)
        shapes |= pair(f"blocks.{i}.mlp.fc2", s.vision, s.vision_mlp)
    return shapes | pair("norm", s.vision)


def bert(s: Sizes, cross: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "embeddings.position_ids": (1, s.positions),
        "embeddings.word_embeddings.weight": (s.words, s.text),
        "embeddings.position_embeddings.weight": (s.positions, s.text),
        **pair("embeddings.LayerNorm", s.text),
    }
    for i in range(s.text_layers):
        layer = f"encoder.layer.{i}"
        for part, width in (("attention", s.text), ("crossattention", cross)):
            shapes |= pair(f"{layer}.{part}.self.query", s.text, s.text)
            shapes |= pair(f"{layer}.{part}.self.key", s.text, width) | pair(
                f"{layer}.{part}.self.value", s.text, width
            )
            shapes |= pair(f"{layer}.{part}.output.dense", s.text, s.text)
            shapes |= pair(f"{layer}.{part}.output.LayerNorm", s.text)
        shapes |= pair(f"{layer}.intermediate.dense", s.text_mlp, s.text)
        shapes |= pair(f"{layer}.output.dense", s.text, s.text_mlp) | pair(f"{layer}.output.LayerNorm", s.text)
    return shapes


def below(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def shapes_of(kind: str, s: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every entry of one kind of file."""
    head = "text_decoder.cls.predictions"
    read = s.text if kind == "vqa" else s.vision  # what the decoder looks at: states of the question, or of the image
    shapes = below("visual_encoder", image_tower(s)) | below("text_decoder.bert", bert(s, read))
    shapes |= pair(f"{head}.transform.dense", s.text, s.text) | pair(f"{head}.transform.LayerNorm", s.text)
    shapes |= {f"{head}.bias": (s.words,)} | pair(f"{head}.decoder", s.words, s.text)
    if "text_encoder" in PARTS[kind]:
        shapes |= below("text_encoder", bert(s, s.vision))
    if kind == "pretraining":
        shapes |= below("visual_encoder_m", image_tower(s)) | below("text_encoder_m", bert(s, s.vision))
        for m in ("", "_m"):
            shapes |= pair(f"vision_proj{m}", s.projection, s.vision) | pair(f"text_proj{m}", s.projection, s.text)
        shapes |= pair("itm_head", 2, s.text) | {"temp": (), "queue_ptr": (1,)}
        shapes |= {f"{side}_queue": (s.projection, s.queue) for side in ("image", "text")}
    return shapes


def official(kind: str, s: Sizes = Sizes(), *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Random weights under the official names, tied where the official code ties."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes_of(kind, s).items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(s.positions)[None]
        elif name == "queue_ptr":
            state[name] = torch.zeros(1, dtype=torch.long)
        else:
            value = torch.randn(shape, generator=random, dtype=torch.float64)
            if name.endswith(".weight") and len(shape) == 1:
                value = 1 + 0.2 * value
            elif name.endswith(".weight") and len(shape) > 1 and "embeddings" not in name:
                value = value * 1.5 / value[0].numel() ** 0.5
            else:
                value = 0.5 * value
            state[name] = value.to(dtype)
    head = "text_decoder.cls.predictions"
    state[f"{head}.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state[f"{head}.decoder.bias"] = state[f"{head}.bias"]
    if kind == "pretraining":
        for name in state:
            if name.startswith("text_encoder.") and ".attention." not in name:
                state[name] = state["text_decoder.bert." + name.removeprefix("text_encoder.")]
    return state


def save(path: Path, state: dict, **others) -> str:
    torch.save({"model": state, **others}, path)
    return str(path)


def write_vocabulary(path: Path, words: list[str] = WORDS) -> str:
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return str(path)
