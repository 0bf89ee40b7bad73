"""What the file system refuses, and files that are damaged, said as a person's mistake."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from padapter.errors import UserError

# Writing fails with these while the exception names no file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def output_problems(output: Path | None) -> Iterator[None]:
    """Turn an ``OSError`` about ``output`` into a message that names ``--output``; every other error passes.

    Args:
        output: the file or folder that the block writes; ``None`` changes nothing.

    Raises:
        UserError: when ``output``, something in it, or a folder above it cannot be read, made or written.
    """
    try:
        yield
    except OSError as problem:
        if output is None or not _is_about(problem, output):
            raise
        place = problem.filename or output
        reason = problem.strerror or type(problem).__name__
        raise UserError(f"--output: {output} cannot be used ({place}: {reason}); choose another place") from problem


def check_folder(folder: Path) -> None:
    """Find out, before long work and without making anything, whether ``folder`` can be made and written.

    Raises:
        OSError: naming the path that is in the way; see :func:`output_problems`.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no permission to write", str(nearest))


def check_file(file: Path) -> None:
    """The same for a file.

    Raises:
        OSError: naming the path that is in the way; see :func:`output_problems`.
    """
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(file))
    check_folder(file.parent)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Args:
        path: the file.
        remedy: what to do when it is damaged; ends the message.

    Raises:
        UserError: when the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: is damaged or cannot be read ({problem}); {remedy}") from problem
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (it holds no JSON object); {remedy}")
    return value


def _is_about(problem: OSError, output: Path) -> bool:
    named = [Path(os.path.abspath(os.fsdecode(name))) for name in _names(problem)]
    if not named:
        return problem.errno in _NO_ROOM
    own = Path(os.path.abspath(output))
    # A file is written beside its place first, under a name made from its own.
    name = re.compile(r"\.?" + re.escape(own.name) + r"(\.partial(-\d+)?)?")
    beside = any(path.parent == own.parent and name.fullmatch(path.name) for path in named)
    return beside or any(path in (own, *own.parents) or own in path.parents for path in named)


def _names(problem: OSError) -> list[Any]:
    # A number stands for an open file.
    return [name for name in (problem.filename, problem.filename2) if isinstance(name, (str, bytes, os.PathLike))]
