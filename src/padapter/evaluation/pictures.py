"""How a run looks at pictures: chosen once, written into its folder, and the same ever after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from padapter.errors import UserError
from padapter.evaluation.files import read_json

NAME = "preprocessing.json"


def read_preprocessing(run: Path) -> dict[str, Any] | None:
    """How a run looks at pictures; ``None`` if it has not written that down yet.

    Raises:
        UserError: for a file that is damaged.
    """
    path = run / NAME
    if not path.exists():
        return None
    remedy = "restore it, or train the run anew"
    record = read_json(path, remedy)
    processor = record.get("processor")
    if not isinstance(processor, dict):
        raise UserError(f"{path}: is damaged ('processor' is no object); {remedy}")
    return record
