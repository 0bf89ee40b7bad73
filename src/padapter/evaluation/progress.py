"""A progress bar on standard error, or silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports that ``count`` more items are done, with an optional note beside the bar."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Advance by ``count``."""


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False, done: int = 0) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        title: what is counted.
        total: how many items there are.
        quiet: show nothing.
        done: items already done when the block starts.

    Yields:
        A function to call for every item done.
    """
    if quiet:
        yield lambda count=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(count: int = 1, note: str = "") -> None:
            if note:
                bar.update(task, note=note)
            bar.advance(task, count)

        yield advance
