"""From what a user calls a model to a backbone."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from padapter.backbones.base import ATTENTIONS, Backbone
from padapter.backbones.blip import BlipBackbone
from padapter.backbones.encoder_decoder import EncoderDecoderBackbone, is_encoder_decoder
from padapter.backbones.image_text import ImageTextBackbone
from padapter.backbones.mplug import MPlugBackbone
from padapter.backbones.weights import loading
from padapter.errors import UserError
from padapter.models import BUILTIN_MODELS, builtin_path

BACKBONES: dict[str, type[Backbone]] = {"blip": BlipBackbone, "mplug": MPlugBackbone}
"""Model families with a reading and writing of their own, by ``config.model_type``; others have a processor that makes
their prompts: `EncoderDecoderBackbone`, or `ImageTextBackbone` for decoder-only models."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_backbone(
    model_id_or_dir: str,
    *,
    dtype: torch.dtype | str | None = None,
    attention: str = "sdpa",
    asks: bool | None = None,
) -> Backbone:
    """Load a vision-language model with its processor.

    Args:
        model_id_or_dir: A built-in name (``shapes-blip``), a folder written by ``save_pretrained``, or a hub id.
        dtype: Type of the weights in memory, e.g. ``torch.bfloat16`` or ``"bfloat16"``; default float32, whatever
            the file holds, since float16 weights do not train well.
        attention: How plain attention is computed: "sdpa", in one fused call
            (`torch.nn.functional.scaled_dot_product_attention`) wherever the model's family can, or "eager", step by
            step as transformers writes it. The results are the same but for rounding.
        asks: Whether prompts will ask something about the picture (``Task.asks``). Families with one arrangement
            for questions and another for captions load the one that is needed; the others do not care. None: the
            arrangement that the folder holds.

    Returns:
        The backbone of the model's family.

    Raises:
        UserError: If there is no such model, it is an adapter rather than a model, its family is unknown, or
            ``attention`` is another word, or a model for captions is to be asked something.
    """
    if attention not in ATTENTIONS:
        raise UserError(f"attention '{attention}' is not one of {', '.join(ATTENTIONS)}.")
    name = str(model_id_or_dir)
    path = _locate(name)
    _check_type(_model_type(path, name), name)
    with loading(name):
        config = AutoConfig.from_pretrained(path)
    family = family_of(config, name)
    return family.load(path, name=name, dtype=_dtype(dtype), attention=attention, asks=asks)


def family_of(config: PreTrainedConfig, name: str) -> type[Backbone]:
    """The family of backbones that reads and writes for a model.

    Args:
        config: of the model.
        name: what the user calls the model.

    Raises:
        UserError: if there is none.
    """
    _check_type(config.model_type, name)
    if config.model_type in BACKBONES:
        return BACKBONES[config.model_type]
    return EncoderDecoderBackbone if is_encoder_decoder(config) else ImageTextBackbone


def _check_type(model_type: str, name: str) -> None:
    known = {*BACKBONES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    if model_type not in known:
        raise UserError(
            f"model '{name}' is of type '{model_type}', which is no image-text-to-text model of transformers. "
            f"Known model types: {', '.join(sorted(known))}."
        )


def _locate(name: str) -> str | Path:
    """Return the folder to read, or the hub id unchanged."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_model_folder(folder)
        return folder
    if folder.is_file():
        raise UserError(f"model '{name}' is a file. Give the folder that holds the model's config.json.")
    try:
        builtin = builtin_path(name)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    if builtin is not None:
        return builtin
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"model '{name}': there is no such folder.")
    return name


def _check_model_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model '{folder}' is a PEFT adapter, not a model. Give the model it was trained on as the model "
            "(base_model_name_or_path in its adapter_config.json) and this folder as the adapter."
        )
    raise UserError(f"model '{folder}' holds no config.json. Give a folder written by save_pretrained.")


def _model_type(path: str | Path, name: str) -> str:
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model '{name}' is neither a folder here nor a model that can be fetched ({reason}). Give a folder, a "
            f"built-in model ({', '.join(BUILTIN_MODELS)}), or a hub id while the hub can be reached."
        ) from error
    return str(config.get("model_type", "without a model_type"))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None) if dtype is not None else torch.float32
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype '{dtype}' is not one of float32, bfloat16, float16, float64.")
    return found
