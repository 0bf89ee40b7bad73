"""Prefixes and LoRA in mPLUG, and what a task does not train of a whole model."""

from __future__ import annotations

import copy

import mplug_reference as reference
import pytest
import torch
from mplug_adapted import CLOSE
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny_mplug import pictures, texts, tiny
from transformers import Trainer, TrainingArguments

from padapter.errors import UserError
from padapter.methods.prefix_model import PrefixModel
from padapter.training.gradients import GradientCheck, untrained
from padapter.tuners import BottleneckConfig, PAdapterConfig


def with_prefix(arrangement: str, virtual: int = 3):
    """(model, official state, sizes, prefix (n, layers, 2, d))."""
    base, state, sizes = tiny(arrangement, words=16, vision_layers=1, text_layers=1, fusion_layers=3)
    torch.manual_seed(2)
    layers = sizes.decoder_layers
    config = PrefixTuningConfig(
        num_virtual_tokens=virtual, num_layers=layers, token_dim=sizes.width, num_attention_heads=sizes.heads,
        encoder_hidden_size=sizes.width, num_transformer_submodules=1,
    )  # fmt: skip
    model = PrefixModel(base, config).double().eval()
    prefix = model.prompt_encoder["default"].embedding.weight.detach().view(virtual, layers, 2, sizes.width)
    return model, state, sizes, prefix


def decoder_by_hand(state, ids, states, states_mask, prefix, heads: int) -> torch.Tensor:
    """The decoder of the description with further keys and values in front of its self-attention."""
    x = reference.embed(state, "text_decoder.bert.embeddings", ids)
    (batch, length), virtual = ids.shape, prefix.shape[0]
    causal = torch.full((length, length), -1e30, dtype=x.dtype).triu(1)
    mask = torch.cat([x.new_zeros(length, virtual), causal], dim=1)
    read = None if states_mask is None else reference.additive(states_mask)
    for index, layer in enumerate(reference.layers_of(state, "text_decoder.bert.encoder.layer")):
        q, k, v = (reference.linear(state, f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        k, v = (torch.cat([prefix[:, index, i].expand(batch, -1, -1), own], dim=1) for i, own in enumerate((k, v)))
        out = reference.linear(state, f"{layer}.attention.output.dense", reference.attention(q, k, v, heads, mask))
        x = reference.norm(state, f"{layer}.attention.output.LayerNorm", out + x, 1e-12)
        x = reference.cross_attend(state, f"{layer}.crossattention", x, states, read, heads)
        x = reference.feed_forward(state, layer, x)
    head = "text_decoder.cls.predictions"
    x = reference.gelu(reference.linear(state, f"{head}.transform.dense", x))
    x = reference.norm(state, f"{head}.transform.LayerNorm", x, 1e-12)
    return x @ state["text_decoder.bert.embeddings.word_embeddings.weight"].T + state[f"{head}.bias"]


def test_a_prefix_is_keys_and_values_in_front_of_the_decoder():
    model, state, sizes, prefix = with_prefix("vqa")
    inner = model.base_model
    (ids, mask), (answers, _) = texts(sizes, [4, 2]), texts(sizes, [5, 5], seed=5)
    pixels = pictures(sizes, 2)
    with torch.no_grad():
        image, text = inner.fuse(inner.encode_images(pixels), ids, mask)
        both = torch.cat([torch.ones(image.shape[:2]).long(), mask], dim=1)
        wanted = decoder_by_hand(state, answers, torch.cat([image, text], dim=1), both, prefix, sizes.heads)
        found = inner(pixels, ids, mask, decoder_input_ids=answers, labels=answers).logits
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        "prompt_encoder.default.embedding.weight"
    }


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"search": "official", "num_beams": 3, "min_new_tokens": 1}])
def test_generation_with_a_prefix_and_prompts_padded_on_the_left(search):
    """With the cache as without, and as if each prompt stood alone: positions are those of the unadapted model."""
    model, _, sizes, _ = with_prefix("caption")
    inner, pixels, options = model.base_model, pictures(sizes, 2), {**search, "max_new_tokens": 4}
    prompts = torch.tensor([[2, 5, 6, 7], [0, 0, 2, 9]])
    written = [inner.generate(pixels, prompts, (prompts > 0).long(), **options, use_cache=use) for use in (True, False)]
    assert torch.equal(*written)
    alone = inner.generate(pixels[1:], prompts[1:, 2:], **options)[0].tolist()
    row = written[0][1].tolist()  # the official search leaves the padding out
    assert row[0 if "search" in search else 2 :][: len(alone)] == alone
    with torch.no_grad():
        padded = inner(pixels, prompts, (prompts > 0).long()).logits[1:, 2:]
        torch.testing.assert_close(padded, inner(pixels[1:], prompts[1:, 2:]).logits, **CLOSE)


