"""mPLUG as a model of transformers: caches, padding, checkpointing, saving, implementations of attention."""

from __future__ import annotations

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mplug import END, PAD, START, model_of, pictures, talkative, texts, tiny
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    DynamicCache,
)

from padapter.errors import UserError
from padapter.models.mplug import (
    MPlugConfig,
    MPlugForConditionalGeneration,
    MPlugForQuestionAnswering,
    MPlugModel,
    MPlugTextConfig,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def spoken(arrangement: str = "vqa", seed: int = 0, ending: float = 0.0, **options):
    """(model that says different things at different places, its sizes)."""
    attention, dropout = options.pop("attention", "sdpa"), options.pop("dropout", 0.0)
    _, state, sizes = tiny(arrangement, seed=seed, words=16, **options)
    made = model_of(talkative(state, seed, ending=ending), sizes, arrangement, attention=attention, dropout=dropout)
    return made, sizes


@pytest.mark.parametrize("arrangement", ["vqa", "caption"])
@pytest.mark.parametrize("beams", [1, 4])
def test_the_cache_changes_nothing(arrangement, beams):
    model, sizes = spoken(arrangement, seed=3, ending=0.5)
    inputs = {"pixel_values": pictures(sizes, 3)}
    if arrangement == "vqa":
        inputs["input_ids"], inputs["attention_mask"] = texts(sizes, [5, 2, 3])
    options = {"num_beams": beams, "max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True}
    cached, full = (model.generate(**inputs, **options, use_cache=use_cache) for use_cache in (True, False))
    assert cached.past_key_values is not None
    assert cached.sequences.tolist() == full.sequences.tolist()
    assert len(set(full.sequences[0].tolist())) > 1
    torch.testing.assert_close(cached.scores, full.scores, **CLOSE)


def test_a_filled_cache_reads_token_after_token_what_one_pass_reads():
    model, sizes = spoken("caption", decoder_layers=3)
    states = model.encode_images(pictures(sizes, 2))
    ids, mask = texts(sizes, [7, 7])
    whole = model.text_decoder(ids, encoder_hidden_states=states).logits
    cache = None
    for start, end in ((0, 3), (3, 4), (4, 7)):  # several tokens at once behind a filled cache too
        read = model.text_decoder(
            ids[:, start:end], encoder_hidden_states=states, attention_mask=mask[:, :end], past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        cache = read.past_key_values
        torch.testing.assert_close(read.logits, whole[:, start:end], **CLOSE)
    own = model.text_decoder(ids, encoder_hidden_states=states, past_key_values=DynamicCache(), use_cache=True)
    torch.testing.assert_close(own.logits, whole, **CLOSE)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.sampled_from(["sdpa", "eager"]), st.integers(0, 3))
@settings(max_examples=6)
def test_padding_of_the_question_is_not_read(lengths, attention, more):
    model, sizes = tiny(attention=attention)[::2]
    pixels, (ids, mask) = pictures(sizes, len(lengths)), texts(sizes, lengths)
    wide = torch.nn.functional.pad(ids, (0, more), value=7)  # whatever stands there
    answers, _ = texts(sizes, [4] * len(lengths), seed=5)
    batch = model(pixels, wide, torch.nn.functional.pad(mask, (0, more)), decoder_input_ids=answers)
    for row, length in enumerate(lengths):
        alone = model(pixels[row : row + 1], ids[row : row + 1, :length], decoder_input_ids=answers[row : row + 1])
        torch.testing.assert_close(batch.logits[row : row + 1], alone.logits, **CLOSE)
        torch.testing.assert_close(batch.image_states[row : row + 1], alone.image_states, **CLOSE)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=3), st.sampled_from(["sdpa", "eager"]))
@settings(max_examples=5)
def test_padding_on_the_left_is_not_read(lengths, attention):
    """Of prompts of the decoder, and of questions."""
    model, sizes = spoken("vqa", attention=attention)
    count, longest = len(lengths), max(lengths)
    pixels, (questions, _) = pictures(sizes, count), texts(sizes, [3] * count, seed=8)
    right, _ = texts(sizes, lengths)
    left = torch.stack([row.roll(longest - length) for row, length in zip(right, lengths, strict=True)])
    inputs = {"decoder_input_ids": left, "decoder_attention_mask": (left != PAD).long()}
    logits = model(pixels, questions, **inputs).logits
    options = {"max_new_tokens": 3, "num_beams": 2}
    written = model.generate(pixels, questions, **inputs, **options)
    turned = model(pixels, left, (left != PAD).long(), decoder_input_ids=questions).logits
    for row, length in enumerate(lengths):
        here, prompt = slice(row, row + 1), right[row : row + 1, :length]
        alone = model(pixels[here], questions[here], decoder_input_ids=prompt).logits
        torch.testing.assert_close(logits[here, longest - length :], alone, **CLOSE)
        single = model.generate(pixels[here], questions[here], decoder_input_ids=prompt, **options)
        kept = written[row, longest - length :].tolist()
        assert kept[: single.shape[1]] == single[0].tolist()
        asked = model(pixels[here], prompt, decoder_input_ids=questions[here]).logits
        torch.testing.assert_close(turned[here], asked, **CLOSE)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("arrangement", ["vqa", "caption"])
