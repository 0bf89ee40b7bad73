"""mPLUG computed from its description alone: functions on a checkpoint in the official layout, in its precision.

Nothing here is shared with ``padapter.models.mplug``: no modules, no transformers, no caches, one sequence at a time in
the beam search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def image_features(w: Weights, pixels: torch.Tensor, *, heads: int) -> torch.Tensor:
    """(B, 3, h, w) -> (B, N, d): CLIP's ViT, ln_post on all tokens; for ViT-L the bridge behind it."""
    visual = "visual_encoder.visual"
    kernel = w[f"{visual}.conv1.weight"]
    patch = kernel.shape[-1]
    rows = []
    for image in pixels:
        cells = [
            torch.einsum("dcyx,cyx->d", kernel, image[:, y : y + patch, x : x + patch])
            for y in range(0, image.shape[1], patch)
            for x in range(0, image.shape[2], patch)
        ]
        rows.append(torch.stack([w[f"{visual}.class_embedding"], *cells]))
    x = torch.stack(rows) + w[f"{visual}.positional_embedding"]
    x = norm(w, f"{visual}.ln_pre", x, 1e-5)
    for block in layers_of(w, f"{visual}.transformer.resblocks"):
        packed, bias = w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]
        q, k, v = (norm(w, f"{block}.ln_1", x, 1e-5) @ packed.T + bias).chunk(3, dim=-1)
        x = x + linear(w, f"{block}.attn.out_proj", attention(q, k, v, heads, None))
        hidden = linear(w, f"{block}.mlp.c_fc", norm(w, f"{block}.ln_2", x, 1e-5))
        x = x + linear(w, f"{block}.mlp.c_proj", hidden / (1 + torch.exp(-1.702 * hidden)))
    x = norm(w, f"{visual}.ln_post", x, 1e-5)
    return norm(w, "visn_layer_norm", linear(w, "visn_fc", x), 1e-12) if "visn_fc.weight" in w else x


def text_features(w: Weights, ids: torch.Tensor, mask: torch.Tensor, *, heads: int) -> torch.Tensor:
    """(B, L) -> (B, L, d): the text encoder."""
    x = embed(w, "text_encoder.embeddings", ids)
    for layer in layers_of(w, "text_encoder.encoder.layer"):
        x = self_attend(w, f"{layer}.attention", x, additive(mask), heads)
        x = feed_forward(w, layer, x)
    return x


