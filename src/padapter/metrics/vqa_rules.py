"""The rules by which a short answer is compared with the annotators' answers, by name.

A rule is a function (prediction, answers) -> fraction in [0, 1]. A new one is a function and a line of
:data:`VQA_RULES`; it then works as ``--rule NAME`` and :func:`padapter.metrics.score_vqa` knows it.

With k annotators of whom n gave the predicted answer, a rule that leaves one out asks each annotator how many of the
*others* agree with the prediction, three being enough for full marks, and takes the mean:
``(n * min(1, (n-1)/3) + (k-n) * min(1, n/3)) / k``. That is at most 0, 1/3, 2/3 for k = 1, 2, 3. From k = 4 on full
marks can be had. For k = 10 the values are 0, .3, .6, .9, 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from padapter.errors import UserError
from padapter.metrics.answers import CONTRACTIONS, clean_punctuation, normalise_answer, strip_answer

VqaRule = Callable[[str, Sequence[str]], float]

OFFICIAL = "vqa-official-2021"
OFFICIAL_PRE_2021 = "vqa-official-pre-2021"
EXACT_MATCH = "exact-match-normalised"
VIZWIZ_RELEASED = "vizwiz-released"
VIZWIZ_LEAVE_ONE_OUT = "vizwiz-leave-one-out"

# See `vizwiz_released` for what is known of this table.
_VIZWIZ_CONTRACTIONS = {word: spelt.replace("'", "\u2019") for word, spelt in CONTRACTIONS.items()}


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """``vqa-official-2021``: the official VQA evaluation (https://visualqa.org/evaluation.html) since March 2021.

    One annotator is left out in turn. Texts are normalised only when the annotators disagree: against unanimous
    answers the prediction must be the same string, case included.

    Args:
        prediction: The predicted answer.
        answers: One answer per annotator (k of them, any number).

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: ``answers`` is empty.
    """
    humans = [strip_answer(answer) for answer in _some(answers)]
    predicted = strip_answer(prediction)
    if len(set(humans)) > 1:
        humans = [normalise_answer(answer) for answer in humans]
        predicted = normalise_answer(predicted)
    return leave_one_out(humans.count(predicted), len(humans))


def vqa_accuracy_pre_2021(prediction: str, answers: Sequence[str]) -> float:
    """``vqa-official-pre-2021``: the official VQA evaluation before March 2021, which many code bases still copy.

    The prediction is always normalised. Of the annotators' answers only the punctuation is cleaned, and only when
    they disagree; articles, number words, capitals and outer white space of theirs stay, so that "none", "two" or
    "The cat" cannot be matched.

    Args:
        prediction: The predicted answer.
        answers: One answer per annotator (k of them, any number).

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: ``answers`` is empty.
    """
    humans = list(_some(answers))
    if len(set(humans)) > 1:
        humans = [clean_punctuation(answer) for answer in humans]
    return leave_one_out(humans.count(normalise_answer(strip_answer(prediction))), len(humans))


def vizwiz_released(prediction: str, answers: Sequence[str]) -> float:
    """``vizwiz-released``: the evaluation code that VizWiz-VQA was released with; nobody is left out.

    Full marks for three annotators who agree with the prediction, ``min(1, n/3)``. The prediction is always
    normalised. The annotators' answers are compared as they are, since the release is lower-case and cleaned
    already; an answer such as "don't know." with its full stop can therefore not be matched.

    The evaluation has a contraction table of its own: the official one with *typographic* apostrophes in most values,
    so that a predicted "dont" becomes a string that equals no answer. Which values are the exceptions is not known
    here, and no recorded score depends on it: this table has typographic apostrophes in all of them.

    Args:
        prediction: The predicted answer.
        answers: One answer per annotator (any number).

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: ``answers`` is empty.
    """
    return min(1.0, _vizwiz_matches(prediction, answers) / 3)


def vizwiz_leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """``vizwiz-leave-one-out``: as :func:`vizwiz_released`, but each annotator is left out in turn, by position.

    The form that the benchmark's page describes and later copies of the evaluation compute; lower than the released
    one wherever one, two or three annotators agree with the prediction.

    Args:
        prediction: The predicted answer.
        answers: One answer per annotator (k of them, any number).

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: ``answers`` is empty.
    """
    return leave_one_out(_vizwiz_matches(prediction, answers), len(answers))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """``exact-match-normalised``: 1 if the prediction equals any of the answers, all of them normalised; else 0.

    Args:
        prediction: The predicted answer.
        answers: The accepted answers, often one.

    Returns:
        0.0 or 1.0.

    Raises:
        UserError: ``answers`` is empty.
    """
    predicted = normalise_answer(strip_answer(prediction))
    return float(any(predicted == normalise_answer(strip_answer(answer)) for answer in _some(answers)))


def leave_one_out(matches: int, annotators: int) -> float:
    """The mean mark over annotators, of whom ``matches`` gave the predicted answer, each judged by the others."""
    n, k = matches, annotators
    return (n * min(1.0, (n - 1) / 3) + (k - n) * min(1.0, n / 3)) / k


#: Every rule by its name, which stands beside each number that it gave.
VQA_RULES: dict[str, VqaRule] = {
    OFFICIAL: vqa_accuracy,
    OFFICIAL_PRE_2021: vqa_accuracy_pre_2021,
    EXACT_MATCH: exact_match,
    VIZWIZ_RELEASED: vizwiz_released,
    VIZWIZ_LEAVE_ONE_OUT: vizwiz_leave_one_out,
}


def _vizwiz_matches(prediction: str, answers: Sequence[str]) -> int:
    return list(_some(answers)).count(normalise_answer(strip_answer(prediction), _VIZWIZ_CONTRACTIONS))


def _some(answers: Sequence[str]) -> Sequence[str]:
    if not answers:
        raise UserError("Scoring an answer needs at least one human answer to compare it with.")
    return answers
