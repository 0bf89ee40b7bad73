"""Options of ``padapter explain``; light, so that ``--help`` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from padapter.errors import UserError
from padapter.options import SourceOptions, option, refuse

FORMATS = (".html", ".png")


@dataclass(kw_only=True)
class ExplainOptions(SourceOptions):
    """Options of ``padapter explain``."""

    run: str | None = option(None, metavar="RUN", positional=True, help="Folder written by `padapter train`.")
    image: str = option(metavar="FILE", help="The picture.")
    text: str | None = option(None, help="The question or hypothesis about --image; captions need none.")
    output: str = option(
        metavar="FILE", short="-o", help="What to write: .html, a page that needs nothing but itself, or .png."
    )
    answer: str | None = option(
        None, help="Answer, label or caption to explain. (default: what the adapted model says)"
    )
    token: str | None = option(None, metavar="N|WORD", help="Explain this token of the answer alone, counted from 1.")
    layers: str | None = option(
        None,
        metavar="N,...",
        help="Layers whose attention is shown, from 0. (default: all; relevance counts all anyway)",
    )
    compare: bool = option(True, help="Explain the model without its adapter too.")
    overwrite: bool = option(False, in_yaml=False, help="Replace --output if it exists.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.output).suffix.lower() not in FORMATS:
            raise refuse(
                "--output", f"{self.output} ends neither in {' nor in '.join(FORMATS)}, which says what to write"
            )
        if self.cache_features:
            raise refuse(
                "--cache-features", "`explain` looks into the image encoder, whose output would be read from disk"
            )
        if self.answer is not None and not self.answer.strip():
            raise refuse("--answer", "is empty; leave it out to explain what the model says")
        self.chosen_layers()

    def chosen_layers(self) -> list[int] | None:
        """The layers to show, None for all.

        Raises:
            UserError: for anything but numbers with commas between them.
        """
        if self.layers is None:
            return None
        try:
            return [int(number) for number in self.layers.split(",")]
        except ValueError as error:
            raise UserError(f"--layers: expected numbers with commas between them, got {self.layers!r}") from error
