"""What reading gives: the rows of one split and where their pictures are, not yet checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from padapter.data.readers import RawRow
from padapter.data.stores import ImageStore


@dataclass(frozen=True)
class Source:
    """One split of one data set, read but not yet checked.

    Attributes:
        name: A short name without machine paths.
        split: The split as it was named by the caller or the spec; of a benchmark, its own name for it.
        file: What messages call it.
        rows: The rows; ``values["image"]`` is what ``images`` understands. They may be made when they are asked for.
        images: Where the pictures are.
        trusted: Pictures need no checking (they were drawn, or checked, just now or when they were packed).
        rule: The scoring rule that the data's publisher asks for; None for the task's own.
        unit: What the number of a row counts: lines, or records of a list.
        left_out: Rows left out on purpose while reading, by reason.
        notes: What is worth knowing besides.
        official: The rows are those of a published benchmark, whose scoring counts every one of them.
        found_at: The pages on which the pictures are officially found.
        unanswered: Why there is nothing to learn from or score against, for splits whose answers are not public.
    """

    name: str
    split: str
    file: str
    rows: Sequence[RawRow]
    images: ImageStore
    trusted: bool = False
    rule: str | None = None
    unit: str = "line"
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    official: bool = False
    found_at: str | None = None
    unanswered: str | None = None