def test_gradient_checkpointing_gives_the_same_gradients(arrangement, reentrant):
    torch.manual_seed(0)
    model, _, sizes = tiny(arrangement, fusion_layers=4, stride=2, vision_width=6)
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [4, 3])
    inputs = {"pixel_values": pixels, "labels": ids.masked_fill(mask == 0, -100)}
    if arrangement == "vqa":
        inputs |= dict(zip(("input_ids", "attention_mask"), texts(sizes, [3, 5], seed=7), strict=True))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.train()
    plain = gradients()
    calls = []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
            function = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = lambda *args, _function=function: calls.append(1) or _function(*args)
    checkpointed = gradients()
    layers = sizes.vision_layers + sizes.decoder_layers
    layers += sizes.text_layers + sizes.fusion_layers if arrangement == "vqa" else 0
    assert len(calls) == layers
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name, **CLOSE)
    assert all(
        gradient.abs().sum() > 0
        for name, gradient in plain.items()
        if "key.bias" not in name and "k_proj.bias" not in name
    )


def test_implementations_of_attention_agree():
    eager, _, sizes = tiny(attention="eager", seed=4)
    fused = copy.deepcopy(eager)
    fused.set_attn_implementation("sdpa")
    assert eager.config.vision_config._attn_implementation == "eager"
    assert fused.text_decoder.config._attn_implementation == "sdpa"
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [5, 3])
    answers, answer_mask = texts(sizes, [4, 2], seed=6)
    outputs = [model(pixels, ids, mask, answers, answer_mask) for model in (eager, fused)]
    kept = answer_mask.bool()
    torch.testing.assert_close(outputs[0].logits[kept], outputs[1].logits[kept], **CLOSE)
    weights = eager(pixels, ids, mask, answers, answer_mask, output_attentions=True)
    assert [tuple(w.shape) for w in weights.attentions] == [(2, 2, 4, 4)] * 2
    assert [tuple(w.shape) for w in weights.cross_attentions] == [
        (2, 2, 4, 10)
    ] * 2  # 5 image tokens, 5 of the question
    assert weights.cross_attentions[0][1, :, :, 8:].abs().max() == 0  # the shorter question's padding


def test_attention_that_somebody_registered_is_called():
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    from padapter.models.mplug.attention import eager_attention_forward

    seen = []

    def watched(module, *args, **kwargs):
        seen.append(type(module).__name__)
        return eager_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("watched", watched)
    ALL_MASK_ATTENTION_FUNCTIONS.register("watched", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model, _, sizes = tiny()
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [5, 3])
    plain = model(pixels, ids, mask, decoder_input_ids=ids[:, :2]).logits
    model.set_attn_implementation("watched")
    torch.testing.assert_close(model(pixels, ids, mask, decoder_input_ids=ids[:, :2]).logits, plain, **CLOSE)
    connected = len(model.config.text_config.connected_layers)
    fusion = 2 * (sizes.fusion_layers - connected) + connected
    assert seen.count("MPlugVisionAttention") == sizes.vision_layers
    assert seen.count("MPlugTextAttention") == sizes.text_layers + fusion + 2 * sizes.decoder_layers


def test_dropout_is_drawn_in_training_only():
    model, _, sizes = tiny(dropout=0.5)
    pixels, (ids, mask) = pictures(sizes, 1), texts(sizes, [4])
    assert torch.equal(*(model(pixels, ids, mask, decoder_input_ids=ids).logits for _ in range(2)))
    model.train()
    vision = [model.vision_model(pixels).last_hidden_state for _ in range(2)]
    assert not torch.equal(*vision)  # of attention weights, the only dropout there is in the image encoder
    assert not torch.equal(*(model.text_encoder(ids).last_hidden_state for _ in range(2)))


@pytest.mark.parametrize("arrangement", ["vqa", "caption"])
def test_saving_and_loading(arrangement, tmp_path):
    model, _, sizes = tiny(arrangement, vision_width=6)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(report.values())
    for part in ("text_config", "vision_config"):
        assert {**loaded.config.to_dict()[part], "dtype": None} == {**model.config.to_dict()[part], "dtype": None}
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    head = loaded.text_decoder.cls["predictions"].decoder.weight
    assert head is loaded.text_decoder.bert.embeddings.word_embeddings.weight
    question = (torch.tensor([[START, 5]]),) if arrangement == "vqa" else ()
    assert loaded.generate(pictures(sizes, 1), *question, min_new_tokens=3).shape == (1, 4)


def test_auto_classes_and_parts(tmp_path):
    model, _, sizes = tiny()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MPlugConfig
    assert type(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)) is MPlugForQuestionAnswering
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [3, 2])
    for auto, wanted in ((AutoModel, MPlugModel), (AutoModelForImageTextToText, MPlugForConditionalGeneration)):
        part, report = auto.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
        assert type(part) is wanted
        assert not any(report.values())
        torch.testing.assert_close(part.encode_images(pixels), model.encode_images(pixels), **CLOSE)
    features = AutoModel.from_pretrained(tmp_path, dtype="auto")(pixels, ids, mask)
    torch.testing.assert_close(
        features.text_states, model(pixels, ids, mask, decoder_input_ids=ids).text_states, **CLOSE
    )
    assert type(AutoModel.from_config(model.config)) is MPlugModel


