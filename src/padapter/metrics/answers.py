"""The text of short answers before they are compared, as the official VQA evaluation treats it.

Three steps, of which a rule (:mod:`padapter.metrics.vqa_rules`) takes those that it needs: outer white space
(:func:`strip_answer`), punctuation (:func:`clean_punctuation`), and words: numbers up to ten, articles, contractions.
:func:`normalise_answer` is punctuation, then words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official code passes a regex flag (value 32) where the number of substitutions goes.
_MAX_FULL_STOPS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(digits)
    for digits, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
#: The official table without entries that map to themselves or, being capitalised, are never reached.
CONTRACTIONS: dict[str, str] = dict(
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


def strip_answer(text: str) -> str:
    """Replace newlines and tabs by spaces and strip: what every rule does to a prediction first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def clean_punctuation(text: str) -> str:
    """Take punctuation out of an answer: marks become spaces or vanish, full stops vanish unless a digit follows.

    White space at the ends of ``text`` counts: a mark beside a space is treated differently from one beside a letter.

    Args:
        text: An answer.

    Returns:
        The answer without marks, upper case and inner white space as they were.
    """
    # Every test looks at the original text, however much of it has been edited already.
    number_with_comma = _DIGIT_COMMA_DIGIT.search(text) is not None
    edited = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        edited = edited.replace(mark, "" if beside_space or number_with_comma else " ")
    return _FULL_STOP.sub("", edited, count=_MAX_FULL_STOPS)


def normalise_answer(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Normalise an answer as the official VQA evaluation does, oddities included.

    Punctuation pass, then word pass (number words up to ten, articles, contractions). The result can be empty.
    White space at the ends of ``text`` should have been stripped before (:func:`strip_answer`).

    Args:
        text: An answer.
        contractions: What a whole word, lower-case, is replaced by.

    Returns:
        The normalised answer.
    """
    words = (_NUMBERS.get(word, word) for word in clean_punctuation(text).lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)
