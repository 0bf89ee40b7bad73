"""Two samples with pictures of different sizes in one batch: each as it is alone, under adapters everywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from test_every_architecture import CONFIGS, base, exactly, outputs, shake
from test_mixed_batches import PerRow, alone, several
from tiny_models import IMAGE_TOKEN, MODELS, Inputs, text

from padapter.errors import UserError
from padapter.tuners import PAdapterConfig

WORDS = ("input_ids", "attention_mask", "mm_token_type_ids", "decoder_input_ids")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed)))


def _words(image_tokens: int, seed: int) -> Inputs:
    ids = text(1, 6, image_tokens=image_tokens, extra=seed)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _qwen(wide: bool) -> Inputs:
    height, width = 4, 12 if wide else 4
    inputs = _words(height * width // 4, seed=wide)
    inputs["input_ids"][:, 0] = 91
    return {
        **inputs,
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE_TOKEN).int(),
        "pixel_values": _random(height * width, 96, seed=wide),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }


def _tiles(wide: bool) -> Inputs:
    """One tile of 16 x 16, or three."""
    tiles = 3 if wide else 1
    return {**_words(4 * tiles, seed=wide), "pixel_values": _random(1, tiles, 3, 16, 16, seed=wide)}


def _onevision(wide: bool) -> Inputs:
    # The picture as one tile, and its tiles; two lines of two or four tokens, each with a newline token.
    tiles, tokens = (1 + 2, 4 + 2 * 5) if wide else (1 + 1, 4 + 2 * 3)
    return {
        **_words(tokens, seed=wide),
        "pixel_values": _random(1, tiles, 3, 16, 16, seed=wide),
        "image_sizes": torch.tensor([[16, 32 if wide else 16]]),
    }


def _patches(wide: bool) -> Inputs:
    rows, columns = (2, 3) if wide else (2, 2)
    places = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1)).float()
    return {
        "flattened_patches": torch.cat([places, _random(rows * columns, 12, seed=wide)], dim=-1)[None],
        "attention_mask": torch.ones(1, rows * columns),
        "decoder_input_ids": text(1, 5, extra=wide),
    }


#: name -> a sample with a small or a wide picture; joined with zeros up to the larger, as the processors do.
SAMPLES: dict[str, tuple[str, Callable[[bool], Inputs]]] = {
    "qwen2-vl": ("qwen2-vl", _qwen),
    "qwen2.5-vl": ("qwen2.5-vl", _qwen),
    "qwen3-vl": ("qwen3-vl", _qwen),
    "smolvlm": ("smolvlm", _tiles),
    "idefics3": ("idefics3", _tiles),
    "llava-onevision": ("llava-onevision", _onevision),
    "pix2struct": ("pix2struct", _patches),
}
PACKED = ("image_grid_thw",)


def together(samples: list[Inputs]) -> Inputs:
    """A batch: packed pictures one after the other, everything else padded with zeros at its end."""
    packed = any(key in samples[0] for key in PACKED)
    batch = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if not (packed and key == "pixel_values"):
            shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
            values = [_pad(value, shape) for value in values]
        batch[key] = torch.cat(values)
    return batch


def _pad(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    padded = value.new_zeros(len(value), *shape)
    padded[(slice(None), *(slice(size) for size in value.shape[1:]))] = value
    return padded


@pytest.mark.parametrize("name", sorted(SAMPLES))
@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.in_turn("config")
def test_pictures_of_different_sizes_in_one_batch(name, config):
    architecture, sample = SAMPLES[name]
    model = several(architecture, config)
    samples = [exactly(architecture, model, sample(wide))[1] for wide in (False, True, False)]
    model, batch, tolerance = exactly(architecture, model, together(samples))
    names = ["one", "two", "__base__"]
    with torch.no_grad():
        expected = {(row, key): alone(model, key, samples[row]) for row in range(3) for key in names}
        for key in names:
            compare(alone(model, key, batch), [expected[row, key] for row in range(3)], tolerance)
        mixed = outputs(PerRow(model, names), batch)
        compare(mixed, [expected[row, key] for row, key in enumerate(names)], tolerance)


def test_tiles_that_could_be_shared_out_evenly_are_not():
    """Two, two and five tiles are nine rows for three samples."""
    model = several("llava-onevision", "vanilla")
    model.config.image_grid_pinpoints = [*model.config.image_grid_pinpoints, [16, 64]]
    sizes = ([16, 16], [16, 16], [16, 64])
    samples = []
    for seed, size in enumerate(sizes):
        columns = size[1] // 8
        samples.append(
            {
                **_words(4 + 2 * (columns + 1), seed=seed),
                "pixel_values": _random(1, 1 + columns // 2, 3, 16, 16, seed=seed),
                "image_sizes": torch.tensor([size]),
            }
        )
    samples = [exactly("llava-onevision", model, sample)[1] for sample in samples]
    model, batch, tolerance = exactly("llava-onevision", model, together(samples))
    names = ["one", "two", "__base__"]
    with torch.no_grad():
        expected = [alone(model, key, sample) for key, sample in zip(names, samples, strict=True)]
        compare(outputs(PerRow(model, names), batch), expected, tolerance)


def test_images_of_several_sizes_per_sample_are_refused():
    model = several("llava-onevision", "vanilla")
    ids = text(2, 6, image_tokens=10)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _random(4, 3, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16], [16, 32], [16, 16], [16, 16]]),
        "batch_num_images": torch.tensor([2, 2]),
    }
    with torch.no_grad():
        # Nothing else can be the matter: each image is one tile, of four tokens and a newline.
        outputs(model, batch)
        with pytest.raises(UserError, match=r"got 4 rows.*which sample.*unknown"):
            outputs(PerRow(model, ["one", "two"]), batch)


@pytest.mark.parametrize("name", ["bert", "t5", "clip"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_of_an_encoder_changes_nothing(name, implementation):
    """Degrees of a bidirectional graph sum over queries, but not over padding."""
    model = base(name)
    model.set_attn_implementation(implementation)
    model = get_peft_model(model, PAdapterConfig(where="all", degree="auto", init_weights=False))
    shake(model)
    model, inputs, tolerance = exactly(name, model.eval(), MODELS[name].inputs(1))
    length = inputs["input_ids"].shape[1]
    longer = dict(inputs)
    for key in ("input_ids", "attention_mask"):
        longer[key] = _pad(inputs[key], [length + 4])
    if implementation == "eager":  # some models hand no mask on where nothing is padded
        tolerance = {"atol": 1e-4, "rtol": 1e-3}
    with torch.no_grad():
        found, expected = outputs(model, longer), outputs(model, inputs)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, **tolerance)


def compare(found, expected, tolerance):
    for row, single in enumerate(expected):
        torch.testing.assert_close(found[row : row + 1, : single.shape[1]], single, **tolerance)
