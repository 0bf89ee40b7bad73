"""Which streams of tokens an attention module connects, told from its part of the model and its numbers of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from padapter.architectures import AttentionSite

PICTURE = "image 0"
QUESTION = "question"
TEXT = "text"

#: The stream whose tokens ask, by part of the model; "text" is what the decoder reads and writes.
_ASKING = {"connector": "queries", "text_encoder": QUESTION, "fusion": QUESTION}


def connected(
    site: AttentionSite, rows: int, columns: int, sizes: Mapping[str, int], together: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The streams of a module's queries and those of its keys, each in the order of the tokens.

    Args:
        site: the module; not one of the image encoder.
        rows: its queries.
        columns: its keys; in self-attention they are the tokens of the queries, whatever a prefix adds.
        sizes: tokens of each stream that the model has.
        together: streams that may stand one behind the other, see `padapter.explain.families.Family`.

    Returns:
        The streams alone where their number of tokens fits, all of ``together`` where theirs does. If neither fits,
        the streams alone: whoever asks compares the numbers.
    """
    joint = tuple(name for name in together if name in sizes)

    def fitting(alone: str, tokens: int) -> tuple[str, ...]:
        fits = alone in joint and sizes[alone] != tokens and sum(sizes[name] for name in joint) == tokens
        return joint if fits else (alone,)

    queries = fitting(_ASKING.get(site.part, TEXT), rows)
    return queries, fitting(PICTURE, columns) if site.cross else queries


def place_of(stream: str, streams: Sequence[str], sizes: Mapping[str, int]) -> slice:
    """Where a stream's tokens are among those of several that stand one behind the other."""
    start = sum(sizes[name] for name in streams[: streams.index(stream)])
    return slice(start, start + sizes[stream])
