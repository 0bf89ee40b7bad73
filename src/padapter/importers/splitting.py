"""Which rows go to which split, so that no picture stands on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def split_rows(keys: Sequence[tuple[str, ...]], shares: Mapping[str, float], seed: int) -> list[str]:
    """Choose a split for every row.

    Rows that have a key in common, directly or through other rows, form a group and stay together. Groups are put in
    an order that depends on their keys and the seed alone, not on the order of rows; the first ones make the splits of
    ``shares`` and the others ``train``. Each share is rounded to whole groups, at least one; where that would leave
    nothing for training, or there are fewer than two groups for each share, everything is training.

    Args:
        keys: The keys of each row, such as the content of its picture; at least one each.
        shares: Share of the groups by split; together below 1.
        seed: Another seed, another choice.

    Returns:
        The name of a split for each row.
    """
    groups = _groups(keys)
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    sizes = {split: max(1, round(share * len(order))) for split, share in shares.items() if share > 0}
    if sum(sizes.values()) >= len(order) or len(order) < 2 * len(sizes):
        return ["train"] * len(keys)
    names = [split for split, size in sizes.items() for _ in range(size)]
    chosen = dict(zip(order, names, strict=False))
    return [chosen.get(group, "train") for group in groups]


def _groups(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """The group of each row, named by the least of its keys."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for first, *others in keys:
        for other in others:
            high, low = sorted((root(first), root(other)), reverse=True)
            parent[high] = low  # the least key stays the root
    return [root(first) for first, *_ in keys]
