"""What a task is: fields of its data, a prompt, weighted targets, a closed set of answers if any, and a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from padapter.data.schema import WEIGHT, Field
from padapter.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What a model said about one row.

    Attributes:
        id: The id of the row.
        text: The generated or best ranked text.
        scores: Score per candidate, where candidates were ranked.
    """

    id: str
    text: str
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class GenerationDefaults:
    """How a task's answers are generated; lengths count new tokens only, without the prompt."""

    num_beams: int
    max_new_tokens: int
    min_new_tokens: int = 1
    length_penalty: float | None = None  # that of the model's family, see `padapter.backbones.Backbone.generate`


@dataclass(frozen=True)
class Scores:
    """Scores of a data set: fractions in [0, 1] (CIDEr: [0, 10]), unrounded.

    Attributes:
        metrics: Score by name; the task's ``primary_metric`` is among them.
        rule: The rule that gave them.
        per_item: Score of each row by id.
        details: What stands behind the scores: a confusion matrix, precision and recall of each class.
    """

    metrics: dict[str, float]
    rule: str
    per_item: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """One task. Tasks are frozen dataclasses: change an option with ``dataclasses.replace``.

    Every task has the option ``rule``: the name of the rule that scores, or None for the task's own choice.

    Raises:
        UserError: ``rule`` is none of the task's ``rules``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    primary_metric: ClassVar[str]
    #: Names of the rules that can score this task.
    rules: ClassVar[tuple[str, ...]]
    rule: str | None = None  # a dataclass field of each task
    #: "sequence": weighted sums of token losses per sequence, over images; "token": mean over tokens.
    loss_reduction: ClassVar[Literal["sequence", "token"]]
    generation: ClassVar[GenerationDefaults]
    default_inference: ClassVar[Literal["generate", "rank"]]
    #: Whether prompts ask something of a row's own (a question, a hypothesis); otherwise they only lead in.
    asks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rule is not None and self.rule not in self.rules:
            raise UserError(f"{self.rule!r} is no rule of task {self.name!r}; there are: {', '.join(self.rules)}.")

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """The text that the decoder is given: in training (masked from the loss) and at inference alike."""

    def targets(self, row: Row) -> list[tuple[str, float]]:
        """The distinct texts to learn for a row, with their weights: shares times the row's ``weight`` (1 without)."""
        weight = row.get(WEIGHT.name)
        shares = self.shares(row)
        return shares if weight is None else [(text, share * weight) for text, share in shares]

    @abstractmethod
    def shares(self, row: Row) -> list[tuple[str, float]]:
        """The distinct texts to learn for a row, each with its share in what the row says, or how often it says it."""

    def led_by(self, lead_in: str | None) -> Task:
        """The task for a model that is used to a lead-in of its own.

        Args:
            lead_in: what the model's texts follow where nothing is asked; None if it has no habit.

        Returns:
            The task with these words in place of its default ones; itself if it asks, or its words were chosen.
        """
        return self

    def texts(self, row: Row) -> list[str]:
        """All that a row says about its picture: question and answers, hypothesis and label, captions."""
        found: list[str] = []
        for item in self.fields:
            value = row.get(item.name) if item.required else None
            found += [value] if isinstance(value, str) else [text for text in value or () if text]
        return found

    @abstractmethod
    def candidates(self, rows: Iterable[Row]) -> list[str] | None:
        """The closed set of answers to rank, from training rows; None if the task has none."""

    def check_scoring(self) -> None:  # noqa: B027 (most tasks need nothing)
        """Raise at once what :meth:`score` would raise after hours of answering, for want of a package or a program.

        Raises:
            UserError: Something that scoring needs is missing.
        """

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], rows: Iterable[Row]) -> Scores:
        """Score predictions against rows; repeats of an id (padding of a sampler) count once.

        Raises:
            UserError: A row without prediction, or a prediction without row.
        """


def first_by_id(predictions: Sequence[Prediction]) -> dict[str, Prediction]:
    """Predictions by id; the first of several for an id counts."""
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        found.setdefault(prediction.id, prediction)
    return found


def by_id(predictions: Sequence[Prediction]) -> dict[str, str]:
    """Predicted text by id; the first of several predictions for an id counts."""
    return {key: prediction.text for key, prediction in first_by_id(predictions).items()}


def iterate_texts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows; those of a ``datasets`` table come without their pictures, which would be read for nothing."""
    columns = getattr(rows, "column_names", None)
    if columns is not None and "image" in columns:
        rows = rows.remove_columns("image")  # type: ignore[attr-defined]
    yield from rows


def fill(template: str, slot: str, value: str) -> str:
    """Put ``value`` in the place of ``{slot}``; braces elsewhere, and in the value, are text.

    Raises:
        UserError: The template has no such place.
    """
    if f"{{{slot}}}" not in template:
        raise UserError(f"The prompt template {template!r} has no place for the {slot}: write {{{slot}}} in it.")
    return template.replace(f"{{{slot}}}", value)
