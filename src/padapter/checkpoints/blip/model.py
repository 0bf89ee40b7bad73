"""The conversion of official BLIP files, from reading to a checked folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import pad

from padapter.architectures.positions import resize_table
from padapter.checkpoints.base import Conversion
from padapter.checkpoints.blip import CAPTION, VQA, BlipOptions
from padapter.checkpoints.blip.names import ADAPTERS, BIASES, MODELS, POSITIONS, TIES, arrangement_of, layout
from padapter.checkpoints.blip.processor import add_tokens, check_processor, make_processor, token_ids
from padapter.checkpoints.blip.sizes import Sizes, checked_image_size, make_config, sizes_of
from padapter.checkpoints.checkpoint import bad_values, entries, existing_checkpoint, read_checkpoint
from padapter.checkpoints.layout import Layout, Shape, problems, together
from padapter.checkpoints.vocabulary import bert_tokenizer
from padapter.checkpoints.writing import build, check_output, check_written, new_folder, write_origin
from padapter.errors import UserError

NOTES = {
    (VQA, VQA): [
        "`padapter train` reads image tower and decoder alone; --arrangement caption leaves the text encoder out"
    ],
    (VQA, CAPTION): [
        "the decoder was trained to look at the text encoder's states, not at those of the image: train it before use"
    ],
}
"""(What a file was trained as, what it is converted to) -> what to know about it."""


def convert_blip(options: BlipOptions) -> Conversion:
    """Convert an official checkpoint; the folder appears when it is complete and has been read back.

    Raises:
        UserError: if the file is no official BLIP checkpoint (naming every entry that is unknown, missing or of a wrong
            shape), the vocabulary does not fit it, or the output exists.
    """
    file = existing_checkpoint(options.checkpoint)
    output = check_output(options.output, file, overwrite=options.overwrite)
    tokenizer = bert_tokenizer(options.vocab)  # before the file, which may take minutes to read
    weights = entries(read_checkpoint(file, trust_pickle=options.trust_pickle), "model", file)
    _refuse_adapters(weights, file)
    trained_as = arrangement_of(weights)
    arrangement = options.arrangement or trained_as
    sizes = sizes_of({name: tuple(value.shape) for name, value in weights.items()})
    side = checked_image_size(options.image_size, sizes)
    model_class = getattr(transformers, MODELS[arrangement])

    state, dropped, notes = translate(weights, sizes, arrangement, file)
    tied = _untie(state, notes)
    _resize(state, sizes, side, notes)
    notes += NOTES.get((trained_as, arrangement), [])
    tokenizer = add_tokens(tokenizer, sizes.words, sizes.positions)
    config = make_config(sizes, image_size=side, ids=token_ids(tokenizer), tied=tied)
    with new_folder(output) as folder:
        model = build(model_class, config, state)
        model.save_pretrained(folder)
        make_processor(tokenizer, side).save_pretrained(folder)
        count = {what: len(names) for what, names in dropped.items()}
        write_origin(
            folder, file, format="blip", arrangement=arrangement, image_size=side, left_behind=count, notes=notes
        )
        check_written(folder, model_class, state)
        check_processor(folder, sizes.words, side)
    return Conversion(output, MODELS[arrangement], side, sum(p.numel() for p in model.parameters()), count, notes)


def translate(
    weights: Mapping[str, torch.Tensor], sizes: Sizes, arrangement: str, file: Path
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]], list[str]]:
    """Entries under their names in transformers, what is left behind, and what was mended.

    Args:
        weights: the file's entries.
        sizes: of its towers.
        arrangement: which model they are for.
        file: for messages.

    Returns:
        (state, with positions as in the file; what it is -> names; notes).

    Raises:
        UserError: naming all entries that are unknown, missing, of a wrong shape, or hold no finite numbers.
    """
    weights, notes = _mend_bias(weights, sizes.words)
    table = layout(arrangement)
    done = table.sort(weights)
    wanted = wanted_shapes(sizes, arrangement)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = problems(done, found, wanted, table) + bad_values({name: weights[name] for name in done.moved})
    if arrangement == VQA and sizes.vision[0] != sizes.text[0]:
        wrong.append(
            f"widths: transformers builds question answering only where image tower ({sizes.vision[0]}) and text "
            f"encoder ({sizes.text[0]}) are equally wide"
        )
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise UserError(
            f"CHECKPOINT: {file} is no official BLIP checkpoint for the {arrangement} arrangement:\n{lines}"
        )
    dtype = reduce(torch.promote_types, (weights[name].dtype for name in done.moved))
    # Copies: encoder and decoder of a pre-training file share memory, which the folder's weights must not.
    state = {target: weights[name].detach().to(dtype, copy=True).contiguous() for name, target in done.moved.items()}
    return state, done.dropped, notes


def wanted_shapes(sizes: Sizes, arrangement: str) -> dict[str, Shape]:
    """Name -> shape of every weight of the model in transformers, with the file's own grid of positions."""
    config = make_config(sizes, image_size=sizes.grid * sizes.patch, ids={"bos": 0, "sep": 0, "pad": 0})
    with torch.device("meta"):
        model = getattr(transformers, MODELS[arrangement])(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _refuse_adapters(weights: Mapping[str, Any], file: Path) -> None:
    for what, names in Layout({}, {}, ADAPTERS).sort(weights).foreign.items():
        raise UserError(
            f"CHECKPOINT: {file} holds {len(names)} entries of {what} ({', '.join(together(names))}), which compute "
            "something else than ours and are not converted. Convert the BLIP file that their training started from, "
            "and train an adapter with `padapter train`; `--set form=bottleneck` has the form of theirs."
        )


def _mend_bias(weights: Mapping[str, torch.Tensor], words: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Make an output bias that is shorter than the vocabulary as long as it: growing the vocabulary left such ones."""
    mended, notes = dict(weights), []
    lengths = {name: len(weights[name]) for name in BIASES if name in weights and weights[name].dim() == 1}
    full = next((name for name, length in lengths.items() if length == words), None)
    for name, length in lengths.items():
        if length >= words:
            continue
        mended[name] = pad(weights[name], (0, words - length)) if full is None else weights[full]
        instead = f"{words - length} zeros were added" if full is None else f"{full} is used for both"
        notes.append(f"{name} has {length} entries for {words} words; {instead}")
    return mended, notes


def _untie(state: dict[str, torch.Tensor], notes: list[str]) -> bool:
    """Whether all ties hold (tied weights then share memory); where one does not, nothing is tied."""
    broken = [
        f"{name} differs from {other}" for name, other in TIES.items() if not torch.equal(state[name], state[other])
    ]
    if broken:
        notes.append(f"{' and '.join(broken)}: the model is untied and stores both")
        return False
    state.update({name: state[other] for name, other in TIES.items()})
    return True


def _resize(state: dict[str, torch.Tensor], sizes: Sizes, side: int, notes: list[str]) -> None:
    grid = side // sizes.patch
    if grid != sizes.grid:
        state[POSITIONS] = resize_table(state[POSITIONS], grid, mode="bicubic")
        notes.append(f"positions interpolated from {sizes.grid} x {sizes.grid} to {grid} x {grid} patches")
