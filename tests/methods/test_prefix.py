from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_blip import make_backbone
from toy_task import ANSWERS, PROMPTS, assert_same, outputs, overfit, toy_batch, toy_images

from padapter.errors import UserError
from padapter.methods import METHODS, trainable_parameters


def with_prefix(tokens=5, **options):
    torch.manual_seed(1)
    backbone = make_backbone()
    METHODS["prefix"].apply(backbone, METHODS["prefix"].parse({"num_virtual_tokens": tokens, **options}))
    return backbone


def decoder_by_hand(backbone, ids, states):
    """The decoder of one unpadded row with a prefix, attention written out from the layer's own weights."""
    decoder = backbone.base_model.text_decoder
    config, (_, length) = decoder.config, ids.shape
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    prefix = backbone.model.prompt_encoder["default"].embedding.weight  # (n, layers * 2 * d)
    virtual = prefix.shape[0]
    prefix = prefix.view(virtual, config.num_hidden_layers, 2, heads, width)

    def split(states):
        return states.view(1, -1, heads, width).transpose(1, 2)

    embeddings = decoder.bert.embeddings
    positions = embeddings.position_embeddings.weight[:length]  # not shifted by the prefix
    hidden = embeddings.LayerNorm(embeddings.word_embeddings(ids) + positions)
    allowed = torch.ones(length, virtual + length).tril(virtual).bool()
    for index, layer in enumerate(decoder.bert.encoder.layer):
        attention = layer.attention.self
        keys = torch.cat([prefix[:, index, 0].transpose(0, 1)[None], split(attention.key(hidden))], dim=2)
        values = torch.cat([prefix[:, index, 1].transpose(0, 1)[None], split(attention.value(hidden))], dim=2)
        scores = split(attention.query(hidden)) @ keys.mT / math.sqrt(width)
        context = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ values
        hidden = layer.attention.output(context.transpose(1, 2).reshape(1, length, -1), hidden)
        hidden, _ = layer.crossattention(hidden, encoder_hidden_states=states)
        hidden = layer.feed_forward_chunk(hidden)
    return decoder.cls(hidden)


def test_loss_and_logits_are_those_of_keys_and_values_in_front():
    backbone = with_prefix()
    backbone.model.double()
    batch = toy_batch(backbone)
    logits = backbone.training_module("sequence")(**batch)["logits"]
    states = backbone.base_model.vision_model(pixel_values=batch["pixel_values"].double()).last_hidden_state
    expected = []
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        every = decoder_by_hand(backbone, batch["input_ids"][row : row + 1, :length], states[row : row + 1])[0]
        expected.append(every[:-1][batch["labels"][row, 1:length] != -100])
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_the_cache_is_the_same(beams):
    backbone = with_prefix()
    decoder = backbone.base_model.text_decoder
    pixels = backbone.processor.image_processor(toy_images(), return_tensors="pt")["pixel_values"]
    states = backbone.base_model.vision_model(pixel_values=pixels).last_hidden_state
    ids, mask = backbone._prompts(PROMPTS, room=20)
    runs = [
        decoder.generate(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=states,
            num_beams=beams,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=3,
            pad_token_id=0,
            use_cache=use_cache,
        ).tolist()
        for use_cache in (True, False)
    ]
    assert runs[0] == runs[1]


def test_token_by_token_with_the_cache_equals_the_full_forward():
    backbone = with_prefix()
    decoder, batch = backbone.base_model.text_decoder, toy_batch(backbone)
    states = backbone.base_model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
    full = decoder(input_ids=batch["input_ids"], encoder_hidden_states=states).logits
    steps, cache = [], None
    for column in batch["input_ids"].T:
        step = decoder(input_ids=column[:, None], encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        steps.append(step.logits)
        cache = step.past_key_values
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=1e-5, atol=2e-5)


def test_greedy_is_the_argmax_of_the_decoder_by_hand():
    backbone = with_prefix()
    tokenizer = backbone.processor.tokenizer
    texts = backbone.generate(toy_images(), PROMPTS, max_new_tokens=6)
    for image, prompt, text in zip(toy_images(), PROMPTS, texts, strict=True):
        pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        states = backbone.base_model.vision_model(pixel_values=pixels).last_hidden_state
        ids = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + 6 and ids[-1] != backbone.end_id:
                ids.append(int(decoder_by_hand(backbone, torch.tensor([ids]), states)[0, -1].argmax()))
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_beams_are_those_of_a_search_by_hand():
    """Three beams of exactly four tokens, kept and reordered with plain lists; the prefix decides between them."""
    backbone, plain = with_prefix(), make_backbone()
    tokenizer, beams, new = backbone.processor.tokenizer, 3, 4
    texts = backbone.generate(toy_images(), PROMPTS, num_beams=beams, max_new_tokens=new, min_new_tokens=new)
    for image, prompt, text in zip(toy_images(), PROMPTS, texts, strict=True):
        pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        states = backbone.base_model.vision_model(pixel_values=pixels).last_hidden_state
        start = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        kept = [(0.0, start)]
        for _ in range(new):
            longer = []
            for score, ids in kept:
                with torch.no_grad():
                    log_probs = decoder_by_hand(backbone, torch.tensor([ids]), states)[0, -1].log_softmax(-1)
                log_probs[backbone.end_id] = float("-inf")
                longer += [(score + float(value), [*ids, token]) for token, value in enumerate(log_probs)]
            kept = sorted(longer, key=lambda item: -item[0])[:beams]
        assert text == tokenizer.decode(kept[0][1][len(start) :], skip_special_tokens=True).strip()
    assert texts != plain.generate(toy_images(), PROMPTS, num_beams=beams, max_new_tokens=new, min_new_tokens=new)


