"""The conversion of official mPLUG files, from reading to a checked folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from padapter.checkpoints.base import Conversion
from padapter.checkpoints.checkpoint import bad_values, entries, existing_checkpoint, read_checkpoint
from padapter.checkpoints.layout import problems
from padapter.checkpoints.mplug import MPlugOptions
from padapter.checkpoints.mplug.names import MODELS, POSITIONS, TIES, fine_tuned_names, layout, packed
from padapter.checkpoints.mplug.sizes import config_of
from padapter.checkpoints.vocabulary import bert_tokenizer, check_bert_ids
from padapter.checkpoints.writing import build, check_output, check_written, new_folder, write_origin
from padapter.errors import UserError
from padapter.models import mplug
from padapter.models.mplug.configuration import MPlugConfig
from padapter.models.mplug.positions import resize_positions
from padapter.models.mplug.processing import MPlugProcessor, image_processor
from padapter.models.mplug.tokenization import MPlugTokenizer
from padapter.options.fields import refuse


def convert_mplug(options: MPlugOptions) -> Conversion:
    """Convert an official checkpoint; the folder appears when it is complete and has been read back.

    Raises:
        UserError: if the file is no official mPLUG checkpoint (naming every entry that is unknown, missing or of a
            wrong shape), the vocabulary does not fit it, or the output exists.
    """
    file = existing_checkpoint(options.checkpoint)
    output = check_output(options.output, file, overwrite=options.overwrite)
    bert = bert_tokenizer(options.vocab)  # before the file, which may take minutes to read
    checkpoint = read_checkpoint(file, trust_pickle=options.trust_pickle)
    weights, modelscope = fine_tuned_names(entries(checkpoint, _key_of(checkpoint), file))
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    config, first = config_of(shapes, fusion_layers=options.fusion_layers, stride_layer=options.stride_layer)
    state, dropped = translate(weights, config, first=first, arrangement=options.arrangement, file=file)
    trailing = modelscope if options.trailing_sep is None else options.trailing_sep
    vision = config.vision_config
    if options.image_dropout is not None:
        vision.attention_dropout = options.image_dropout
    elif modelscope:
        vision.attention_dropout = 0.0  # as its code has it
    drop = vision.attention_dropout
    notes = [
        f"questions end with{'' if trailing else 'out'} [SEP]",
        f"in training the image encoder drops {drop:g} of its attention weights"
        + (" (--image-dropout 0 lets `train --cache-features` keep its output)" if drop else ""),
        *_resize(state, config, options.image_size),
    ]
    processor = _processor(bert, config, trailing)
    model_class = getattr(mplug, MODELS[options.arrangement])
    count = {what: len(names) for what, names in dropped.items()}
    side = config.vision_config.image_size
    with new_folder(output) as folder:
        model = build(model_class, config, state)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_origin(
            folder,
            file,
            format="mplug",
            arrangement=options.arrangement,
            image_size=side,
            left_behind=count,
            notes=notes,
        )
        check_written(folder, model_class, state)
        _check_processor(folder, processor)
    return Conversion(output, model_class.__name__, side, sum(p.numel() for p in model.parameters()), count, notes)


def translate(
    weights: Mapping[str, torch.Tensor], config: MPlugConfig, *, first: int, arrangement: str, file: Path
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Entries under the names of our model, and what is left behind.

    Args:
        weights: the file's entries, under the names of a fine-tuned file.
        config: of the model, for images of the size in the file.
        first: index, in the file, of the first layer of the fusion network that runs.
        arrangement: ``vqa`` or ``caption``.
        file: for messages.

    Returns:
        (state, in the widest precision of the file, at least float32; what it is -> names).

    Raises:
        UserError: naming all entries that are unknown, missing, of a wrong shape, hold no finite numbers, or differ
            from what they must be equal to.
    """
    table = layout(config, arrangement, first)
    done = table.sort(weights)
    parts = packed(_shapes(config, arrangement))
    wanted = _wanted(config, arrangement, parts)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = problems(done, found, wanted, table) + bad_values({name: weights[name] for name in done.moved})
    dtype = torch.float32
    for name in done.moved:
        dtype = torch.promote_types(dtype, weights[name].dtype)
    moved = {target: weights[name].detach().to(dtype) for name, target in done.moved.items()}
    if not wrong:
        wrong = [
            f"{name} differs from {other}, which is the same tensor in the official code"
            for name, other in TIES.items()
            if not torch.equal(moved[name], moved[other])
        ]
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise UserError(f"CHECKPOINT: {file} is no official mPLUG checkpoint:\n{lines}")
    state: dict[str, torch.Tensor] = {}
    for whole, names in parts.items():
        state.update(zip(names, (part.clone() for part in moved[whole].chunk(len(names))), strict=True))
    words = "text_decoder.cls.predictions.decoder.weight"
    state[words] = state[TIES[words]]  # one tensor, as in the model
    return state, done.dropped


