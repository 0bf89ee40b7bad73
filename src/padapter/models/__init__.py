"""Models that ship with the package, so that everything can be tried without a connection."""

from __future__ import annotations

from pathlib import Path

#: name -> folder under ``assets``, in transformers format with tokenizer and processor
BUILTIN_MODELS = {"shapes-blip": "shapes_blip"}


def builtin_path(name: str) -> Path | None:
    """The folder of a built-in model, or ``None`` when ``name`` is not one.

    Raises:
        FileNotFoundError: the installed package lacks the model's files.
    """
    if name not in BUILTIN_MODELS:
        return None
    path = Path(__file__).parent / "assets" / BUILTIN_MODELS[name]
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"the built-in model {name!r} is not in this installation ({path} has no config.json); "
            "reinstall padapter, or run `make pretrain` in a source checkout"
        )
    return path
