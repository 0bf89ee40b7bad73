"""Accuracy of labels, by name: class numbers differ between code bases, names do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from padapter.metrics.pairing import require_same_ids

ENTAILMENT_RULE = "label-accuracy"


@dataclass(frozen=True)
class EntailmentScores:
    """Accuracy of one data set.

    Attributes:
        accuracy: Share of items whose predicted label is the gold label.
        per_class: The same among the items of each gold label (its recall).
        confusion: ``confusion[gold][predicted]`` counts items; a prediction that is no label has a column too.
        per_item: 1.0 or 0.0 by item id.
        rule: Always ``"label-accuracy"``.
    """

    accuracy: float
    per_class: dict[str, float]
    confusion: dict[str, dict[str, int]]
    per_item: dict[str, float]
    rule: str = ENTAILMENT_RULE


def score_entailment(predictions: Mapping[str, str], labels: Mapping[str, str]) -> EntailmentScores:
    """Compare predicted with gold label names, as they are.

    Args:
        predictions: Predicted label by item id.
        labels: Gold label by item id; the same ids.

    Returns:
        Accuracy, accuracy per gold label, confusion counts and per item scores.

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
        per_class={gold: row[gold] / sum(row.values()) for gold, row in confusion.items()},
        confusion=confusion,
        per_item=per_item,
    )
