"""Options of ``padapter diagnose``; light, so that ``--help`` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from padapter.diagnose.head_maps import check as check_head_maps
from padapter.options.fields import check_at_least, check_choices, option, refuse

#: What a file of results may be, by how its name ends.
PAGE: tuple[str, ...] = (".html",)
NUMBERS: tuple[str, ...] = (".json", ".csv")


@dataclass(kw_only=True)
class DiagnoseOptions:
    """Options of ``padapter diagnose``."""

    run: str = option(metavar="RUN", positional=True, help="Folder written by `padapter train`.")
    data: str = option(metavar="DATA", help="Data to look at attention on.")
    split: str = option("test", help="Split of the data.")
    output: str = option(
        metavar="FILE", short="-o", help="What to write: a page (.html) or the numbers alone (.json, .csv)."
    )
    numbers: str | None = option(None, metavar="FILE", help="Write the numbers beside the page too (.json, .csv).")
    rows: int = option(128, help="Rows to read, drawn at random.")
    points: int = option(
        150, help="Query nodes, and value nodes, of each layer in its t-SNE map; 0 leaves the maps out."
    )
    head_maps: str | None = option(
        None,
        metavar="N,...|all",
        help="Draw a t-SNE map of each head of these layers too, counted from 0; with many heads of fewer nodes each.",
    )
    where: str | None = option(
        None,
        metavar="PARTS",
        help="Attention modules to look at: decoder, text_encoder, fusion, vision, connector, language, all; several "
        "with commas. (default: the decoder, and all with a p-adapter)",
    )
    seed: int = option(0, help="Of the rows and nodes that are drawn, and of t-SNE.")
    batch_size: int = option(8, help="Rows per forward pass.")
    device: str = option("auto", choices=("auto", "cpu", "cuda"), metavar="auto|cpu|cuda", help="Where to compute.")
    quiet: bool = option(False, help="No progress bar; only the result.")
    overwrite: bool = option(False, in_yaml=False, help="Replace files that exist.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "rows", "batch_size")
        check_at_least(self, 0, "points", "seed")
        if 0 < self.points < 8:
            raise refuse("--points", f"a map needs at least 8 nodes of each kind, got {self.points}; 0 leaves maps out")
        if self.head_maps is not None:
            check_head_maps(self.head_maps)
            if not self.writes_page or not self.points:
                raise refuse("--head-maps", "maps are drawn on a page (-o PAGE.html) with --points of at least 8")
        ends = [("--output", self.output, PAGE + NUMBERS)]
        if self.numbers is not None:
            ends.append(("--numbers", self.numbers, NUMBERS))
            if not self.writes_page:
                raise refuse("--numbers", f"--output {self.output} holds the numbers already; leave one of the two out")
        for flag, name, known in ends:
            if PurePath(name).suffix.lower() not in known:
                raise refuse(flag, f"{name} must end in one of {', '.join(known)}")

    @property
    def writes_page(self) -> bool:
        """Whether a page is asked for."""
        return PurePath(self.output).suffix.lower() in PAGE
