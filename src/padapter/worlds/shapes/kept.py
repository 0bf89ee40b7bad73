"""Drawn splits kept on disk: many short runs on the same rows would otherwise draw them again each time."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

from datasets import Dataset

from padapter.cache import VARIABLE, cache_folder


def kept(name: str, draw: Callable[[], Dataset]) -> Dataset:
    """What ``draw`` returns, from the cache folder if that is set and it was drawn before by the same code.

    Args:
        name: says which rows; no path separators.
        draw: makes the rows.
    """
    if not os.environ.get(VARIABLE):
        return draw()
    folder = cache_folder()
    place = folder / f"shapes-{name}-{_code()}"
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".drawing-", dir=folder))
        draw().save_to_disk(str(fresh))
        try:
            fresh.rename(place)
        except OSError:  # another process was quicker; its rows are the same
            shutil.rmtree(fresh, ignore_errors=True)
    return Dataset.load_from_disk(str(place))


@cache
def _code() -> str:
    """Digest of all that decides what is drawn: this package's source and the library that draws."""
    digest = hashlib.sha256(metadata.version("pillow").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
