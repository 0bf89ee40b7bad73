"""What all source formats share: options, what a conversion reports, and the entry of a format in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.options.fields import check_at_least, check_choices, option


@dataclass(kw_only=True)
class ConvertOptions:
    """Options of every ``padapter convert FORMAT``."""

    checkpoint: str = option(metavar="CHECKPOINT", positional=True, help="The file that torch.save wrote.")
    output: str = option(metavar="DST", positional=True, help="Folder to write, in the format of transformers.")
    image_size: int | None = option(
        None, help="Edge of the model's pictures in pixels; positions are interpolated. (default: the file's own)"
    )
    vocab: str | None = option(
        None, metavar="FILE", help="vocab.txt of bert-base-uncased. (default: from transformers' cache or the hub)"
    )
    trust_pickle: bool = option(
        False, in_yaml=False, help="Read objects other than tensors too, which can run any code: for files you trust."
    )
    overwrite: bool = option(False, in_yaml=False, help="Replace DST if it exists.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "image_size")


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        output: the folder.
        model: class of the model, of transformers or ours.
        image_size: edge of its pictures in pixels.
        parameters: how many it has, tied ones once.
        dropped: what was left behind -> number of entries.
        notes: what a reader should know besides.
    """

    output: Path
    model: str
    image_size: int
    parameters: int
    dropped: Mapping[str, int]
    notes: Sequence[str] = ()

    def format(self) -> str:
        """One line for the model, one for what was left behind, and one per note."""
        lines = [f"{self.output}: {self.model}, {self.image_size} px, {self.parameters:,} parameters"]
        if self.dropped:
            left = ", ".join(f"{what} {count}" for what, count in sorted(self.dropped.items()))
            lines.append(f"  left behind (entries): {left}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Format:
    """A source format.

    Attributes:
        summary: one line for ``--help``.
        options: dataclass of its options, a kind of :class:`ConvertOptions`.
        convert: does it.
    """

    summary: str
    options: type[Any]
    convert: Callable[[Any], Conversion]