def fusion(
    w: Weights, t: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, *, heads: int, run: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text states after the last ``run`` of the layers that the file has."""
    built = layers_of(w, "fusion_encoder.encoder.layer")
    for r, layer in enumerate(built[len(built) - run :]):
        if r > 0 and r % stride == 0:
            z = torch.cat([v, t], dim=1)
            both = torch.cat([torch.ones(v.shape[:2], dtype=mask.dtype), mask], dim=1)
            z = feed_forward(w, layer, self_attend(w, f"{layer}.attention", z, additive(both), heads))
            v, t = v + z[:, : v.shape[1]], z[:, v.shape[1] :]
        else:
            t = self_attend(w, f"{layer}.attention", t, additive(mask), heads)
            t = cross_attend(w, f"{layer}.crossattention", t, v, None, heads)
            t = feed_forward(w, layer, t)
    return v, t


def decoder_logits(
    w: Weights, ids: torch.Tensor, states: torch.Tensor, states_mask: torch.Tensor | None, *, heads: int
) -> torch.Tensor:
    """(B, L), (B, N, d) -> (B, L, V); no padding before or between tokens."""
    x = embed(w, "text_decoder.bert.embeddings", ids)
    length = ids.shape[1]
    causal = torch.full((length, length), -1e30, dtype=x.dtype).triu(1)
    read = None if states_mask is None else additive(states_mask)
    for layer in layers_of(w, "text_decoder.bert.encoder.layer"):
        x = self_attend(w, f"{layer}.attention", x, causal, heads)
        x = cross_attend(w, f"{layer}.crossattention", x, states, read, heads)
        x = feed_forward(w, layer, x)
    head = "text_decoder.cls.predictions"
    x = norm(w, f"{head}.transform.LayerNorm", gelu(linear(w, f"{head}.transform.dense", x)), 1e-12)
    return x @ w["text_decoder.bert.embeddings.word_embeddings.weight"].T + w[f"{head}.bias"]


def sequence_losses(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,): cross entropy of each next token that is no padding, summed per sequence."""
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    totals = []
    for row, tokens, kept in zip(log_probs, ids.tolist(), mask.tolist(), strict=True):
        terms = [-row[i - 1, tokens[i]] for i in range(1, len(tokens)) if kept[i]]
        totals.append(torch.stack(terms).sum() if terms else row.new_zeros(()))
    return torch.stack(totals)


def vqa_loss(losses: torch.Tensor, weights: torch.Tensor, images: int) -> torch.Tensor:
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / images


def caption_loss(losses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return losses.sum() / mask[:, 1:].sum()


def beam_search(
    w: Weights,
    states: torch.Tensor,
    states_mask: torch.Tensor | None,
    *,
    heads: int,
    prompt: list[int],
    end: int,
    beams: int,
    alpha: float,
    least: int,
    most: int,
) -> list[tuple[float, list[int]]]:
    """All stored hypotheses of one image (1, N, d), best first, by full recomputation at each step."""
    alive = [(0.0 if k == 0 else -math.inf, prompt) for k in range(beams)]
    stored: list[tuple[float, list[int]]] = []
    for step in range(most):
        candidates = []
        for k, (total, ids) in enumerate(alive):
            logits = decoder_logits(w, torch.tensor([ids]), states, states_mask, heads=heads)[0, -1]
            log_probs = (logits - logits.logsumexp(-1)).tolist()
            if step < least:
                log_probs[end] = -1e20
            penalty = ((5 + step + 1) / 6) ** alpha
            candidates += [((total + value) / penalty, k, token) for token, value in enumerate(log_probs)]
        candidates.sort(key=lambda candidate: -candidate[0])
        best = candidates[:beams]
        alive = [(score * ((5 + step + 1) / 6) ** alpha, alive[k][1] + [token]) for score, k, token in best]
        finished = [token == end or step + 1 == most for _, _, token in best]
        for (score, _, _), (_, ids), over in zip(best, alive, finished, strict=True):
            if over or finished[0]:
                stored.append((score, ids))
        if finished[0]:
            break
    return sorted(stored, key=lambda hypothesis: -hypothesis[0])


def linear(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, N1, d), (B, N2, d) -> (B, N1, d); an additive mask (N1, N2) or (B, 1, N2)."""
    width = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bid,bjd->bij", q[..., part], k[..., part]) / math.sqrt(width)
        if mask is not None:
            scores = scores + mask
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        outputs.append(torch.einsum("bij,bjd->bid", weights / weights.sum(-1, keepdim=True), v[..., part]))
    return torch.cat(outputs, dim=-1)


def cross_attend(
    w: Weights, name: str, x: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None, heads: int
) -> torch.Tensor:
    q = linear(w, f"{name}.self.query", x)
    k, v = (linear(w, f"{name}.self.{which}", states) for which in ("key", "value"))
    out = linear(w, f"{name}.output.dense", attention(q, k, v, heads, mask))
    return norm(w, f"{name}.output.LayerNorm", out + x, 1e-12)


def self_attend(w: Weights, name: str, x: torch.Tensor, mask: torch.Tensor | None, heads: int) -> torch.Tensor:
    return cross_attend(w, name, x, x, mask, heads)


def feed_forward(w: Weights, layer: str, x: torch.Tensor) -> torch.Tensor:
    hidden = gelu(linear(w, f"{layer}.intermediate.dense", x))
    return norm(w, f"{layer}.output.LayerNorm", linear(w, f"{layer}.output.dense", hidden) + x, 1e-12)


def embed(w: Weights, name: str, ids: torch.Tensor) -> torch.Tensor:
    words = w[f"{name}.word_embeddings.weight"][ids]
    positions = w[f"{name}.position_embeddings.weight"][: ids.shape[1]]
    return norm(w, f"{name}.LayerNorm", words + positions + w[f"{name}.token_type_embeddings.weight"][0], 1e-12)


def additive(mask: torch.Tensor) -> torch.Tensor:
    """(B, N), 1 and 0 -> (B, 1, N), 0 and a large negative number."""
    return (1 - mask.double())[:, None] * -1e30


def layers_of(w: Weights, prefix: str) -> list[str]:
    """Names of the layers below a prefix, in order; the first ones may be absent from the file."""
    found = {int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in w if name.startswith(f"{prefix}.")}
    return [f"{prefix}.{i}" for i in range(max(found) + 1)] if found else []