def test_lora_is_merged_as_in_any_model(vqa):
    base, sizes = copy.deepcopy(vqa[0]), vqa[1]
    model = get_peft_model(base, LoraConfig(target_modules=["query", "v_proj"], init_lora_weights=False)).double()
    (ids, mask), (answers, _) = texts(sizes, [5, 2]), texts(sizes, [4, 4], seed=5)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": answers, "labels": answers}
    found = model.train()(pictures(sizes, 2), **inputs)
    found.loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with torch.no_grad():
        merged = model.merge_and_unload()(pictures(sizes, 2), **inputs)
    torch.testing.assert_close(merged.logits, found.logits, **CLOSE)


class Captions(torch.nn.Module):
    """The whole model, trained on captions: its decoder attends to the image, and nothing reads a question."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels):
        inner = self.model.base_model.model
        states = inner.encode_images(pixel_values)
        return inner.text_decoder(labels, encoder_hidden_states=states, labels=labels)


def train_captions(vqa, folder, where: str, config=PAdapterConfig):
    """(module, check, weights before) after two steps."""
    plain, sizes = vqa
    options = {"where": where, "activation": "gelu"}
    module = Captions(get_peft_model(copy.deepcopy(plain), config(**options), autocast_adapter_dtype=False).double())
    check, before = GradientCheck(module), {name: value.clone() for name, value in module.named_parameters()}
    pixels, (ids, _) = pictures(sizes, 2), texts(sizes, [4, 4])
    rows = [{"pixel_values": picture, "labels": row} for picture, row in zip(pixels, ids, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, learning_rate=0.1, weight_decay=0.1, use_cpu=True, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    Trainer(model=module, args=arguments, train_dataset=rows, callbacks=[check]).train()
    return module, check, before


@pytest.mark.parametrize("config", [PAdapterConfig, BottleneckConfig])
def test_adapters_that_captions_do_not_train_are_said(vqa, tmp_path, config):
    message = (
        r"[\d,]+ of [\d,]+ trainable parameters got no gradient in the first step and stay as they are: "
        r"[\d,]+ in the text_encoder part \(model\.base_model\.model\.text_encoder\.encoder\.layer\.0\.[^;]*\); "
        r"[\d,]+ in the fusion part \(.*fusion_encoder\.encoder\.layer\.0\..* and \d+ more\).*trains is in: decoder\."
    )
    with pytest.warns(UserWarning, match=message) as caught:
        module, check, before = train_captions(vqa, tmp_path, "language", config)
    assert sum("got no gradient" in str(warning.message) for warning in caught) == 1
    trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
    idle = {name: value for name, value in trainable.items() if "text_decoder" not in name}
    assert {name for names in check.found.names.values() for name in names} == idle.keys()
    assert check.found.total == sum(value.numel() for value in idle.values())
    assert check.found.of == sum(value.numel() for value in trainable.values())
    assert all(torch.equal(value, before[name]) == (name in idle) for name, value in trainable.items())
    assert not module._forward_hooks  # nothing is looked at any more


def test_training_captions_with_nothing_but_the_fusion_network_is_refused(vqa, tmp_path):
    with pytest.raises(UserError, match=r"none of the [\d,]+ trainable parameters got a gradient.* in the fusion part"):
        train_captions(vqa, tmp_path, "fusion")
    captioner, _, _ = tiny("caption")  # which has none at all
    with pytest.raises(
        UserError, match=r"where='fusion'.*leaves nothing to adapt. MPlugForConditionalGeneration has 4 in"
    ):
        get_peft_model(captioner, PAdapterConfig(where="fusion"))


def test_what_lora_does_not_train_is_told_by_part(vqa):
    plain, sizes = vqa
    module = Captions(get_peft_model(copy.deepcopy(plain), LoraConfig(target_modules=["query", "q_proj"])).double())
    module(pictures(sizes, 2), texts(sizes, [4, 4])[0]).loss.backward()
    found = untrained(module)
    assert found.counts == {"text_encoder": 8 * 16, "fusion": 7 * 8 * 16}  # r = 8, 8 features in and out
    assert found.trained == ("vision", "decoder")
