"""Cleaning of questions, captions and hypotheses as BLIP's recipes do it."""

from __future__ import annotations

_MARKS = '.!"()*#:;~'
_DELETE = str.maketrans("", "", _MARKS)
_TO_SPACE = str.maketrans(_MARKS, " " * len(_MARKS))


def clean_question(question: str, max_words: int) -> str:
    """Lower-case, without the marks ``. ! " ( ) * # : ; ~``, at most ``max_words`` words, ending with "?".

    The authors append a question mark to shortened questions only; without one, a question would run into the
    answer that follows it with no separator.
    """
    words = question.lower().translate(_DELETE).split()[:max_words]
    return " ".join(words).rstrip("? ") + "?"


def clean_caption(caption: str, max_words: int) -> str:
    """Lower-case, the marks ``. ! " ( ) * # : ; ~`` become spaces, at most ``max_words`` words."""
    return " ".join(caption.lower().translate(_TO_SPACE).split()[:max_words])


def clean_hypothesis(hypothesis: str) -> str:
    """Lower-case, without one final full stop."""
    return " ".join(hypothesis.lower().split()).removesuffix(".").rstrip()
