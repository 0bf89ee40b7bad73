"""Official BLIP files become transformers models that compute what the equations say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blip_equations import image_states, logits, resized_positions, text_states, token_losses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official_blip import PUBLISHED, WORDS, Sizes, official, save, shapes_of, write_vocabulary
from tiny_blip import make_image
from transformers import AutoConfig, BlipForConditionalGeneration, BlipForQuestionAnswering, BlipProcessor

from padapter.architectures.positions import resize_table
from padapter.backbones import load_backbone
from padapter.checkpoints import convert_checkpoint
from padapter.checkpoints.blip.model import wanted_shapes
from padapter.checkpoints.blip.names import arrangement_of, layout
from padapter.checkpoints.blip.sizes import make_config, sizes_of
from padapter.checkpoints.layout import problems

TINY = Sizes()
EVEN = Sizes(text=128)
IDS = torch.tensor([[44, 9, 11, 12, 8, 3], [44, 20, 5, 3, 0, 0]])
MASK = (IDS != 0).long()
LABELS = IDS.masked_fill(MASK == 0, -100)
LABELS[:, :2] = -100
CLOSE = {"rtol": 0, "atol": 1e-9}


@pytest.fixture
def converted(tmp_path):
    """Writes an official file and converts it: (its weights, the folder, the report)."""

    def run(kind, sizes=TINY, *, change=None, **options):
        state = official(kind, sizes)
        if change is not None:
            change(state)
        report = convert_checkpoint(
            "blip",
            checkpoint=save(tmp_path / "official.pth", state),
            output=str(tmp_path / "out"),
            vocab=write_vocabulary(tmp_path / "vocab.txt"),
            **options,
        )
        return state, tmp_path / "out", report

    return run


def pixels(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def check_captioning(state, folder, side):
    """Image states, logits and all forms of the loss, of the folder's model and of the equations."""
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    assert model.dtype == torch.float64  # the file's own
    states = image_states(state, pixels(side))
    torch.testing.assert_close(model.vision_model(pixels(side)).last_hidden_state, states, **CLOSE)
    expected = logits(state, IDS, MASK, states)
    found = model(pixel_values=pixels(side), input_ids=IDS, attention_mask=MASK, labels=LABELS)
    torch.testing.assert_close(found.logits[MASK.bool()], expected[MASK.bool()], **CLOSE)
    losses = token_losses(expected, LABELS)
    torch.testing.assert_close(found.loss, losses.sum() / (LABELS[:, 1:] != -100).sum(), **CLOSE)
    summed = model.text_decoder(
        IDS, attention_mask=MASK, encoder_hidden_states=states, labels=LABELS, reduction="none"
    ).loss
    torch.testing.assert_close(summed, losses.sum(-1), **CLOSE)
    assert expected.std() > 0.3  # of weights that all do something


def test_the_table_of_these_tests_is_that_of_the_published_file():
    names = list(shapes_of("pretraining", PUBLISHED))
    counts = {part: sum(name.startswith(f"{part}.") for name in names) for part in ("visual_encoder", "text_decoder")}
    assert counts == {"visual_encoder": 150, "text_decoder": 324}
    assert sum(name.startswith("text_encoder.") for name in names) == 317
    assert shapes_of("pretraining", PUBLISHED)["visual_encoder.pos_embed"] == (1, 197, 768)


@pytest.mark.parametrize("kind", ["pretraining", "captioning", "vqa"])
@pytest.mark.parametrize("arrangement", ["caption", "vqa"])
def test_every_entry_of_the_published_files_has_a_place(kind, arrangement):
    """At full size, by names and shapes alone."""
    found = shapes_of(kind, PUBLISHED)
    sizes = sizes_of(found)
    assert (sizes.vision, sizes.text) == ((768, 3072, 12), (768, 3072, 12))
    assert (sizes.patch, sizes.grid, sizes.words, sizes.positions) == (16, 14, 30524, 512)
    table = layout(arrangement)
    wrong = problems(table.sort(found), found, wanted_shapes(sizes, arrangement), table)
    if (kind, arrangement) == ("captioning", "vqa"):
        assert len(wrong) == 1
        assert wrong[0].startswith("missing: text_encoder.embeddings.word_embeddings.weight, ")
        assert "text_encoder.encoder.layer.{0-11}.crossattention.self.key.bias" in wrong[0]
    else:
        assert wrong == []


@pytest.mark.parametrize("kind", ["pretraining", "captioning"])
def test_caption_arrangement_computes_what_the_equations_say(converted, kind):
    state, folder, report = converted(kind)
    assert report.image_size == 12
    check_captioning(state, folder, 12)
    dropped = {"momentum copies", "projections of the contrastive loss", "text encoder"}
    assert dropped <= set(report.dropped) if kind == "pretraining" else set(report.dropped) == {"position numbers"}
    assert report.notes == []
    assert f"{report.parameters:,} parameters" in report.format()
    assert "left behind (entries): " in report.format()
    assert f"position numbers {report.dropped['position numbers']}" in report.format()
    assert sum(report.dropped.values()) + len(BlipForConditionalGeneration.from_pretrained(folder).state_dict()) == len(
        state
    )