def _shapes(config: MPlugConfig, arrangement: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = getattr(mplug, MODELS[arrangement])(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _wanted(config: MPlugConfig, arrangement: str, parts: Mapping[str, list[str]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the entries of the table; the official head has its bias under two names."""
    shapes = _shapes(config, arrangement)
    wanted = {
        whole: (len(names) * shapes[names[0]][0], *shapes[names[0]][1:]) if len(names) > 1 else shapes[names[0]]
        for whole, names in parts.items()
    }
    wanted["text_decoder.cls.predictions.bias"] = wanted["text_decoder.cls.predictions.decoder.bias"]
    return wanted


def _key_of(checkpoint: Any) -> str:
    """Where the weights are: DeepSpeed calls them ``module``."""
    return (
        "module"
        if isinstance(checkpoint, Mapping) and "model" not in checkpoint and "module" in checkpoint
        else "model"
    )


def _resize(state: dict[str, torch.Tensor], config: MPlugConfig, asked: int | None) -> list[str]:
    """Interpolate positions to the asked image size, and note it in the config."""
    vision = config.vision_config
    side, patch = asked or vision.image_size, vision.patch_size
    if side % patch:
        raise refuse("--image-size", f"{side} is no multiple of the model's patches of {patch} pixels")
    old, new = vision.image_size // patch, side // patch
    if old == new:
        return []
    state[POSITIONS] = resize_positions(state[POSITIONS], new)
    vision.image_size = side
    return [f"positions interpolated from {old} x {old} to {new} x {new} patches"]


def _processor(bert: Any, config: MPlugConfig, trailing_sep: bool) -> MPlugProcessor:
    text = config.text_config
    if len(bert) != text.vocab_size:
        raise UserError(
            f"--vocab: {len(bert)} tokens, but CHECKPOINT embeds {text.vocab_size}; give the one it was trained with"
        )
    wrong = check_bert_ids(bert, text.vocab_size)
    if wrong:
        raise UserError(f"--vocab: not the vocabulary of mPLUG: {'; '.join(wrong)}")
    tokenizer = MPlugTokenizer(
        vocab=bert.get_vocab(), model_max_length=text.max_position_embeddings, trailing_sep=trailing_sep
    )
    text.bos_token_id, text.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    text.pad_token_id = tokenizer.pad_token_id
    return MPlugProcessor(image_processor(config.vision_config.image_size), tokenizer)


def _check_processor(folder: Path, processor: MPlugProcessor) -> None:
    """Read tokenizer and image processor back.

    Raises:
        RuntimeError: if they are not what was written.
    """
    read = AutoProcessor.from_pretrained(folder)
    text = "what is in the picture?"
    if read.tokenizer(text).input_ids != processor.tokenizer(text).input_ids or (
        read.image_processor.size != processor.image_processor.size
    ):
        raise RuntimeError(f"the processor in {folder} does not read back as it was written")
