"""Each row through its own adapter, in every architecture, with beams, several images per sample and packed patches."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from test_every_architecture import CONFIGS, GENERATING, base, exactly, generate, outputs, shake
from tiny_models import IMAGE_TOKEN, MODELS, Inputs, pixels, text

from padapter.errors import UserError
from padapter.tuners.batches import Batch

NAMES = ["one", "__base__", "two"]


def several(name: str, config: str, where: str = "all") -> PeftModel:
    model = get_peft_model(base(name), CONFIGS[config](init_weights=False, where=where), adapter_name="one")
    model.add_adapter("two", CONFIGS[config](init_weights=False, where=where))
    for seed, adapter in enumerate(("one", "two")):
        model.set_adapter(adapter)
        shake(model, seed)
    return model.eval()


def alone(model: PeftModel, adapter: str, inputs: Inputs) -> torch.Tensor:
    if adapter == "__base__":
        with model.disable_adapter():
            return outputs(model, inputs)
    model.set_adapter(adapter)
    return outputs(model, inputs)


def row_of(name: str, inputs: Inputs, row: int, rows: int) -> Inputs:
    """One sample of a batch; what is packed has the same number of entries for each sample."""
    return {key: value.view(rows, -1, *value.shape[1:])[row] for key, value in inputs.items()}


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.in_turn("config", start=1)
def test_each_row_through_its_own_adapter(name, config):
    model, inputs, tolerance = exactly(name, several(name, config), MODELS[name].inputs(3))
    with torch.no_grad():
        mixed = outputs(PerRow(model, NAMES), inputs)
        for row, adapter in enumerate(NAMES):
            expected = alone(model, adapter, row_of(name, inputs, row, 3))
            torch.testing.assert_close(mixed[row : row + 1], expected, **tolerance)


class PerRow:
    """A model with `adapter_names` filled in."""

    def __init__(self, model: PeftModel, names: list[str]) -> None:
        self.model, self.names = model, names

    def __call__(self, **inputs):
        return self.model(**inputs, adapter_names=self.names)

    def generate(self, **inputs):
        return self.model.generate(**inputs, adapter_names=self.names)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("config", ["projected", "bottleneck form"])
@pytest.mark.in_turn("config", start=1)
def test_with_beams(name, config):
    model, inputs, _ = exactly(name, several(name, config), MODELS[name].inputs(2))
    mixed = generate(PerRow(model, ["one", "two"]), inputs, num_beams=3).sequences
    for row, adapter in enumerate(("one", "two")):
        model.set_adapter(adapter)
        expected = generate(model, row_of(name, inputs, row, 2), num_beams=3).sequences[0]
        both = min(len(expected), mixed.shape[1])  # alone, a finished sample does not wait for the others
        assert both > 1
        assert torch.equal(mixed[row][:both], expected[:both])


def _qwen(images: int) -> Inputs:
    ids = text(1, 15)
    for image in range(images):  # a word between two images
        ids[:, 1 + 5 * image : 5 + 5 * image] = IMAGE_TOKEN
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
        "pixel_values": torch.randn(16 * images, 96, generator=torch.Generator().manual_seed(images)),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * images),
    }


def _llava(images: int) -> Inputs:
    return {
        "input_ids": text(1, 5 + 4 * (2 - images), image_tokens=4 * images),
        "pixel_values": pixels(images, seed=images),
    }


IMAGES = {"qwen2-vl": _qwen, "qwen2.5-vl": _qwen, "qwen3-vl": _qwen, "llava": _llava}


@pytest.mark.parametrize("name", sorted(IMAGES))
@pytest.mark.parametrize("config", sorted(CONFIGS))
def test_samples_with_one_and_two_images(name, config):
    model = several(name, config)
    singles = [exactly(name, model, IMAGES[name](images))[1] for images in (1, 2, 1)]
    model, _, tolerance = exactly(name, model, {})
    together = {key: torch.cat([single[key] for single in singles]) for key in singles[0]}
    with torch.no_grad():
        mixed = outputs(PerRow(model, NAMES), together)
        for row, adapter in enumerate(NAMES):
            torch.testing.assert_close(mixed[row : row + 1], alone(model, adapter, singles[row]), **tolerance)


def test_what_cannot_be_told_is_refused():
    batch = Batch(("one", "two"), image_tokens=(4, 8))
    assert [len(group.rows or ()) for group in batch.groups(6, "vision")] == [2, 4]
    with pytest.raises(UserError, match=r"got 5 rows.*which sample \(image tokens per sample: \[4, 8\]\)"):
        batch.groups(5, "vision")
    with pytest.raises(UserError, match=r"unknown"):
        Batch(("one", "two")).groups(3, "vision")
    with pytest.raises(UserError, match=r"3 names, but the batch has 2 samples"), torch.no_grad():
        several("llava", "vanilla")(**MODELS["llava"].inputs(2), adapter_names=["one", "two", "one"])
