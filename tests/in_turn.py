"""Which variants of a test with many belong to the fast run: `@pytest.mark.in_turn("axis", ...)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")


def chosen(groups: Sequence[Sequence[T]], start: int = 0) -> list[T]:
    """One of each group: the first of the first, the second of the second and so on, round and round.

    With groups of n and at least n of them, everything that stands at any place of a group is chosen at least once.

    Args:
        groups: what to choose from; empty ones are passed over.
        start: the place of what is chosen from the first group.
    """
    return [group[(start + number) % len(group)] for number, group in enumerate(filter(None, groups))]


def mark_the_others_slow(items: Sequence[pytest.Item]) -> None:
    """Mark as slow what the marker ``in_turn`` leaves out of the fast run.

    Variants of a test that differ in nothing but the axes that the marker names form a group, and one of each group
    stays. So every value of every other axis stays, and the named axes take all their values in turn.
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
        stay = chosen(list(variants.values()), **markers[test].kwargs)
        for group in variants.values():
            for item in group:
                if item not in stay:
                    item.add_marker(pytest.mark.slow)