def test_a_fresh_model_is_initialised():
    """Class token, positions, biases and norms included; the published constructor leaves positions at zero."""
    config = MPlugConfig(
        vision_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32},
        text_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50},
    )
    model = MPlugForQuestionAnswering(config)
    for name, value in model.named_parameters():
        if "norm" in name.lower() or name.endswith("bias"):
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight")))), name
        else:
            assert 0.01 < value.std() < 0.2, name


def test_another_image_size():
    model, state, sizes = tiny("caption")
    large = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    with pytest.raises(UserError, match=r"12 x 12 pixels, and the model is made for 8 x 8"):
        model.encode_images(large)
    with pytest.raises(UserError, match="must be square"):
        model.encode_images(torch.zeros(1, 3, 12, 8), interpolate_pos_encoding=True)
    states = model.encode_images(large, interpolate_pos_encoding=True)
    small = model.encode_images(large[..., :8, :8])
    model.set_image_size(12)
    assert model.config.vision_config.image_size == 12
    torch.testing.assert_close(model.encode_images(large), states, **CLOSE)
    torch.testing.assert_close(
        model.encode_images(large[..., :8, :8], interpolate_pos_encoding=True).shape, small.shape
    )
    with pytest.raises(UserError, match="not a multiple of the patch size, 4"):
        model.set_image_size(10)
    copied = model_of(state, sizes, "caption")
    copied.set_image_size(8)  # fits already
    torch.testing.assert_close(copied.encode_images(large[..., :8, :8]), small, **CLOSE)


def test_what_is_missing_is_said():
    model, _, sizes = tiny()
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [3, 2])
    with pytest.raises(UserError, match="pixel_values or image_states"):
        model(input_ids=ids)
    with pytest.raises(UserError, match="pass input_ids, the questions"):
        model(pixels, decoder_input_ids=ids)
    with pytest.raises(UserError, match="input ids, or labels"):
        model(pixels, ids, mask)
    with pytest.raises(UserError, match="1 answers for 2 questions"):
        model(pixels, ids, mask, labels=ids[:1])
    with pytest.raises(UserError, match="2 entries that sum to 3, and there are 2 questions and 2 answers"):
        model(pixels, ids, mask, labels=ids, answer_counts=torch.tensor([1, 2]))
    with pytest.raises(UserError, match="reduction 'sum' is not one of image, none"):
        model(pixels, ids, mask, labels=ids, reduction="sum")
    with pytest.raises(UserError, match="the decoder needs encoder_hidden_states"):
        model.text_decoder(ids)
    with pytest.raises(UserError, match='search="official" has no option do_sample'):
        model.generate(pixels, ids, mask, search="official", do_sample=True)
    with pytest.raises(UserError, match="search 'best' is not one of transformers, official"):
        model.generate(pixels, ids, mask, search="best")
    with pytest.raises(UserError, match="must be 1 or more"):
        model.generate(pixels, ids, mask, search="official", num_beams=0)
    with pytest.raises(StrictDataclassError, match="hidden_size 10 is not a multiple"):
        MPlugTextConfig(hidden_size=10, num_attention_heads=4)
    with pytest.raises(StrictDataclassError, match="stride_layer is 0"):
        MPlugTextConfig(stride_layer=0)


def test_image_states_stand_for_pictures():
    model, sizes = spoken("vqa")
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [3, 2])
    states = model.encode_images(pixels)
    assert torch.equal(
        model(pixels, ids, mask, labels=ids).loss, model(None, ids, mask, labels=ids, image_states=states).loss
    )
    for options in ({"num_beams": 2, "max_new_tokens": 20}, {"search": "official"}):
        written = model.generate(pixels, ids, mask, **options)
        assert torch.equal(written, model.generate(None, ids, mask, image_states=states, **options))


def test_searches_end_where_they_should():
    model, sizes = spoken("caption", seed=1, ending=30.0)
    pixels = pictures(sizes, 2)
    assert model.generate(pixels, max_new_tokens=6).tolist() == [[START, END]] * 2
    assert model.generate(pixels, search="official", num_beams=3, min_new_tokens=0).tolist() == [[START, END]] * 2
    short = model.generate(pixels, search="official", num_beams=3, min_new_tokens=4, max_new_tokens=9)
    assert [row.index(END) for row in short.tolist()] == [5, 5]  # steps 0 to 3 cannot end
    assert model.official_lengths == (8, 25)
    assert MPlugForQuestionAnswering.official_lengths == (1, 10)


def test_a_training_step_in_half_precision_is_finite():
    model, _, sizes = tiny()
    model.bfloat16().train()
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [4, 2])
    loss = model(pixels, ids, mask, labels=ids).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
