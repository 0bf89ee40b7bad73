"""Can the question be answered from the picture at all? VizWiz's second task, scored as it scores it.

The class to be found is "unanswerable": labels and scores are turned round (1 - answerable) before they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from padapter.errors import UserError
from padapter.metrics.answers import normalise_answer, strip_answer
from padapter.metrics.pairing import require_same_ids

ANSWERABILITY_RULE = "vizwiz-answerability"
#: Answers that say there is no answer; VizWiz has both.
UNANSWERABLE = frozenset({"unanswerable", "unsuitable"})


@dataclass(frozen=True)
class AnswerabilityScores:
    """How well unanswerable questions were found.

    Attributes:
        average_precision: Area under the steps of precision over recall, a fraction; equal scores are one step.
        f1: Harmonic mean of precision and recall of those whose score of "unanswerable" is above 0.5.
        rule: Always ``"vizwiz-answerability"``.
    """

    average_precision: float
    f1: float
    rule: str = ANSWERABILITY_RULE


def score_answerability(scores: Mapping[str, float], answerable: Mapping[str, bool]) -> AnswerabilityScores:
    """Average precision and F1 at 0.5 of the class "unanswerable".

    Average precision is the sum over the distinct scores, from the highest to the lowest, of precision times gain in
    recall, without interpolation. A score of exactly 0.5 counts as answerable.

    Args:
        scores: Predicted probability that the question *can be answered*, by item id; what the evaluation server
            calls ``answerable``.
        answerable: Whether it can, by item id; the same ids.

    Returns:
        The two numbers.

    Raises:
        UserError: Different ids on the two sides, a score that is no number from 0 to 1, or no unanswerable item,
            without which neither number means anything.
    """
    require_same_ids(scores.keys(), answerable.keys())
    for key, score in scores.items():
        if not 0 <= score <= 1:
            raise UserError(f"The score of item {key!r} is {score}; a score of answerability lies between 0 and 1.")
    pairs = sorted(((1 - scores[key], not label) for key, label in answerable.items()), reverse=True)
    positives = sum(label for _, label in pairs)
    if not positives:
        raise UserError(f"None of the {len(pairs)} items is unanswerable: there is nothing to find.")
    found = seen = 0
    average_precision = 0.0
    for _, step in groupby(pairs, key=lambda pair: pair[0]):
        labels = [label for _, label in step]
        found, seen = found + sum(labels), seen + len(labels)
        average_precision += sum(labels) / positives * found / seen
    flagged = [label for score, label in pairs if score > 0.5]
    return AnswerabilityScores(average_precision, f1=2 * sum(flagged) / (len(flagged) + positives))


def answerable_score(text: str, candidates: Mapping[str, float] | None = None) -> float:
    """The score of answerability that an answer implies, for models that answer and are not asked directly.

    Args:
        text: The predicted answer.
        candidates: Log-likelihood by candidate answer, where candidates were ranked.

    Returns:
        1 minus the share of "unanswerable" and "unsuitable" among the candidates (softmax), if one of the two is
        among them; otherwise 0.0 if the text says so itself, else 1.0.
    """
    if candidates and any(_says_unanswerable(word) for word in candidates):
        top = max(candidates.values())
        weights = {word: math.exp(score - top) for word, score in candidates.items()}
        said = math.fsum(weight for word, weight in weights.items() if _says_unanswerable(word))
        return 1.0 - said / math.fsum(weights.values())
    return float(not _says_unanswerable(text))


def _says_unanswerable(text: str) -> bool:
    return normalise_answer(strip_answer(text)) in UNANSWERABLE
