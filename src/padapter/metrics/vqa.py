"""Accuracy of short answers to questions about images, by one of the rules of :mod:`padapter.metrics.vqa_rules`.

One rule for all questions of a data set, and its name beside the number: rules differ by some points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from padapter.errors import UserError
from padapter.metrics.pairing import require_same_ids
from padapter.metrics.vqa_rules import EXACT_MATCH, OFFICIAL, VQA_RULES

#: The smallest number of answers with which the official rule can give full marks.
OFFICIAL_MIN_ANSWERS = 4


@dataclass(frozen=True)
class VqaScores:
    """Accuracies of one data set.

    Attributes:
        accuracy: Mean over questions, a fraction.
        per_question: Accuracy of each question by id.
        groups: Mean over the questions of each group, e.g. of each answer type.
        rule: The rule that gave these numbers.
    """

    accuracy: float
    per_question: dict[str, float]
    rule: str
    groups: dict[str, float] = field(default_factory=dict)


def choose_vqa_rule(answer_counts: Iterable[int]) -> str:
    """The rule for a data set whose questions have these numbers of answers, where no rule is named.

    The official rule if every question has at least 4 answers, otherwise exact match for *all* questions: with
    fewer answers the official rule cannot give full marks, and one number must not mix two rules.

    Args:
        answer_counts: Number of answers of each question.

    Returns:
        ``"vqa-official-2021"`` or ``"exact-match-normalised"``.
    """
    return OFFICIAL if min(answer_counts, default=0) >= OFFICIAL_MIN_ANSWERS else EXACT_MATCH


def score_vqa(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    *,
    rule: str | None = None,
    groups: Mapping[str, str] | None = None,
) -> VqaScores:
    """Score one prediction per question.

    Args:
        predictions: Predicted answer by question id.
        answers: Human answers by question id; the same ids.
        rule: A name of ``VQA_RULES``, or None to choose by the number of answers (:func:`choose_vqa_rule`).
        groups: Optional name of a group (answer type, ...) by question id; ids may be missing.

    Returns:
        Overall, per group and per question accuracies with the name of the rule.

    Raises:
        UserError: Different ids on the two sides, a question without answers, or an unknown rule.
    """
    require_same_ids(predictions.keys(), answers.keys())
    chosen = choose_vqa_rule(len(given) for given in answers.values()) if rule is None else rule
    if chosen not in VQA_RULES:
        raise UserError(f"Unknown VQA rule {chosen!r}; there are: {', '.join(VQA_RULES)}.")
    score_one = VQA_RULES[chosen]
    per_question = {key: score_one(predictions[key], given) for key, given in answers.items()}
    return VqaScores(
        accuracy=sum(per_question.values()) / len(per_question),
        per_question=per_question,
        rule=chosen,
        groups=group_means(per_question, groups or {}),
    )


def group_means(per_item: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Mean score of each group of items.

    Args:
        per_item: Score by item id.
        groups: Name of a group by item id; ids may be missing.

    Returns:
        Mean by name of the group, in the order of names.
    """
    members: dict[str, list[float]] = defaultdict(list)
    for key, group in groups.items():
        members[group].append(per_item[key])
    return {group: sum(scores) / len(scores) for group, scores in sorted(members.items())}