@pytest.mark.parametrize(("kind", "arrangement"), [("vqa", None), ("pretraining", "vqa")])
def test_question_answering_computes_what_the_equations_say(converted, kind, arrangement):
    state, folder, report = converted(kind, EVEN, arrangement=arrangement)
    assert report.model == "BlipForQuestionAnswering"
    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    question = torch.tensor([[45, 5, 7, 9, 16, 3], [45, 28, 27, 22, 23, 3]])  # no padding: transformers would read it
    everything = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    states = image_states(state, pixels(12))
    read = text_states(state, "text_encoder", question, states, everything)
    found = model.text_encoder(question, attention_mask=torch.ones_like(question), encoder_hidden_states=states)
    torch.testing.assert_close(found.last_hidden_state, read, **CLOSE)
    answer = torch.tensor([[44, 12, 3], [44, 25, 3]])
    expected = logits(state, answer, torch.ones_like(answer), read)
    loss = model(question, pixels(12), labels=answer, attention_mask=torch.ones_like(question)).loss
    torch.testing.assert_close(loss, token_losses(expected, answer).mean(), **CLOSE)


def test_a_question_file_as_captioning_model(converted):
    state, folder, report = converted("vqa", EVEN, arrangement="caption")
    check_captioning(state, folder, 12)
    assert "train it before use" in report.format()
    assert report.dropped["text encoder"] > 0


def test_pretraining_without_its_heads_is_still_told_from_question_answering():
    state = official("pretraining")
    kept = {
        name: value
        for name, value in state.items()
        if name.split(".")[0] in ("visual_encoder", "text_encoder", "text_decoder")
    }
    assert arrangement_of(state) == arrangement_of(kept) == "caption"
    assert arrangement_of(official("vqa")) == "vqa"
    assert arrangement_of(official("captioning")) == "caption"


@pytest.mark.parametrize(("asked", "grid"), [(20, 5), (8, 2), (4, 1), (12, 3)])
def test_positions_are_interpolated(converted, asked, grid):
    state, folder, report = converted("captioning", image_size=asked)
    table = state["visual_encoder.pos_embed"]
    state["visual_encoder.pos_embed"] = resized_positions(table, grid)
    check_captioning(state, folder, asked)
    assert len(report.notes) == (grid != 3)
    processor = BlipProcessor.from_pretrained(folder)
    assert processor(images=make_image(0), return_tensors="pt")["pixel_values"].shape == (1, 3, asked, asked)
    if grid == 3:
        model = BlipForConditionalGeneration.from_pretrained(folder)
        assert torch.equal(model.vision_model.embeddings.position_embedding, table)


@given(old=st.integers(1, 9), new=st.integers(1, 9), mode=st.sampled_from(["bicubic", "bilinear"]))
@settings(max_examples=40)
def test_interpolation_keeps_the_class_token_and_a_constant_grid(old, new, mode):
    table = torch.cat([torch.full((1, 1, 2), 7.0), torch.full((1, old * old, 2), 3.0)], dim=1)
    found = resize_table(table, new, mode=mode)
    expected = torch.cat([table[:, :1], torch.full((1, new * new, 2), 3.0)], dim=1)
    torch.testing.assert_close(found, expected)
    random = torch.randn(1, old * old + 1, 3, dtype=torch.float64)
    if mode == "bicubic":
        torch.testing.assert_close(resize_table(random, new, mode=mode), resized_positions(random, new), **CLOSE)


@given(
    vision=st.tuples(st.sampled_from([64, 128]), st.integers(1, 3)),
    text=st.tuples(st.sampled_from([64, 128]), st.integers(1, 3)),
    mlp=st.integers(8, 40),
    patch=st.sampled_from([2, 4]),
    grid=st.integers(1, 4),
    new_grid=st.integers(1, 4),
    kind=st.sampled_from(["pretraining", "captioning"]),
)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_size(tmp_path_factory, vision, text, mlp, patch, grid, new_grid, kind):
    tmp_path = tmp_path_factory.mktemp("any")
    sizes = replace(
        TINY, vision=vision[0], vision_layers=vision[1], vision_mlp=mlp, text=text[0], text_layers=text[1],
        text_mlp=mlp + 3, patch=patch, grid=grid,
    )  # fmt: skip
    state = official(kind, sizes, seed=grid)
    convert_checkpoint(
        "blip",
        checkpoint=save(tmp_path / "official.pth", state),
        output=str(tmp_path / "out"),
        vocab=write_vocabulary(tmp_path / "vocab.txt"),
        image_size=patch * new_grid,
    )
    state["visual_encoder.pos_embed"] = resized_positions(state["visual_encoder.pos_embed"], new_grid)
    check_captioning(state, tmp_path / "out", patch * new_grid)


