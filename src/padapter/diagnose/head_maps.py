"""Maps of single heads on the page: of which layers, and of how many nodes, so that page and time stay bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from padapter.errors import UserError

#: Maps of heads that a page has room for, and nodes on all of them together.
MOST_MAPS = 100
NODES = 12_000
ALL = "all"


class HasHeads(Protocol):
    """An attention module."""

    @property
    def name(self) -> str:
        """Full name."""

    @property
    def index(self) -> int | None:
        """The number of its layer."""

    @property
    def heads(self) -> int:
        """H."""


def chosen(wanted: str, modules: Sequence[HasHeads]) -> list[str]:
    """Names of the modules that get maps of their heads.

    Args:
        wanted: "all", or numbers of layers with commas between them.
        modules: those that are looked at.

    Raises:
        UserError: for anything else, for a layer that is not there, and if these are too many maps.
    """
    numbers = None if wanted.strip() == ALL else _numbers(wanted)
    known = sorted({module.index for module in modules if module.index is not None})
    unknown = sorted(set(numbers or ()) - set(known))
    if unknown:
        raise UserError(
            f"--head-maps: no layer {', '.join(map(str, unknown))} is looked at; there are layers "
            f"{', '.join(map(str, known))} (--where chooses others)"
        )
    found = [module for module in modules if numbers is None or module.index in numbers]
    count = sum(module.heads for module in found)
    if count > MOST_MAPS:
        raise UserError(
            f"--head-maps: {wanted} means {count} maps, and a page has room for {MOST_MAPS}; name fewer layers"
        )
    return [module.name for module in found]


def check(wanted: str) -> None:
    """Refuse what is neither "all" nor numbers.

    Raises:
        UserError: as it says.
    """
    if wanted.strip() != ALL:
        _numbers(wanted)


def nodes_each(layers: Sequence[HasHeads]) -> int | None:
    """How many query nodes, and how many value nodes, each map of a head shows per state; None for no limit."""
    count = sum(layer.heads for layer in layers)
    return NODES // (4 * count) if count else None


def _numbers(wanted: str) -> set[int]:
    try:
        return {int(number) for number in wanted.split(",")}
    except ValueError as problem:
        raise UserError(f"--head-maps: expected all, or numbers with commas between them, got {wanted!r}") from problem
