"""Progress of a whole comparison: runs done, and how far every running one has come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from padapter.comparison.records import RunRecord
from padapter.comparison.slots import Running

Watch = Callable[[Mapping[str, RunRecord], Sequence[Running]], None]
_TAIL_BYTES = 4096


@contextmanager
def watching(
    title: str, total: int, done: int, folder: Path, steps: Callable[[str], int], quiet: bool
) -> Iterator[Watch]:
    """Show one bar for the runs and one for each that is running.

    Args:
        title: what the runs are for.
        total: number of runs.
        done: how many were finished before.
        folder: where the runs' folders are.
        steps: job name -> optimizer steps, 0 where unknown.
        quiet: show nothing.

    Yields:
        A function for `padapter.comparison.runner.Runner.execute`.
    """
    if quiet:
        yield lambda records, running: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        # Of the finished runs; those of earlier calls say nothing about the speed of this one.
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        whole = bars.add_task(title, total=total, completed=done, note="")
        shown: dict[str, Any] = {}

        def watch(records: Mapping[str, RunRecord], running: Sequence[Running]) -> None:
            bars.update(whole, completed=len(records))
            names = {child.name for child in running}
            for name in [name for name in shown if name not in names]:
                bars.remove_task(shown.pop(name))
            for name in sorted(names):
                if name not in shown:
                    shown[name] = bars.add_task(f"  {name}", total=steps(name) or None, note="")
                step, note = last_step(folder / name / "log.jsonl")
                bars.update(shown[name], completed=step, note=note)

        yield watch


def last_step(log: Path) -> tuple[int, str]:
    """The step that a run's log has reached, and its loss as text; 0 before the first line."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return 0, "starting"
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            return int(entry["step"]), f"loss {entry['loss']:.3f}" if "loss" in entry else ""
        except (ValueError, KeyError, TypeError):
            continue
    return 0, "starting"
