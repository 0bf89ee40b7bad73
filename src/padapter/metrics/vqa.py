"""Accuracy of short answers to questions about images.

Two rules, never mixed inside one data set:

* ``vqa-official-2021``: the official VQA evaluation in its revision of March 2021 (https://visualqa.org/evaluation.html),
  which leaves unanimous answers as they are. Code bases that always normalise the prediction follow the older
  revision; on predictions with articles, full stops or capitals the two differ by some points.
* ``exact-match-normalised``: 1 if the normalised prediction equals one of the normalised answers, else 0.

With k annotators of whom n gave the predicted answer, the official rule gives
``(n * min(1, (n-1)/3) + (k-n) * min(1, n/3)) / k``: at most 0, 1/3, 2/3 for k = 1, 2, 3. From k = 4 on full marks can
be had, so 4 is where the choice of the rule turns (:func:`choose_vqa_rule`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from padapter.errors import UserError
from padapter.metrics.pairing import require_same_ids

OFFICIAL = "vqa-official-2021"
EXACT_MATCH = "exact-match-normalised"
RULES = (OFFICIAL, EXACT_MATCH)

#: The smallest number of answers with which the official rule can give full marks.
OFFICIAL_MIN_ANSWERS = 4

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official code passes a regex flag (value 32) where the number of substitutions goes.
_MAX_FULL_STOPS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: digits
    for digits, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
# The official table without entries that map to themselves or, being capitalised, are never reached.
_CONTRACTIONS: dict[str, str] = dict(
    re.findall(
        r"(\S+):(\S+)",
        """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
    didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
    havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't
    itd:it'd itd've:it'd've it'dve:it'd've itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've
    mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
    oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've
    shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
    somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's
    someoned:someone'd someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's
    somethingd:something'd somethingd've:something'd've something'dve:something'd've somethingll:something'll
    thats:that's thered:there'd thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd
    theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't
    wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've
    whens:when's whered:where'd wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've
    wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've
    wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll
    yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've
    youll:you'll youre:you're youve:you've
    """,
    )
)


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


def normalise_answer(text: str) -> str:
    """Normalise an answer as the official VQA evaluation does, oddities included.

    Punctuation pass, then word pass (number words up to ten, articles, contractions). The result can be empty.
    White space at the ends of ``text`` should have been stripped before (:func:`strip_answer`), since a mark
    beside a space is treated differently from a mark beside a letter.

    Args:
        text: An answer.

    Returns:
        The normalised answer.
    """
    # Every test looks at the original text, however much of it has been edited already.
    number_with_comma = _DIGIT_COMMA_DIGIT.search(text) is not None
    edited = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        edited = edited.replace(mark, "" if beside_space or number_with_comma else " ")
    edited = _FULL_STOP.sub("", edited, count=_MAX_FULL_STOPS)
    words = (str(_NUMBERS.get(word, word)) for word in edited.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def strip_answer(text: str) -> str:
    """Replace newlines and tabs by spaces and strip: what the official rule does to every answer first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy (March 2021) of one question, for any number of annotators.

    Each annotator's mark is ``min(1, matches among the *other* annotators / 3)``; the score is their mean. Texts
    are normalised only when the annotators disagree: against unanimous answers the prediction must be the same
    string, case included.

    Args:
        prediction: The predicted answer.
        answers: One answer per annotator (k of them).

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: ``answers`` is empty.
    """
    if not answers:
        raise UserError("VQA accuracy needs at least one human answer.")
    humans = [strip_answer(answer) for answer in answers]
    predicted = strip_answer(prediction)
    if len(set(humans)) > 1:
        humans = [normalise_answer(answer) for answer in humans]
        predicted = normalise_answer(predicted)
    k, n = len(humans), humans.count(predicted)
    return (n * min(1.0, (n - 1) / 3) + (k - n) * min(1.0, n / 3)) / k


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals any of the answers, all of them normalised; else 0.0.

    Args:
        prediction: The predicted answer.
        answers: The accepted answers, often one.

    Raises:
        UserError: ``answers`` is empty.
    """
    if not answers:
        raise UserError("Exact match needs at least one human answer.")
    predicted = normalise_answer(strip_answer(prediction))
    return float(any(predicted == normalise_answer(strip_answer(answer)) for answer in answers))


def choose_vqa_rule(answer_counts: Iterable[int]) -> str:
    """The rule for a data set whose questions have these numbers of answers.

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
        rule: ``"vqa-official-2021"``, ``"exact-match-normalised"`` or None to choose by the number of answers.
        groups: Optional name of a group (answer type, ...) by question id; ids may be missing.

    Returns:
        Overall, per group and per question accuracies with the name of the rule.

    Raises:
        UserError: Different ids on the two sides, a question without answers, or an unknown rule.
    """
    require_same_ids(predictions.keys(), answers.keys())
    chosen = choose_vqa_rule(len(given) for given in answers.values()) if rule is None else rule
    if chosen not in RULES:
        raise UserError(f"Unknown VQA rule {chosen!r}; there are: {', '.join(RULES)}.")
    score_one = vqa_accuracy if chosen == OFFICIAL else exact_match
    per_question = {key: score_one(predictions[key], given) for key, given in answers.items()}
    members: dict[str, list[float]] = defaultdict(list)
    for key, group in (groups or {}).items():
        members[group].append(per_question[key])
    return VqaScores(
        accuracy=sum(per_question.values()) / len(per_question),
        per_question=per_question,
        rule=chosen,
        groups={group: sum(scores) / len(scores) for group, scores in sorted(members.items())},
    )
