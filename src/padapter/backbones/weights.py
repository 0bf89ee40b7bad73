"""Models from folders of ``save_pretrained``: what can go wrong, said in words."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from padapter.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Run a block that reads files of a model; what goes wrong becomes a user error.

    Args:
        name: what the user calls the model.

    Raises:
        UserError: with the library's own words.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"model '{name}' cannot be loaded: {error}") from error


def load_whole(
    kind: type[PreTrainedModel],
    path: str | Path,
    name: str,
    *,
    dtype: torch.dtype,
    is_not: str,
    unread: str,
    **how: Any,
) -> Any:
    """Load a model and account for every weight.

    Args:
        kind: its class.
        path: folder or hub id.
        name: what the user calls it; adapters record it.
        dtype: of the weights in memory.
        is_not: says of a folder that lacks weights what it is not, after "model NAME".
        unread: says of weights that the class has no place for why they are not read.
        **how: further arguments of ``from_pretrained``.

    Returns:
        The model.

    Raises:
        UserError: for files that cannot be read, and for weights that are missing.
    """
    with loading(name):
        model, report = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **how)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"model '{name}' {is_not}: {len(missing)} weights are missing, e.g. {', '.join(missing[:3])}.")
    extra = sorted({key.split(".")[0] for key in report["unexpected_keys"]})
    if extra:
        logger.warning("model '%s': %s is not read; %s", name, ", ".join(extra), unread)
    model.name_or_path = name  # PEFT copies it into adapter_config.json
    model.config._name_or_path = name
    return model
