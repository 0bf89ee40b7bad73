"""Tell from the fields of a data set which task it is for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from padapter.data.advice import other_columns, similar
from padapter.data.check import DataTask
from padapter.data.schemes import SeveralTasksError, scheme_of
from padapter.data.sources import available_splits, open_source
from padapter.errors import UserError

T = TypeVar("T", bound=DataTask)


def infer_task(spec: str, tasks: Iterable[T], *, split: str | None = None) -> T:
    """Find the one task whose first field (``question``, ``hypothesis``, ``captions`` or ``caption``) the rows have.

    Only the first field decides, so that rows without their answers or labels are still known for what they are, and
    a check can say what they lack.

    Args:
        spec: The data (see ``docs/data.md``).
        tasks: The tasks to choose from.
        split: One split, or None for every split of a folder.

    Returns:
        The task.

    Raises:
        UserError: No task or several fit, or there is nothing to read; the message says what was found.
    """
    known = list(tasks)
    scheme = scheme_of(spec)
    if scheme is not None:
        try:
            name = scheme.task(spec)
        except SeveralTasksError as error:
            raise UserError(f"{error}; {_advice(known)}") from None
        if name is not None:
            return next(task for task in known if task.name == name)
    found = available_splits(spec) if split is None else None
    sources = [open_source(spec, "", split=name) for name in found or [split or "train"]]
    rows = [row for source in sources for row in source.rows]
    present = {str(column) for row in rows if row.values for column in row.values}
    fitting = [task for task in known if {task.fields[0].name, task.fields[0].alias} & present]
    if len(fitting) == 1:
        return fitting[0]
    if not rows:
        reason = "has no rows"
    elif not present:
        unreadable = next((row for row in rows if row.error), None)
        reason = f"no row could be read (line {unreadable.line}: {unreadable.error})" if unreadable else "has no fields"
    else:
        fits = f"it could be {' or '.join(task.name for task in fitting)}" if fitting else "it fits no task"
        reason = f"{fits} by its fields: {', '.join(sorted(present))}"
        if not fitting:
            firsts = [name for task in known for name in (task.fields[0].name, task.fields[0].alias) if name]
            meant = [f"Is {name!r} meant to be {it!r}? Rename it." for name, it in similar(present, firsts).items()]
            advice = " ".join(meant) or other_columns(sources[0].file)
            reason += f". {advice} Or else" if advice else ";"
            raise UserError(f"{spec}: {reason} {_advice(known)}")
    raise UserError(f"{spec}: {reason}; {_advice(known)}")


def _advice(tasks: Iterable[DataTask]) -> str:
    wanted = ", ".join(f"{task.name} ({task.fields[0].title})" for task in tasks)
    return f"name the task with --task. There are: {wanted}."
