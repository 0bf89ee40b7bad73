"""What is done with data alone."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.options.fields import SPLIT_NAMES, check_at_least, option


@dataclass(kw_only=True)
class DataCheckOptions:
    """Options of ``padapter data check``."""

    data: str = option(
        metavar="DATA", positional=True, help="A file beside its images, a folder, a benchmark NAME:FOLDER, ..."
    )
    task: str | None = option(
        None,
        metavar="TASK",
        help="Task: vqa, entailment or caption. (default: told from the fields)",
    )
    split: str | None = option(None, help=f"Split to check: {SPLIT_NAMES} (default: all that are there)")
    show: int = option(50, help="Problems to print; the count is always of all.")

    def __post_init__(self) -> None:
        check_at_least(self, 0, "show")


@dataclass(kw_only=True)
class DataShardOptions:
    """Options of ``padapter data shard``."""

    data: str = option(metavar="DATA", positional=True, help="What to pack: a file, a folder, NAME:FOLDER, ...")
    destination: str = option(metavar="DST", positional=True, help="Folder for the tar files and the index.")
    task: str | None = option(
        None,
        metavar="TASK",
        help="Task: vqa, entailment or caption. (default: told from the fields)",
    )
    split: str | None = option(None, help=f"Split to pack: {SPLIT_NAMES} (default: all that are there)")
    size: int = option(1000, metavar="MB", help="Megabytes at which a new tar file is begun.")
    skip_bad_rows: bool = option(False, help="Leave out rows with problems instead of refusing the data.")
    overwrite: bool = option(False, in_yaml=False, help="Replace splits that were packed into DST before.")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "size")
