"""A model folder that is either complete and checked, or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from padapter.errors import UserError


def check_output(path: str | Path, checkpoint: Path, *, overwrite: bool) -> Path:
    """Refuse a folder that holds something, before any work is done for it.

    Raises:
        UserError: if ``path`` is a file, a folder with something in it and ``overwrite`` is not given, or one with
            ``checkpoint`` in it.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"DST: {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"DST: {folder} is not empty; choose another folder, or --overwrite to replace it")
    if folder.resolve() in checkpoint.resolve().parents:
        raise UserError(f"DST: {folder} holds CHECKPOINT, which would go with it; choose another folder")
    return folder


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that takes its place when the block ends well, and is removed when it does not.

    Args:
        path: the wanted folder; one that is there already is replaced as a whole.

    Yields:
        The empty folder to write into.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    try:
        fresh, old = work / "new", work / "old"
        fresh.mkdir()  # not the folder of mkdtemp itself, which nobody else may read
        yield fresh
        if path.exists():
            path.rename(old)
        try:
            fresh.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def build(model_class: type[Any], config: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """The model with exactly these weights, without initialising any others.

    Args:
        model_class: of transformers.
        config: its configuration.
        state: every entry of its ``state_dict``.
    """
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(dict(state), strict=True, assign=True)
    model.tie_weights()
    return model.eval()


def check_written(folder: Path, model_class: type[Any], state: Mapping[str, torch.Tensor]) -> None:
    """Load a folder as a user would, and compare every weight bit for bit.

    Raises:
        RuntimeError: naming what is not there, too much, or different.
    """
    model, report = model_class.from_pretrained(folder, dtype="auto", output_loading_info=True)
    wrong = [f"{kind}: {sorted(report[kind])}" for kind in ("missing_keys", "unexpected_keys") if report[kind]]
    found = model.state_dict()
    different = [
        name
        for name, value in state.items()
        if name not in found or found[name].dtype != value.dtype or not torch.equal(found[name], value)
    ]
    if different:
        wrong.append(f"different: {different}")
    if wrong:
        raise RuntimeError(f"what was written does not read back: {'; '.join(wrong)}")


def write_origin(folder: Path, checkpoint: Path, **facts: Any) -> None:
    """Write ``conversion.json``: which file the model comes from, and what was done with it."""
    digest = hashlib.sha256()
    with checkpoint.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    origin = {"checkpoint": checkpoint.name, "sha256": digest.hexdigest(), **facts}
    (folder / "conversion.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
