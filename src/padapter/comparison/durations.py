"""How long a comparison may take, from measured steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from padapter.comparison.cells import Cell, Key, settings_of
from padapter.comparison.measure import Cost, extrapolate
from padapter.comparison.splits import Split, SplitName

HOUR = 3600


@dataclass(frozen=True)
class Duration:
    """How long all runs of a cell may take on the machine that measured a step.

    Attributes:
        cell: the cell.
        seconds: of all its runs; ``None`` if unknown.
        found: what the number was made of, or why there is none.
    """

    cell: Cell
    seconds: float | None
    found: str

    def line(self) -> str:
        """What was found, as text."""
        name = f"{self.cell.benchmark}, {self.cell.label or self.cell.method}{' (tuning)' * self.cell.tuning}"
        return f"{name}: {'unknown' if self.seconds is None else _hours(self.seconds)}: {self.found}"


def duration_of(
    cell: Cell, sized: Mapping[Key, Any], costs: Mapping[Key, Cost | str], splits: Mapping[SplitName, Split]
) -> Duration:
    """The time of all runs of a cell, scoring left out."""
    options, key = cell.train_options, settings_of(cell)
    if key not in sized:
        return Duration(cell, None, "the model's sizes are not known")
    cost = costs[key]
    if isinstance(cost, str):
        return Duration(cell, None, "its step was not measured")
    split = splits[(options.train, options.train_split, options.task)]
    estimate = extrapolate(cost, options, split.rows or None, split.sequences or 1.0)
    if estimate is None:
        return Duration(cell, None, f"the rows of {split.spec} [{split.name}] are not known")
    texts = (
        f"{split.sequences:.2f} texts per row" if split.sequences else "1 text per row assumed, the data are not known"
    )
    runs = f"{cell.runs} run{'s' * (cell.runs > 1)}"
    return Duration(cell, cell.runs * estimate[1], f"{runs} of {estimate[0]:,} steps, {texts}")


def duration_lines(durations: Sequence[Duration]) -> list[str]:
    """The durations of all cells as lines of text, their sum last."""
    known = [item.seconds for item in durations if item.seconds is not None]
    left_out = len(durations) - len(known)
    total = f"{_hours(sum(known))} for all" if known else "unknown"
    if left_out:
        total += f"{' that are known' * bool(known)}; {left_out} of {len(durations)} are not known"
    return [
        "training time on this machine's CPU, extrapolated: the measured steps times rows and texts, not a run.",
        "Loading data, scoring and checkpoints are left out; other hardware differs by orders of magnitude.",
        *(f"  {item.line()}" for item in durations),
        f"  in all: {total}",
    ]


def _hours(seconds: float) -> str:
    hours = seconds / HOUR
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"
