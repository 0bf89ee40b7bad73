"""Reading a checkpoint file that somebody else has made."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from padapter.checkpoints.layout import together
from padapter.errors import UserError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
#: Of a safetensors file, in bytes; the format allows no more.
_LONGEST_HEADER = 100_000_000


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Any:
    """Read what ``torch.save`` has written, on the CPU; weights are mapped, so that only those in use take memory.

    Args:
        path: the file.
        trust_pickle: whether objects other than tensors and plain containers may be made. They can run any code, so
            this is for files whose maker is known.

    Returns:
        The object in the file.

    Raises:
        UserError: if the file is missing, damaged, no checkpoint, or holds objects that need ``trust_pickle``.
    """
    file = existing_checkpoint(path)
    return _read_trusted(file) if trust_pickle else _read_safely(file)


def existing_checkpoint(path: str | Path) -> Path:
    """The path of a checkpoint, looked for before anything else takes time.

    Raises:
        UserError: there is no such file, or it is a folder or of another format.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"CHECKPOINT: there is no file {file}")
    if not file.is_file():
        raise UserError(f"CHECKPOINT: {file} is a folder; give the file in it that torch.save wrote (.pth, .pt, .bin)")
    if file.suffix == ".safetensors":
        raise UserError(
            f"CHECKPOINT: {file} is a safetensors file, official checkpoints are files of torch.save; a folder in the "
            "format of transformers needs no conversion: give it as --model"
        )
    return file


def entries(checkpoint: Any, key: str, path: str | Path) -> dict[str, torch.Tensor]:
    """The weights below one key of a checkpoint.

    Args:
        checkpoint: what :func:`read_checkpoint` returned.
        key: where the weights are.
        path: the file, for messages.

    Returns:
        name -> tensor.

    Raises:
        UserError: if there is no such key, or something below it is not a tensor.
    """
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"CHECKPOINT: {path} holds a {type(checkpoint).__name__} instead of a dictionary")
    weights = checkpoint.get(key)
    if not isinstance(weights, Mapping):
        held = ", ".join(sorted(map(str, checkpoint))[:8]) or "nothing"
        raise UserError(
            f"CHECKPOINT: {path} holds no weights under {key!r} (it holds: {held}). Weights that stand alone can be "
            f"saved again with torch.save({{{key!r}: weights}}, FILE)."
        )
    others = [str(name) for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"CHECKPOINT: {path}: not a tensor: {', '.join(others)}")
    return {str(name): value for name, value in weights.items()}


def bad_values(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """One line per kind of value that no model can compute with: integers where weights belong, infinities, NaN."""
    integer = [name for name, value in weights.items() if not value.is_floating_point()]
    broken = [name for name, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    found = (("not floating point", integer), ("with infinities or NaN", broken))
    return [f"{title}: {', '.join(together(names))}" for title, names in found if names]


def _read_safely(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as problem:
        objects = _objects_in(file, str(problem))
        if not objects:
            raise _unreadable(file, problem) from problem
        raise UserError(
            f"CHECKPOINT: {file} holds Python objects beside tensors ({', '.join(objects)}), and making them can run "
            "any code. If you trust whoever made the file, add --trust-pickle; otherwise ask for one that holds the "
            "weights alone."
        ) from problem
    except Exception as problem:  # what a damaged file raises depends on where the damage is
        raise _unreadable(file, problem) from problem


def _read_trusted(file: Path) -> Any:
    warnings.warn(f"--trust-pickle: {file} is read in a way that lets it run any code", stacklevel=2)
    try:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=zipfile.is_zipfile(file))
    except (ModuleNotFoundError, AttributeError) as problem:
        raise UserError(
            f"CHECKPOINT: {file} holds objects of a package that is not here or has changed ({problem}). Install the "
            "version it was made with, or save the weights alone where it can be read."
        ) from problem
    except Exception as problem:  # anything, since the file's own code has run
        raise _unreadable(file, problem) from problem


def _objects_in(file: Path, message: str) -> list[str]:
    """Names of the classes and functions that a pickle asks for, without making any of them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # the old format, which torch cannot list; the error names the first one
        return re.findall(r"GLOBAL (\S+)", message)[:1]


def _unreadable(file: Path, problem: Exception) -> UserError:
    """Say what a file is that torch could not read: "pop from empty list" speaks of the reader, not of the file."""
    with file.open("rb") as handle:
        head = handle.read(512)
    if head.startswith((_ZIP, _PICKLE)):
        reason = f" ({problem})" if isinstance(problem, (OSError, MemoryError)) else ""
        return UserError(f"CHECKPOINT: {file} is damaged or cut off{reason}; fetch it again")
    return UserError(f"CHECKPOINT: {file} is not a file of torch.save: {_nature(head)}")


def _nature(head: bytes) -> str:
    """What a file is by its first bytes."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "it is empty (0 bytes); fetch it again"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, perhaps of a download that failed; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed (gzip); unpack it first"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LONGEST_HEADER:
        return "it looks like a safetensors file; a folder in the format of transformers needs no conversion"
    kind = "text" if head.isascii() and b"\0" not in head else "neither a zip archive nor a pickle"
    return f"it is {kind}, beginning with {head[:16]!r}"
