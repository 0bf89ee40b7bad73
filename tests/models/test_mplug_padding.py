"""How far a question is padded changes nothing of what adapters in mPLUG, or in BLIP's text encoder, compute."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from mplug_adapted import CLOSE, LAYERS, adapted
from tiny_mplug import pictures, texts
from transformers import BlipConfig, BlipForQuestionAnswering

from padapter.tuners import PAdapterConfig


@pytest.mark.parametrize(
    ("layer", "form", "attention"),
    [
        *((layer, "projected", "sdpa") for layer in LAYERS),
        ("pgnn", "projected", "eager"),
        ("appnp", "bottleneck", "sdpa"),
        ("gcnii", "bottleneck", "eager"),
    ],
)
def test_how_far_a_question_is_padded_changes_nothing(vqa, layer, form, attention):
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    base.set_attn_implementation(attention)
    model = adapted(base, PAdapterConfig(where="all", form=form, **LAYERS[layer]))
    lengths = [5, 2]
    pixels, (ids, mask), (answers, _) = pictures(sizes, 2), texts(sizes, lengths), texts(sizes, [4] * 2, seed=5)
    wide = torch.nn.functional.pad(ids, (0, 3), value=7)
    with torch.no_grad():
        batch = model(pixels, wide, torch.nn.functional.pad(mask, (0, 3)), decoder_input_ids=answers)
        for row, length in enumerate(lengths):
            here = slice(row, row + 1)
            alone = model(pixels[here], ids[here, :length], decoder_input_ids=answers[here])
            torch.testing.assert_close(batch.logits[here], alone.logits, **CLOSE)
            torch.testing.assert_close(batch.image_states[here], alone.image_states, **CLOSE)
            torch.testing.assert_close(batch.text_states[here, :length], alone.text_states, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_how_far_a_question_is_padded_changes_nothing_in_the_text_encoder_of_blip(layer):
    """Its decoder does attend to padding: transformers hands it no mask of the question."""
    width = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **width,
        "vocab_size": 30,
        "encoder_hidden_size": 8,
        "initializer_range": 0.5,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(0)
    vision = {**width, "image_size": 8, "patch_size": 4, "initializer_range": 0.5}
    base = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision, projection_dim=4))
    model = adapted(base, PAdapterConfig(where="language", **LAYERS[layer])).base_model.model
    ids = torch.tensor([[1, 5, 9, 4, 0, 0], [1, 7, 0, 0, 0, 0]])
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        batch = model.text_encoder(ids, (ids > 0).long(), encoder_hidden_states=states)[0]
        for row, length in enumerate((4, 2)):
            alone = model.text_encoder(ids[row : row + 1, :length], encoder_hidden_states=states[row : row + 1])[0]
            torch.testing.assert_close(batch[row : row + 1, :length], alone, **CLOSE)


def padded_inputs(sizes) -> dict[str, torch.Tensor]:
    (ids, mask), (answers, _) = texts(sizes, [5, 2, 3]), texts(sizes, [4] * 3, seed=5)
    return {"pixel_values": pictures(sizes, 3), "input_ids": ids, "attention_mask": mask, "decoder_input_ids": answers}


def test_padding_in_a_batch_with_several_adapters(vqa):
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    model = adapted(base, PAdapterConfig(where="all"))
    model.add_adapter("other", PAdapterConfig(where="all", p=1.1, init_weights=False), autocast_adapter_dtype=False)
    names, inputs = ["default", "__base__", "other"], padded_inputs(sizes)
    model.double()
    with torch.no_grad():
        mixed = model(**inputs, adapter_names=names).logits
        for row, name in enumerate(names):
            here = {key: value[row : row + 1] for key, value in inputs.items()}
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(**here).logits
            else:
                model.set_adapter(name)
                alone = model(**here).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, **CLOSE)


def test_padding_in_copies_and_after_unloading(vqa):
    plain, sizes = vqa
    inputs, model = padded_inputs(sizes), adapted(copy.deepcopy(plain), PAdapterConfig(where="fusion"))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        found = model(**inputs).logits
        for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert torch.equal(again(**inputs).logits, found)
        assert torch.equal(model.unload()(**inputs).logits, plain.requires_grad_(False)(**inputs).logits)
    for module in model.base_model.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_pre_hooks_with_kwargs
        assert not any(name.startswith("_padapter") for name in module.__dict__)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_padding_with_gradient_checkpointing(vqa):
    model, inputs = adapted(copy.deepcopy(vqa[0]), PAdapterConfig(where="all")), padded_inputs(vqa[1])
    inputs["labels"] = inputs["decoder_input_ids"]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(**inputs).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}

    plain = gradients()
    for reentrant in (True, False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        for name, gradient in gradients().items():
            torch.testing.assert_close(gradient, plain[name], msg=f"{name}, {reentrant=}", **CLOSE)


def test_a_mask_about_other_tokens_is_refused(vqa):
    """A row whose `padding` names the wrong module."""
    model = adapted(copy.deepcopy(vqa[0]), PAdapterConfig(where="fusion"))
    tap = model.base_model.model.fusion_encoder.encoder.layer[0].crossattention.self.__dict__["_padapter_padding"]
    tap._kept = torch.ones(3, 9, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"mask about \(3, 9\) tokens; mend `padding` in the row"):
        tap.take(torch.zeros(3, 2, 5, 4))
