"""The same budget for every method: the size at which a method trains the wanted share of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from padapter.comparison.counting import Count, SkeletonFactory, count
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.methods.base import Size

LARGEST = 1 << 16
"""No size is tried beyond this."""
GAP = 64
"""So many sizes in a row may be invalid, e.g. because a width must be a multiple of the number of heads."""


@dataclass(frozen=True)
class Sized:
    """A method at the size that was found.

    Attributes:
        label: what people call the method.
        method: its name.
        options: its options, the size set.
        knob: name of the option that sets the size; empty for a method without one.
        size: its value; ``None`` for a method without one.
        count: its parameters.
    """

    label: str
    method: str
    options: dict[str, Any]
    knob: str
    size: int | None
    count: Count

    def cells(self) -> tuple[str, str, str, str, str]:
        """A row of a table: label, size, trainable parameters, share of all, share of the base model."""
        size = f"{self.knob}={self.size}" if self.knob else "fixed"
        share, of_base = f"{100 * self.count.fraction:.3f} %", f"{100 * self.count.fraction_of_base:.3f} %"
        return self.label, size, f"{self.count.trainable:,}", share, of_base


COLUMNS = ("method", "size", "trainable", "of all", "of the base model")


def match(
    method: str,
    values: Mapping[str, Any],
    skeletons: SkeletonFactory,
    *,
    target_fraction: float | None = None,
    target_count: int | None = None,
) -> dict[str, Any]:
    """The options of a method at the size nearest to a budget; see :func:`find_size`.

    Raises:
        UserError: if the method has no size that could be chosen, or no size fits the model.
    """
    return find_size(method, values, skeletons, target_fraction=target_fraction, target_count=target_count).options


def find_size(
    method: str,
    values: Mapping[str, Any],
    skeletons: SkeletonFactory,
    *,
    target_fraction: float | None = None,
    target_count: int | None = None,
    label: str = "",
) -> Sized:
    """Find the size whose number of trainable parameters is nearest to a budget; of two equally near, the smaller.

    Args:
        method: name of the method.
        values: its options; a size among them is replaced.
        skeletons: makes the model, see :func:`padapter.comparison.counting.skeletons_of`.
        target_fraction: wanted share of trainable parameters in all, adapters included.
        target_count: wanted number of trainable parameters; give one of the two.
        label: what people call the method; default its name.

    Raises:
        UserError: if the method has no size that could be chosen, or no size fits the model.
    """
    if (target_fraction is None) == (target_count is None):
        raise ValueError("give either target_fraction or target_count")
    if target_fraction is not None and not 0 < target_fraction < 1:
        raise UserError(f"budget: a share of trainable parameters lies between 0 and 1, not {target_fraction}.")
    if target_count is not None and target_count < 1:
        raise UserError(f"budget: a number of trainable parameters is at least 1, not {target_count}.")
    chosen = get_method(method)
    if chosen.size is None:
        raise UserError(f"budget: method '{chosen.name}' has no size that could be chosen; leave it out of the budget.")
    width = int(skeletons("meta").base_model.config.get_text_config().hidden_size)
    search = _Search(
        chosen.size,
        lambda size: count(method, chosen.sized(values, size, width), skeletons),
        lambda found: found.trainable - target_count if target_count else found.fraction - (target_fraction or 0),
    )
    size = search.nearest()
    options = chosen.sized(values, size, width)
    return Sized(label or method, method, options, chosen.size.name, size, search.counts[size])


def table(
    methods: Mapping[str, tuple[str, Mapping[str, Any]]],
    skeletons: SkeletonFactory,
    *,
    target_fraction: float | None = None,
    target_count: int | None = None,
) -> list[Sized]:
    """Every method at the size nearest to a budget; those without a size as they are.

    Args:
        methods: label -> (name, options).
        skeletons: makes the model.
        target_fraction: see :func:`find_size`.
        target_count: see there. With neither, every method is counted at the size it was given.
    """
    found = []
    for label, (method, values) in methods.items():
        if get_method(method).size is None or (target_fraction is None and target_count is None):
            found.append(Sized(label, method, dict(values), "", None, count(method, values, skeletons)))
        else:
            budget = {"target_fraction": target_fraction, "target_count": target_count}
            found.append(find_size(method, values, skeletons, label=label, **budget))  # type: ignore[arg-type]
    return found


def lines(rows: Sequence[Sized]) -> list[str]:
    """The rows as aligned text with a heading."""
    cells: list[Sequence[str]] = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    aligned = []
    for line in cells:
        texts = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        numbers = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        aligned.append("  ".join([*texts, *numbers]).rstrip())
    return aligned


class _Search:
    """Bisection over the valid sizes; the number of parameters grows with the size."""

    def __init__(self, knob: Size, counted: Callable[[int], Count], excess: Callable[[Count], float]) -> None:
        self.knob = knob
        self.counted = counted
        self.excess = excess
        self.counts: dict[int, Count] = {}
        self.invalid: dict[int, UserError] = {}

    def nearest(self) -> int:
        low = self._valid(self.knob.low, LARGEST)
        if low is None:
            raise self.invalid[min(self.invalid)]
        high: int | None = low
        while high is not None and self._over(high) < 0:
            low, high = high, self._valid(2 * high, LARGEST)
        end = 2 * low if high is None else high
        while end - low > 1:
            middle = self._valid((low + end) // 2, end)
            if middle is not None and self._over(middle) < 0:
                low = middle
            else:
                end = (low + end) // 2 if middle is None else middle
        best = min(self.counts, key=lambda size: (abs(self._over(size)), size))
        # Some methods round their size: of several that mean the same, the smallest.
        while best > self.knob.low and self._valid(best - 1, best) and self.counts[best - 1] == self.counts[best]:
            best -= 1
        return best

    def _over(self, size: int) -> float:
        return self.excess(self.counts[size])

    def _valid(self, size: int, end: int) -> int | None:
        """The first size from ``size`` to before ``end`` that the method takes."""
        for tried in range(size, min(size + GAP, end)):
            if tried not in self.counts and tried not in self.invalid:
                try:
                    self.counts[tried] = self.counted(tried)
                except UserError as error:
                    self.invalid[tried] = error
            if tried in self.counts:
                return tried
        return None
