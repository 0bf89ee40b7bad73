"""Questions that an encoder of their own reads, and sequences in which they stand beside the picture."""

from __future__ import annotations

import numpy as np

from padapter.errors import UserError
from padapter.explain.layout import Layout
from padapter.explain.tracing import Numbers

TEXT, QUESTION = "text", "question"
#: The stream whose tokens ask, by part of the model.
ASKING = {"decoder": TEXT, "connector": "queries", "text_encoder": QUESTION, "fusion": QUESTION}


def side_by_side(layout: Layout, name: str, tokens: int, question: int) -> tuple[tuple[str, ...], Numbers] | None:
    """What a module attends to if it attends to picture and question at once.

    Args:
        layout: where the tokens of the picture are.
        name: of the module; not one of the image encoder.
        tokens: how many keys it has.
        question: how many tokens the question has; 0 where none is read apart.

    Returns:
        The streams that stand there, those of the picture first, and the place of each of their tokens in that order;
        None where a module attends to one of them alone.

    Raises:
        UserError: if there are tokens that belong to neither, or not all of both.
    """
    parts = layout.keys.get(name, layout.together.get(name))
    if not question or parts is None:
        return None
    rest = np.setdiff1d(np.arange(tokens), parts)
    if not len(rest):
        return None
    if len(rest) != question or (parts < 0).any() or len(np.unique(parts)) < len(parts):
        raise UserError(
            f"attention module {name!r} works on {tokens} tokens, which are not those of the picture, {len(parts)}, "
            f"and of the question, {question}; relevance cannot be followed through this model."
        )
    pictures = [parts[layout.members(number)] for number in range(len(layout.images))]
    return (*layout.images, QUESTION), np.concatenate([*pictures, rest])
