"""From token ids to padded batches. One rule for what is cut when a text is too long.

A sequence is ``[start] prompt target [end]`` and has at most ``max_length`` tokens. The target is never shortened to
make room for the prompt: a long prompt loses tokens at its *left* end, because the words next to the answer (the end
of a question) matter most. Only a target that does not fit alone is cut, at its right end; it then carries no end
token, so that the model is not taught to stop in the middle. Both are counted by the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORE = -100


@dataclass(frozen=True)
class TokenSequence:
    """One training sequence.

    Attributes:
        ids: All token ids, start token first.
        start: Index of the first target token; labels before it are masked.
        prompt_cut: Whether the prompt was shortened.
        target_cut: Whether the target was shortened.
    """

    ids: list[int]
    start: int
    prompt_cut: bool
    target_cut: bool


def join(prompt: Sequence[int], target: Sequence[int], *, start: int, end: int, max_length: int) -> TokenSequence:
    """Concatenate start token, prompt, target and end token within ``max_length`` (rule: module docstring).

    Args:
        prompt: Token ids of the prompt, may be empty.
        target: Token ids of the target.
        start: Id of the start token.
        end: Id of the end token.
        max_length: Longest sequence; at least 2.

    Returns:
        The sequence.
    """
    answer = [*target, end][: max_length - 1]
    kept = keep_right(prompt, max_length - 1 - len(answer))
    return TokenSequence(
        ids=[start, *kept, *answer],
        start=1 + len(kept),
        prompt_cut=len(kept) < len(prompt),
        target_cut=len(answer) < len(target) + 1,
    )


def keep_right(ids: Sequence[int], room: int) -> list[int]:
    """Return the last ``room`` ids."""
    return list(ids[max(len(ids) - room, 0) :])


def pad_right(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Stack rows of different length into (rows, longest), filled with ``value`` on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def pad_left(rows: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack rows of different length into (rows, longest), filled on the left.

    Returns:
        The ids and the attention mask (1 = token), both (rows, longest).
    """
    longest = max(len(row) for row in rows)
    ids = [[*[value] * (longest - len(row)), *row] for row in rows]
    mask = [[*[0] * (longest - len(row)), *[1] * len(row)] for row in rows]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def training_tensors(sequences: Sequence[TokenSequence], pad: int) -> dict[str, torch.Tensor]:
    """Pad sequences on the right and mask everything but the targets.

    Args:
        sequences: S sequences.
        pad: Id that fills up input_ids.

    Returns:
        input_ids, attention_mask and labels, each (S, L); labels are -100 on start token, prompt and padding.
    """
    labels = [[IGNORE] * s.start + s.ids[s.start :] for s in sequences]
    return {
        "input_ids": pad_right([s.ids for s in sequences], pad),
        "attention_mask": pad_right([[1] * len(s.ids) for s in sequences], 0),
        "labels": pad_right(labels, IGNORE),
    }