def test_configuration_tokenizer_and_processor(converted):
    _, folder, _ = converted("pretraining", image_size=20)
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    assert (text.num_attention_heads, vision.num_attention_heads) == (1, 2)  # 64 channels each
    assert (vision.layer_norm_eps, text.layer_norm_eps) == (1e-6, 1e-12)
    assert text.label_smoothing == 0.1
    assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (0.1, 0.1)
    assert (text.bos_token_id, text.eos_token_id, text.sep_token_id, text.pad_token_id) == (44, 3, 3, 0)
    assert (vision.image_size, vision.patch_size, text.encoder_hidden_size) == (20, 4, 128)
    assert config.architectures == ["BlipForConditionalGeneration"]
    assert BlipForConditionalGeneration.from_pretrained(folder).generation_config.eos_token_id == 3
    processor = BlipProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    assert (len(tokenizer), tokenizer.model_max_length) == (46, 24)
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [44, 45]
    assert sorted(tokenizer("the red dog")) == ["attention_mask", "input_ids"]
    assert tokenizer("The RED dogs").input_ids == [2, 9, 12, 21, 23, 3]
    images = processor.image_processor
    assert list(images.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    assert list(images.image_std) == [0.26862954, 0.26130258, 0.27577711]
    assert (images.resample, dict(images.size)) == (3, {"height": 20, "width": 20})
    origin = json.loads((folder / "conversion.json").read_text())
    assert (origin["checkpoint"], origin["image_size"], len(origin["sha256"])) == ("official.pth", 20, 64)


def test_published_sizes_have_the_published_values():
    ids = {"bos": 30522, "sep": 102, "pad": 0}
    config = make_config(sizes_of(shapes_of("captioning", PUBLISHED)), image_size=224, ids=ids)
    text, vision = config.text_config, config.vision_config
    assert (text.num_attention_heads, vision.num_attention_heads) == (12, 12)
    assert (text.bos_token_id, text.eos_token_id, text.sep_token_id, text.pad_token_id) == (30522, 102, 102, 0)
    large = sizes_of({**shapes_of("captioning", replace(PUBLISHED, vision=1024, vision_mlp=4096, vision_layers=24))})
    assert large.vision == (1024, 4096, 24)
    assert make_config(large, image_size=224, ids=ids).vision_config.num_attention_heads == 16


def test_untied_weights_stay_apart(converted):
    def untie(state):
        state["text_decoder.cls.predictions.decoder.weight"] = (
            state["text_decoder.cls.predictions.decoder.weight"] * 1.5
        )
        state["text_decoder.cls.predictions.decoder.bias"] = state["text_decoder.cls.predictions.decoder.bias"] + 1

    state, folder, report = converted("captioning", change=untie)
    assert "the model is untied" in report.notes[0]
    check_captioning(state, folder, 12)
    assert not AutoConfig.from_pretrained(folder).tie_word_embeddings
    backbone = load_backbone(str(folder), dtype="float64")
    decoder = backbone.base_model.text_decoder
    assert torch.equal(decoder.cls.predictions.decoder.bias, state["text_decoder.cls.predictions.decoder.bias"])
    assert decoder.get_input_embeddings().weight is not decoder.cls.predictions.decoder.weight


@pytest.mark.parametrize("short", ["decoder.bias", "bias", "both"])
def test_an_output_bias_shorter_than_the_vocabulary(converted, short):
    names = [f"text_decoder.cls.predictions.{name}" for name in ("decoder.bias", "bias") if short in (name, "both")]

    def cut(state):
        for name in names:
            state[name] = state[name][:-2]

    state, folder, report = converted("captioning", change=cut)
    full = official("captioning")["text_decoder.cls.predictions.bias"].clone()
    if short == "both":
        full[-2:] = 0
    assert len(report.notes) == len(names)
    assert "44 entries for 46 words" in report.notes[0]
    state["text_decoder.cls.predictions.decoder.bias"] = full
    check_captioning(state, folder, 12)
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_loads_as_float32_for_training(tmp_path, dtype):
    state = official("captioning", dtype=dtype)
    convert_checkpoint(
        "blip",
        checkpoint=save(tmp_path / "a.pth", state),
        output=str(tmp_path / "out"),
        vocab=write_vocabulary(tmp_path / "vocab.txt"),
        image_size=16,
    )
    assert BlipForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto").dtype == dtype
    assert load_backbone(str(tmp_path / "out")).base_model.dtype == torch.float32


def test_what_was_converted_trains(converted, tmp_path):
    """From an official file to a score, through the command line's own function."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
    from tiny_world import short_run, write_data

    from padapter.training import train

    _, folder, _ = converted("pretraining")
    options = short_run(str(folder), write_data(tmp_path / "data", "vqa"), output=str(tmp_path / "run"), max_steps=2)
    report = train(options)
    assert report.metrics["training"]["parameters"]["trainable"] > 0
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()


def test_a_question_answering_folder_is_not_trained_without_a_word(converted, caplog):
    _, folder, _ = converted("vqa", EVEN)
    with caplog.at_level("WARNING"):
        load_backbone(str(folder))
    assert "text_encoder" in caplog.text


def test_vocabulary_of_the_tests():
    assert len(WORDS) + 2 == TINY.words
