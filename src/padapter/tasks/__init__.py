"""What is asked of a model: one file per task, one line per task in the registry. No torch."""

from __future__ import annotations

from padapter.errors import UserError
from padapter.tasks.base import GenerationDefaults, Prediction, Scores, Task
from padapter.tasks.caption import CaptionTask
from padapter.tasks.entailment import EntailmentTask
from padapter.tasks.vqa import VqaTask

#: Tasks by name, with their default options.
TASKS: dict[str, Task] = {task.name: task for task in (VqaTask(), EntailmentTask(), CaptionTask())}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: There is none; the message lists those there are.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise UserError(f"Unknown task {name!r}; there are: {', '.join(TASKS)}.") from None


__all__ = [
    "TASKS",
    "CaptionTask",
    "EntailmentTask",
    "GenerationDefaults",
    "Prediction",
    "Scores",
    "Task",
    "VqaTask",
    "get_task",
]
