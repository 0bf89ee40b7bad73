"""Which variants of a test with many belong to the fast run: `@pytest.mark.in_turn("axis", ...)`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")


def chosen(groups: Mapping[tuple[str, ...], Sequence[T]], start: int = 0) -> list[T]:
    """One of each group, going round along every axis of the groups, as in a Latin square.

    With groups of n, an axis of at least n values meets everything that stands at any place of a group, whatever the
    values of the other axes.

    Args:
        groups: what to choose from, by the values of the axes.
        start: the place of what is chosen from the first group.
    """
    turns: defaultdict[int, dict[str, int]] = defaultdict(dict)
    kept = []
    for values, group in groups.items():
        turn = sum(turns[axis].setdefault(value, len(turns[axis])) for axis, value in enumerate(values))
        kept.append(group[(start + turn) % len(group)])
    return kept


def mark_the_others_slow(items: Sequence[pytest.Item]) -> None:
    """Mark as slow what the marker ``in_turn`` leaves out of the fast run.

    Variants of a test that differ in nothing but the axes that the marker names form a group, and one of each group
    stays. So every combination of the other axes stays, and the named ones take all their values in turn.
    """
    groups: dict[tuple[str, str], dict[tuple[str, ...], list[pytest.Item]]] = {}
    markers: dict[tuple[str, str], pytest.Mark] = {}
    for item in items:
        marker = item.get_closest_marker("in_turn")
        if marker is None or item.get_closest_marker("slow") is not None:
            continue
        test = (str(item.path), item.originalname)
        rest = tuple(f"{axis}={value!r}" for axis, value in item.callspec.params.items() if axis not in marker.args)
        groups.setdefault(test, {}).setdefault(rest, []).append(item)
        markers[test] = marker
        unknown = set(marker.args) - item.callspec.params.keys()
        if unknown or not marker.args:
            raise pytest.UsageError(f"{item.nodeid}: in_turn names no parameter: {sorted(unknown)}")
    for test, variants in groups.items():
        stay = chosen(variants, **markers[test].kwargs)
        for group in variants.values():
            for item in group:
                if item not in stay:
                    item.add_marker(pytest.mark.slow)
