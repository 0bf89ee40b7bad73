"""Accuracy of labels, by name: class numbers differ between code bases, names do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from padapter.metrics.pairing import require_same_ids

ENTAILMENT_RULE = "label-accuracy"


@dataclass(frozen=True)
class ClassScores:
    """How well one label was found.

    Attributes:
        precision: Share of right ones among the items that were given this label; 0 if there were none.
        recall: Share of right ones among the items that have it: the accuracy of this class.
        f1: Harmonic mean of the two; 0 if both are.
        count: Items that have this label.
    """

    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True)
class EntailmentScores:
    """Accuracy of one data set.

    Attributes:
        accuracy: Share of items whose predicted label is the gold label.
        per_class: Precision, recall and F1 of each gold label.
        confusion: ``confusion[gold][predicted]`` counts items; a prediction that is no label has a column too.
        per_item: 1.0 or 0.0 by item id.
        rule: Always ``"label-accuracy"``.
    """

    accuracy: float
    per_class: dict[str, ClassScores]
    confusion: dict[str, dict[str, int]]
    per_item: dict[str, float]
    rule: str = ENTAILMENT_RULE


def score_entailment(predictions: Mapping[str, str], labels: Mapping[str, str]) -> EntailmentScores:
    """Compare predicted with gold label names, as they are.

    Args:
        predictions: Predicted label by item id.
        labels: Gold label by item id; the same ids.

    Returns:
        Accuracy, numbers per gold label, confusion counts and per item scores.

    Raises:
        UserError: Different ids on the two sides, or nothing to score.
    """
    require_same_ids(predictions.keys(), labels.keys())
    pairs = Counter((gold, predictions[key]) for key, gold in labels.items())
    golds = sorted(set(labels.values()))
    columns = golds + sorted(set(predictions.values()) - set(golds))
    confusion = {gold: {column: pairs[gold, column] for column in columns} for gold in golds}
    per_item = {key: float(predictions[key] == gold) for key, gold in labels.items()}
    return EntailmentScores(
        accuracy=sum(per_item.values()) / len(per_item),
        per_class={gold: _class_scores(gold, confusion) for gold in golds},
        confusion=confusion,
        per_item=per_item,
    )


def _class_scores(label: str, confusion: Mapping[str, Mapping[str, int]]) -> ClassScores:
    right, count = confusion[label][label], sum(confusion[label].values())
    given = sum(row[label] for row in confusion.values())
    return ClassScores(
        precision=right / given if given else 0.0, recall=right / count, f1=2 * right / (given + count), count=count
    )
