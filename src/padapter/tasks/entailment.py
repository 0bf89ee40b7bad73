"""Visual entailment: is a statement about an image right?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from padapter.data.schema import WEIGHT, Field
from padapter.errors import UserError
from padapter.metrics.entailment import ENTAILMENT_RULE, score_entailment
from padapter.tasks.base import GenerationDefaults, Prediction, Row, Scores, Task, by_id, fill, iterate_texts
from padapter.tasks.text import clean_hypothesis


@dataclass(frozen=True)
class EntailmentTask(Task):
    """Judge a hypothesis about an image.

    Labels are names. Those of SNLI-VE are spoken as ``correct``, ``incorrect`` and ``ambiguous``, every other label
    (``true``, ``false``, ...) as it stands.

    Attributes:
        prompt_template: The prompt; ``{hypothesis}`` is lower-case without its final full stop.
        label_words: (label, word) for labels whose word is another.
        rule: ``"label-accuracy"``, the only one, or None.
    """

    prompt_template: str = "Is it correct that {hypothesis} ? "
    label_words: tuple[tuple[str, str], ...] = (
        ("entailment", "correct"),
        ("contradiction", "incorrect"),
        ("neutral", "ambiguous"),
    )
    rule: str | None = None

    name: ClassVar[str] = "entailment"
    summary: ClassVar[str] = "judge whether a statement about an image is right"
    fields: ClassVar[tuple[Field, ...]] = (Field("hypothesis", "text"), Field("label", "label"), WEIGHT)
    primary_metric: ClassVar[str] = "accuracy"
    rules: ClassVar[tuple[str, ...]] = (ENTAILMENT_RULE,)
    loss_reduction: ClassVar[Literal["sequence", "token"]] = "token"
    generation: ClassVar[GenerationDefaults] = GenerationDefaults(num_beams=1, max_new_tokens=8)
    default_inference: ClassVar[Literal["generate", "rank"]] = "rank"

    def prompt(self, row: Row) -> str:
        """The hypothesis as a question."""
        return fill(self.prompt_template, "hypothesis", clean_hypothesis(row["hypothesis"]))

    def shares(self, row: Row) -> list[tuple[str, float]]:
        """The word of the label."""
        return [(self.word(row["label"]), 1.0)]

    def candidates(self, rows: Iterable[Row]) -> list[str]:
        """The words of the labels that occur.

        Raises:
            UserError: Fewer than two labels, or two labels with the same word.
        """
        labels = sorted({row["label"] for row in iterate_texts(rows)})
        if len(labels) < 2:
            raise UserError(f"Entailment needs at least two labels in the training rows; found {labels}.")
        self._labels_by_word(labels)
        return [self.word(label) for label in labels]

    def score(self, predictions: Sequence[Prediction], rows: Iterable[Row]) -> Scores:
        """Accuracy overall and per label; ``details``: precision, recall, F1 per label and the confusion matrix."""
        labels = {row["id"]: row["label"] for row in iterate_texts(rows)}
        # The data's own labels first: "correct" may be one of them, and then it is not another name of "entailment".
        names = {_compact(word): label for label, word in self.label_words}
        names |= self._labels_by_word(sorted(set(labels.values())))
        predicted = {key: names.get(_compact(text), text) for key, text in by_id(predictions).items()}
        scores = score_entailment(predicted, labels)
        metrics = {"accuracy": scores.accuracy}
        metrics |= {f"accuracy[label={label}]": found.recall for label, found in scores.per_class.items()}
        details = {
            "confusion": scores.confusion,
            "per_class": {label: asdict(found) for label, found in scores.per_class.items()},
        }
        return Scores(metrics, scores.rule, scores.per_item, details)

    def word(self, label: str) -> str:
        """What the model says for a label."""
        return dict(self.label_words).get(label, label)

    def _labels_by_word(self, labels: Sequence[str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for label in labels:
            other = names.setdefault(_compact(self.word(label)), label)
            if other != label:
                raise UserError(f"The labels {other!r} and {label!r} cannot be told apart by their words.")
        return names


def _compact(word: str) -> str:
    """Letters and digits only: tokenizers put spaces around marks ("not - sure") and change case."""
    return "".join(character for character in word.lower() if character.isalnum()) or word.strip()
