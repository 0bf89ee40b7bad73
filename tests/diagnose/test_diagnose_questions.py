"""Graphs of models that read a question with the picture: mPLUG's in every part, and a Q-Former's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model
from scipy.stats import entropy
from tiny_blip import make_image
from tiny_image_text import PROCESSORS, build
from tiny_mplug import WORDS, make_processor, tiny
from transformers import AutoProcessor

from padapter.backbones import TrainingExample
from padapter.backbones.image_text import ImageTextBackbone
from padapter.backbones.mplug import MPlugBackbone
from padapter.diagnose import diagnose
from padapter.diagnose.page import render
from padapter.tuners import PAdapterConfig

ROWS = (("what color is the dog?", "red"), ("how many cats", "yes a two dogs"), ("what", "a red dog"))
PATCHES = 5  # of the tiny model, the class token included


def examples(rows=ROWS):
    return [TrainingExample(make_image(n), prompt, ((text, 1.0),)) for n, (prompt, text) in enumerate(rows)]


def values(found):
    return np.array([record["mean"] for record in found.numbers()], dtype=float)


@pytest.fixture(scope="module")
def backbone():
    """Two layers of every kind: image, question, co-attention, connected, decoder."""
    sizes = {"fusion_layers": 3, "fusion_built": 4, "stride": 2, "text_layers": 1, "decoder_layers": 1}
    model, _, _ = tiny("vqa", words=len(WORDS), **sizes, vision_layers=1)
    made = MPlugBackbone(model.eval(), make_processor(), "tiny-mplug")
    torch.manual_seed(0)
    adapter = PAdapterConfig(where="all", p=1.3, mu=0.3, init_weights=False)
    made.model = get_peft_model(made.model, adapter).double()
    return made


@pytest.fixture(scope="module")
def found(backbone):
    return diagnose(backbone, examples(), points=6, batch_size=3, where="all")


def test_every_part_of_mplug_is_measured_and_padding_is_no_node(backbone, found):
    """The longest question is as long as the longest answer, so a mask of the others would fit."""
    tokenizer = backbone.processor.tokenizer
    asked, said = (
        sum(1 + len(tokenizer(row[part], add_special_tokens=False).input_ids) for row in ROWS) for part in (0, 1)
    )
    said += len(ROWS)  # the end token
    pictures = PATCHES * len(ROWS)
    assert asked != said
    kinds = {layer.label: layer for layer in found.layers}
    expected = {
        "vision layer 0, self-attention": pictures,
        "text_encoder layer 0, self-attention": asked,
        "fusion layer 0, self-attention": asked,
        "fusion layer 0, cross-attention": asked,
        "fusion layer 1, self-attention": asked,
        "fusion layer 1, cross-attention": asked,
        "fusion layer 2, self-attention": pictures + asked,
        "decoder layer 0, self-attention": said,
        "decoder layer 0, cross-attention": said,
    }
    assert {label: layer.after.plain.entropy.count[0] for label, layer in kinds.items()} == expected
    for label, layer in kinds.items():
        assert set(layer.exponents) == {"p", "mu"}
        assert layer.after.divergence.overall > 1e-6
        # places in a text, but not where picture and question stand side by side
        told = "cross" not in label and label != "fusion layer 2, self-attention"
        assert (layer.after.plain.by_offset is not None) == told


@pytest.mark.slow
def test_every_part_of_mplug_is_on_the_page(found):
    page = render(found)
    assert all(layer.label in page for layer in found.layers)


def test_batches_leave_no_trace(backbone, found):
    alone = diagnose(backbone, examples(), points=0, batch_size=1, where="all")
    together = diagnose(backbone, examples(), points=0, batch_size=3, where="all")
    np.testing.assert_allclose(values(alone), values(together), atol=1e-10)


def test_entropies_are_those_of_the_models_own_eager_attention(backbone, found):
    """One question at a time, so without padding, through the model's own forward."""
    model, tokenizer, seen, hooks = backbone.base_model, backbone.processor.tokenizer, {}, []

    def see(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append(output[1][0].numpy())

    for layer in found.layers:
        hooks.append(model.get_submodule(layer.name).register_forward_hook(see(layer.name)))
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad(), backbone.model.disable_adapter():
            for example in examples():
                pixels = backbone.processor.image_processor([example.image], return_tensors="pt")["pixel_values"]
                question, answer = (
                    [backbone.start_id, *tokenizer(text, add_special_tokens=False).input_ids]
                    for text in (example.prompt, example.targets[0][0])
                )
                model(
                    pixel_values=pixels.double(),
                    input_ids=torch.tensor([question]),
                    decoder_input_ids=torch.tensor([[*answer, backbone.end_id]]),
                )
    finally:
        model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()
    for layer in found.layers:
        expected = np.concatenate([entropy(weights, axis=-1) for weights in seen[layer.name]], axis=1)  # (H, nodes)
        np.testing.assert_allclose(layer.before.plain.entropy.mean, expected.mean(axis=1), atol=1e-9)


def test_a_q_former_and_its_decoder(tmp_path):
    processor = PROCESSORS["blip-2 (OPT)"]()
    processor.save_pretrained(tmp_path)  # it works only once it has been saved and loaded
    backbone = ImageTextBackbone(build("blip-2 (OPT)"), AutoProcessor.from_pretrained(tmp_path), "tiny-blip-2")
    backbone.model = get_peft_model(backbone.model, PAdapterConfig(p=1.3, mu=0.2, where="all", init_weights=False))
    rows = examples((("what", "red"), ("what color is the thing ?", "blue")))
    alone, together = (diagnose(backbone, rows, points=0, batch_size=size, where="all") for size in (1, 2))
    np.testing.assert_allclose(values(alone), values(together), atol=1e-5)
    assert {layer.part for layer in alone.layers} == {"vision", "connector", "decoder"}
    assert all(layer.after.divergence.overall > 0 for layer in alone.layers)
