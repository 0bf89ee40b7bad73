"""A task as it is before anybody has answered: the fields that the model is given."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.data.schema import Field, asked_fields
from padapter.tasks.base import Row, Task


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


def known_targets(task: Task, row: Row) -> list[tuple[str, float]]:
    """The targets of a row; none where a field that holds answers is missing, as in splits that keep them back."""
    asked = asked_fields(task.fields)
    answers = [spec for spec in task.fields if spec.required and spec not in asked]
    return [] if any(row.get(spec.name) is None for spec in answers) else task.targets(row)
