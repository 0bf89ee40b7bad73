"""Whether a run may begin, or go on, in a folder. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from padapter.errors import UserError
from padapter.evaluation.files import check_folder
from padapter.options import TrainOptions, flag_of, options_from

# These change how a run is watched or where it stands, never what it computes but for rounding.
FREE_ON_RESUME = (
    "output",
    "config",
    "quiet",
    "num_workers",
    "keep_checkpoints",
    "resume",
    "overwrite",
    "attention",
    "cache_features",
)


def check_run_folder(path: Path, options: TrainOptions) -> None:
    """Refuse to overwrite a run, or to resume one that was made differently.

    Args:
        path: the folder, which need not exist.
        options: resolved options of the run that wants to write.

    Raises:
        UserError: saying which folder or which fields, and what to do.
        OSError: when the folder cannot be made or written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output: {path} is a file; give a folder")
    if options.resume:
        _check_same(path, options)
    elif not options.overwrite and path.is_dir() and any(path.iterdir()):
        raise UserError(
            f"--output: {path} is not empty; choose another folder, give --resume to continue the run in it, "
            "or --overwrite to start anew"
        )
    check_folder(path)


def _check_same(path: Path, options: TrainOptions) -> None:
    config = path / "config.yaml"
    if not config.is_file():
        raise UserError(f"--resume: {path} holds no run (there is no config.yaml); leave --resume out")
    before = asdict(options_from(TrainOptions, config))
    now = asdict(options)
    changed = [
        f"{flag_of(item)} was {before[item.name]!r} and is {now[item.name]!r}"
        for item in fields(TrainOptions)
        if item.name not in FREE_ON_RESUME and plain(before[item.name]) != plain(now[item.name])
    ]
    if changed:
        raise UserError(
            f"--resume: {path} was started with other options: {'; '.join(changed)}. "
            "Give the same ones (or only --resume and --output), or choose another --output"
        )


def plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML gives back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
