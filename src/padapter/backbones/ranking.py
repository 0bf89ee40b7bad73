"""Log-likelihood of many continuations of a cached prompt, each beginning that they share computed once.

The candidates of a row form trees: "a red dog" and "a red cat" are one path up to "red". The tokens of a tree are read
in one pass as if they were one text. The mask shows each of them the prompt and its own path, and its position is its
depth, so that it sees exactly what it would see in a text of its own. Nothing is padded but the difference in size
between the trees of a batch, and image and prompt are there once per row, not once per candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import EncoderDecoderCache

from padapter.backbones.sequences import IGNORE, pad_right

PASS_TOKENS = 512
"""Tokens read in one forward pass, over all its rows."""

TREE_TOKENS = 512
"""Tokens of one tree, unless a single candidate has more: attention grows with their square, while products of few rows
take longer per row."""


class Tree(NamedTuple):
    """Some candidates of a row, merged where they begin alike; T nodes, C candidates of at most L tokens.

    Attributes:
        candidates: their indices.
        tokens: (T,) token of every node.
        depths: (T,) how many tokens stand before it.
        paths: (T, T) boolean, whether node j lies on the path to node i; a node lies on its own.
        nodes: (C, L) the nodes of every candidate, 0 where it has no more.
        labels: (C, L) what must follow each of them, the end token at last; -100 where there is no more.
    """

    candidates: list[int]
    tokens: torch.Tensor
    depths: torch.Tensor
    paths: torch.Tensor
    nodes: torch.Tensor
    labels: torch.Tensor


def first_choices(first: torch.Tensor, k: int | None) -> torch.Tensor:
    """Return the indices, in list order, of the k candidates with the likeliest first token.

    Args:
        first: (C,) log-probability of each candidate's first token.
        k: How many to keep; ``None`` or more than C keeps all.

    Returns:
        Sorted indices; among equals the earlier candidate is kept.
    """
    order = torch.sort(first, descending=True, stable=True).indices
    return torch.sort(order[:k]).values


def plant(candidates: Sequence[Sequence[int]], chosen: Sequence[int], end: int) -> list[Tree]:
    """Put candidates into trees of at most ``TREE_TOKENS`` tokens.

    Args:
        candidates: Token sequences, none empty.
        chosen: Indices of those to score.
        end: Id of the end token.

    Returns:
        Trees that hold every chosen candidate once; neighbours in alphabetical order of tokens share a tree.
    """
    groups: list[list[int]] = []
    size, before = 0, tuple[int, ...]()
    for index in sorted(chosen, key=lambda index: tuple(candidates[index])):
        tokens = tuple(candidates[index])
        new = len(tokens) - _shared(before, tokens)
        if not groups or size + new > TREE_TOKENS:
            groups.append([])
            size, new = 0, len(tokens)
        groups[-1].append(index)
        size, before = size + new, tokens
    return [_tree([candidates[index] for index in group], group, end) for group in groups]


def passes(rows: Sequence[Sequence[Tree]]) -> Iterator[tuple[slice, list[Tree]]]:
    """Group the trees of all rows into forward passes of about ``PASS_TOKENS`` tokens.

    Args:
        rows: The trees of each row.

    Yields:
        Consecutive rows, and one tree for each of them.
    """
    for turn in range(max(map(len, rows), default=0)):
        start, batch = 0, list[Tree]()
        for row, trees in enumerate(rows):
            if turn >= len(trees):
                continue
            widest = max(len(tree.tokens) for tree in (*batch, trees[turn]))
            if batch and (start + len(batch) != row or (len(batch) + 1) * widest > PASS_TOKENS):
                yield slice(start, start + len(batch)), batch
                batch = []
            start = start if batch else row
            batch.append(trees[turn])
        yield slice(start, start + len(batch)), batch


def continuation_log_probs(
    decoder: Any,
    cache: EncoderDecoderCache,
    mask: torch.Tensor,
    trees: Sequence[Tree],
    encoder: Mapping[str, torch.Tensor | None],
    pad: int,
) -> list[torch.Tensor]:
    """Sum the log-probabilities of what follows the first token of every candidate.

    Args:
        decoder: Decoder with a language-model head and cross-attention.
        cache: What the prompts of R rows left behind; grows by the tokens of the trees.
        mask: (R, P) attention mask of these (left-padded) prompts.
        trees: One tree for each row.
        encoder: the decoder's arguments about what it attends to: ``encoder_hidden_states`` (R, N, d), and
            ``encoder_attention_mask`` (R, N) or None.
        pad: Id that fills up the inputs.

    Returns:
        (C,) log-probabilities for each row's tree.
    """
    device, width = mask.device, max(len(tree.tokens) for tree in trees)
    tokens = torch.full((len(trees), width), pad)
    depths = torch.zeros_like(tokens)
    paths = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself, and nobody sees it
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size], depths[row, :size], paths[row, :size, :size] = tree.tokens, tree.depths, tree.paths
    seen = torch.cat([mask.bool().unsqueeze(1).expand(-1, width, -1), paths.to(device)], dim=2)  # (R, T, P + T)
    logits = decoder(
        input_ids=tokens.to(device),
        attention_mask=_additive(seen, decoder.dtype),
        position_ids=mask.sum(dim=1, keepdim=True) + depths.to(device),
        **encoder,
        past_key_values=cache,
        use_cache=True,
    ).logits  # (R, T, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    normalisers = logits.logsumexp(dim=-1)  # (R, T)
    found = []
    for row, tree in enumerate(trees):
        nodes, labels = tree.nodes.to(device), tree.labels.to(device)
        log_probs = logits[row, nodes, labels.clamp_min(0)] - normalisers[row, nodes]  # (C, L)
        found.append(log_probs.masked_fill(labels == IGNORE, 0.0).sum(dim=1))
    return found


def _tree(texts: Sequence[Sequence[int]], indices: list[int], end: int) -> Tree:
    places: dict[tuple[int, ...], int] = {}  # the path to a node -> the node
    for text in texts:
        for depth in range(1, len(text) + 1):
            places.setdefault(tuple(text[:depth]), len(places))
    paths = torch.zeros(len(places), len(places), dtype=torch.bool)
    pairs = [(node, places[path[:depth]]) for path, node in places.items() for depth in range(1, len(path) + 1)]
    paths[tuple(torch.tensor(pairs).T)] = True
    return Tree(
        candidates=indices,
        tokens=torch.tensor([path[-1] for path in places]),
        depths=torch.tensor([len(path) - 1 for path in places]),
        paths=paths,
        nodes=pad_right([[places[tuple(text[:depth])] for depth in range(1, len(text) + 1)] for text in texts], 0),
        labels=pad_right([[*text[1:], end] for text in texts], IGNORE),
    )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(R, 1, T, K) mask as a decoder adds it to its scores, from what each token sees (R, T, K)."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