def test_it_learns_the_answers_and_then_says_them():
    backbone = with_prefix(tokens=12)
    losses = overfit(backbone, steps=150, rate=5e-2)
    assert losses[-1] < 0.5 * losses[0]
    batch = toy_batch(backbone)
    with torch.no_grad():
        forced = backbone.training_module("sequence")(**batch)["logits"].argmax(-1)
    labels = batch["labels"][:, 1:]
    assert torch.equal(forced, labels[labels >= 0])
    assert backbone.generate(toy_images(), PROMPTS, max_new_tokens=8) == ANSWERS
    scores = torch.tensor(backbone.rank(toy_images(), PROMPTS, ANSWERS))
    assert scores.argmax(1).tolist() == [0, 1, 2]


def test_only_the_prefix_is_trained_and_every_number_of_it_gets_a_gradient():
    backbone = with_prefix()
    prefix = backbone.model.prompt_encoder["default"].embedding.weight
    assert trainable_parameters(backbone.model)[0] == prefix.numel() == 5 * 2 * 2 * 32
    backbone.training_module("sequence")(**toy_batch(backbone))["loss"].backward()
    assert (prefix.grad != 0).all()
    assert all(p.grad is None for p in backbone.base_model.parameters())


def test_a_zero_prefix_takes_attention_away_but_adds_nothing():
    backbone = with_prefix(init="zero")
    assert backbone.model.prompt_encoder["default"].embedding.weight.abs().sum() == 0
    assert not torch.equal(outputs(backbone)[0], outputs(make_backbone())[0])


def test_without_the_prefix_it_is_the_base_model_bit_for_bit():
    base, backbone = make_backbone(), with_prefix()
    with backbone.model.disable_adapter():
        assert_same(outputs(backbone), outputs(base))
    assert not torch.equal(outputs(backbone)[0], outputs(base)[0])
    backbone.model = METHODS["prefix"].unwrap(backbone.model)
    assert_same(outputs(backbone), outputs(base))


def test_a_copy_has_its_own_prefix():
    backbone = with_prefix()
    before = outputs(backbone)
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        copied.model.prompt_encoder["default"].embedding.weight.zero_()
    assert not torch.equal(outputs(copied)[0], before[0])
    assert_same(outputs(backbone), before)


def test_gradient_checkpointing_is_refused():
    backbone = with_prefix()
    backbone.base_model.text_decoder.bert.encoder.gradient_checkpointing = True
    backbone.model.train()
    with pytest.raises(UserError, match="gradient checkpointing"):
        backbone.training_module("sequence")(**toy_batch(backbone))


def test_a_model_family_without_a_known_decoder_is_refused():
    backbone = make_backbone()
    backbone.model.config.model_type = "unheard-of"
    with pytest.raises(UserError, match=r"does not know model type 'unheard-of' .*Known: blip"):
        METHODS["prefix"].apply(backbone, METHODS["prefix"].options())
    assert backbone.model is backbone.base_model


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_four_dimensions_grows_by_the_prefix(additive):
    decoder = with_prefix().base_model.text_decoder
    ids, states = torch.tensor([[44, 5, 6], [44, 7, 8]]), torch.randn(2, 5, 24)
    seen = torch.ones(3, 3, dtype=torch.bool).tril().expand(2, 1, 3, 3)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if additive else seen
    if not additive:  # what a decoder that adds its mask could not use
        calls = []
        decoder.bert.encoder.register_forward_pre_hook(
            lambda _m, _a, kwargs: calls.append(kwargs["attention_mask"]), with_kwargs=True
        )
    with torch.no_grad():
        found = decoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states).logits
        expected = decoder(input_ids=ids, attention_mask=torch.ones(2, 3), encoder_hidden_states=states).logits
    if additive:
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(calls[0], torch.cat([torch.ones(2, 1, 3, 5, dtype=torch.bool), seen], dim=3))
