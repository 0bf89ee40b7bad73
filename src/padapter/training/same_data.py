"""Whether a run that is continued sees the data that it began with, and what has changed if not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from padapter.data import LoadedData
from padapter.errors import UserError
from padapter.training.checkpoints import read_state

RECORD, UNWEIGHTED = "train_fingerprint", "train_fingerprint_without_weights"


def data_state(data: LoadedData) -> dict[str, Any]:
    """What a checkpoint remembers of the training data."""
    return {RECORD: data.fingerprint, UNWEIGHTED: data.unweighted}


def check_same_data(checkpoint: Path, data: LoadedData, spec: str) -> None:
    """Refuse to go on with other data than a checkpoint was trained on.

    Args:
        checkpoint: that training is to go on from.
        data: the training data of now.
        spec: what the user calls them.

    Raises:
        UserError: saying whether rows or pictures have changed, or weights alone.
    """
    before = read_state(checkpoint)
    if before[RECORD] == data.fingerprint:
        return
    anew = "start anew with --overwrite"
    if before[RECORD] == data.unweighted:
        raise UserError(
            f"--resume: rows of {spec!r} have weights now, and had none when {checkpoint.name} was written; rows, "
            "texts and pictures are the same. If the files are too, an older padapter read them: rows of Visual Genome "
            f"in BLIP-style files weigh 0.2 by now. Go on with that version, or {anew}"
        )
    if before.get(UNWEIGHTED) == data.unweighted:
        raise UserError(
            f"--resume: weights of rows of {spec!r} have changed since {checkpoint.name} was written; rows, texts and "
            f"pictures are the same. Restore the weights, or {anew}"
        )
    raise UserError(
        f"--resume: the training data {spec!r} have changed since {checkpoint.name} was written (rows, texts or "
        f"pictures); restore them, or {anew}"
    )
