"""BLIP written out as functions of the official weights, in their own precision: nothing of transformers is used."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]
HEAD = 64


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def heads(x: Tensor) -> Tensor:
    """(B, L, C) -> (B, H, L, 64)."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    scores = heads(query) @ heads(key).transpose(-1, -2) / math.sqrt(HEAD)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return (scores.softmax(-1) @ heads(value)).transpose(1, 2).flatten(-2)


def image_states(w: Weights, pixels: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, N, C), class token first."""
    kernel = w["visual_encoder.patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    pieces = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, g, g, patch, patch)
    x = torch.einsum("bcxyij,dcij->bxyd", pieces, kernel).flatten(1, 2) + w["visual_encoder.patch_embed.proj.bias"]
    first = w["visual_encoder.cls_token"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + w["visual_encoder.pos_embed"]
    width, layer = x.shape[-1], 0
    while f"visual_encoder.blocks.{layer}.norm1.weight" in w:
        block = f"visual_encoder.blocks.{layer}"
        query, key, value = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, 1e-6)).split(width, dim=-1)
        x = x + linear(w, f"{block}.attn.proj", attend(query, key, value, None))
        x = x + linear(w, f"{block}.mlp.fc2", gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-6))))
        layer += 1
    return norm(w, "visual_encoder.norm", x, 1e-6)


def text_states(w: Weights, prefix: str, ids: Tensor, states: Tensor, allowed: Tensor) -> Tensor:
    """(B, L) ids and (B, N, C) states to look at -> (B, L, d); ``allowed`` (B, 1, L, L) is of the self-attention."""
    embeddings = f"{prefix}.embeddings"
    x = w[f"{embeddings}.word_embeddings.weight"][ids]
    x = x + w[f"{embeddings}.position_embeddings.weight"][: ids.shape[1]]
    x = norm(w, f"{embeddings}.LayerNorm", x, 1e-12)
    layer = 0
    while f"{prefix}.encoder.layer.{layer}.output.dense.weight" in w:
        here = f"{prefix}.encoder.layer.{layer}"
        for part, source, mask in (("attention", None, allowed), ("crossattention", states, None)):
            other = x if source is None else source
            made = attend(
                linear(w, f"{here}.{part}.self.query", x),
                linear(w, f"{here}.{part}.self.key", other),
                linear(w, f"{here}.{part}.self.value", other),
                mask,
            )
            x = norm(w, f"{here}.{part}.output.LayerNorm", linear(w, f"{here}.{part}.output.dense", made) + x, 1e-12)
        inner = gelu(linear(w, f"{here}.intermediate.dense", x))
        x = norm(w, f"{here}.output.LayerNorm", linear(w, f"{here}.output.dense", inner) + x, 1e-12)
        layer += 1
    return x


def logits(w: Weights, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
    """Decoder: (B, L) ids, (B, L) padding mask, (B, N, C) states -> (B, L, V)."""
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    x = text_states(w, "text_decoder.bert", ids, states, causal & mask.bool()[:, None, None, :])
    head = "text_decoder.cls.predictions"
    x = norm(w, f"{head}.transform.LayerNorm", gelu(linear(w, f"{head}.transform.dense", x)), 1e-12)
    return linear(w, f"{head}.decoder", x)


def token_losses(scores: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """(B, L, V) and (B, L) -> (B, L - 1); zero where the label is -100."""
    logs = scores[:, :-1].log_softmax(-1)
    targets = labels[:, 1:]
    said = logs.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    losses = -(1 - smoothing) * said - smoothing * logs.mean(-1)
    return torch.where(targets == -100, 0.0, losses)


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_matrix(old: int, new: int) -> Tensor:
    """(new, old) weights of cubic convolution: pixel centres aligned, the border repeated, no smoothing beforehand."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[row, min(max(tap, 0), old - 1)] += cubic(centre - tap)
    return weights


def resized_positions(table: Tensor, new: int) -> Tensor:
    old = math.isqrt(table.shape[1] - 1)
    matrix = resize_matrix(old, new)
    grid = torch.einsum("ik,jl,kld->ijd", matrix, matrix, table[0, 1:].double().unflatten(0, (old, old)))
    return torch.cat([table[:, :1].double(), grid.flatten(0, 1)[None]], dim=1)
