"""Options of ``padapter data preview``; light, so that ``--help`` stays quick."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.options.fields import SPLIT_NAMES, check_at_least, option
from padapter.options.training import PictureOptions


@dataclass(kw_only=True)
class PreviewOptions(PictureOptions):
    """Options of ``padapter data preview``."""

    data: str = option(metavar="DATA", positional=True, help="The same as for `padapter data check`.")
    output: str = option(metavar="PAGE", short="-o", help="HTML file to write; it needs nothing but itself.")
    task: str | None = option(
        None, metavar="TASK", help="Task: vqa, entailment or caption. (default: told from the fields)"
    )
    split: str | None = option(None, help=f"Split to show: {SPLIT_NAMES} (default: all that are there)")
    rows: int = option(24, help="Rows to show, chosen at random from the usable ones.")
    seed: int = option(0, help="Which rows are shown; also of built-in worlds.")
    model: str | None = option(
        None, metavar="ID|DIR", help="Show pictures and texts as this model reads them, and what is cut."
    )
    prompt: str | None = option(
        None,
        metavar="TEMPLATE",
        help="Prompt with a place for {question} or {hypothesis}. (default: the task's own)",
    )
    overwrite: bool = option(False, in_yaml=False, help="Replace PAGE if it exists.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "rows")
        check_at_least(self, 0, "seed")
