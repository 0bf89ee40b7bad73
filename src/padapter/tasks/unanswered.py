"""A task as it is before anybody has answered: the fields that the model is given."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.data.schema import Field, asked_fields
from padapter.tasks.base import Task


@dataclass(frozen=True)
class Unanswered:
    """A task as the data reader sees it, without the fields that hold answers.

    Attributes:
        name: of the task.
        fields: those that the model is given.
    """

    name: str
    fields: tuple[Field, ...]


def unanswered(task: Task) -> Unanswered:
    """The task for rows that need no answers."""
    return Unanswered(task.name, asked_fields(task.fields))
