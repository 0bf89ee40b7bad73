"""`padapter convert mplug`: files in every official layout, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

import mplug_reference as reference
from mplug_official import Sizes, as_modelscope, as_pretraining, base, official_state, shapes
from tiny_mplug import WORDS, pictures, texts

from padapter.checkpoints import convert_checkpoint
from padapter.checkpoints.mplug.names import fine_tuned_names, layout
from padapter.checkpoints.mplug.sizes import config_of
from padapter.errors import UserError
from padapter.models.mplug import MPlugForConditionalGeneration, MPlugForQuestionAnswering

#: a head is 64 wide in every published model, so these have one or two
SIZES = Sizes(
    width=64, heads=1, words=len(WORDS), vision_width=64, fusion_built=5, fusion_layers=4, stride=3, clip_layers=1
)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return official_state(SIZES)


def convert(tmp_path, weights, *, key="model", sizes=SIZES, others=None, **options):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    torch.save({key: weights, **(others or {})}, tmp_path / "mplug.pth")
    return convert_checkpoint(
        "mplug",
        checkpoint=str(tmp_path / "mplug.pth"),
        output=str(tmp_path / "out"),
        vocab=str(vocabulary),
        **{"fusion_layers": sizes.fusion_layers, "stride_layer": sizes.stride, **options},
    )


def check(folder, state, sizes=SIZES):
    """The folder's model computes what the file describes."""
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folder, dtype="auto", attn_implementation="eager")
    state = {name: value.double() for name, value in state.items()}
    pixels, (ids, mask) = pictures(sizes, 2), texts(sizes, [4, 3])
    image = reference.image_features(state, pixels, heads=sizes.heads)
    text = reference.text_features(state, ids, mask, heads=sizes.heads)
    image, text = reference.fusion(
        state, text, image, mask, heads=sizes.heads, run=sizes.fusion_layers, stride=sizes.stride
    )
    states_mask = torch.cat([torch.ones(image.shape[:2]).long(), mask], dim=1)
    logits = reference.decoder_logits(state, ids, torch.cat([image, text], dim=1), states_mask, heads=sizes.heads)
    found = model.double()(pixels, ids, mask, ids, mask).logits
    torch.testing.assert_close(found[mask.bool()], logits[mask.bool()], rtol=1e-9, atol=1e-9)
    return model


@pytest.mark.parametrize("layout_name", ["fine-tuned", "pre-training", "other pre-training", "deepspeed", "modelscope"])
def test_every_layout_gives_the_model_that_the_file_describes(layout_name, state, tmp_path):
    made, key, others = state, "model", {}
    if layout_name == "fine-tuned":
        made = official_state(SIZES, distilled=True)
        made |= state
    elif layout_name == "deepspeed":
        key, others = "module", {"global_steps": 3, "optimizer": None}
    elif layout_name == "modelscope":
        made, key = as_modelscope(state), "module"
    else:
        made = as_pretraining(state, "fusion" if layout_name == "pre-training" else "bert")
        positions = "visual_encoder.visual.positional_embedding"
        made[positions] = made[positions][None]
    done = convert(tmp_path, made, key=key, others=others)
    model = check(tmp_path / "out", state)
    assert isinstance(model, MPlugForQuestionAnswering)
    assert done.model == "MPlugForQuestionAnswering"
    assert done.parameters == sum(p.numel() for p in model.parameters())
    moved = len(made) - sum(done.dropped.values())
    kept = {name for name in model.state_dict() if not any(part in name for part in (".k_proj", ".v_proj"))}
    assert moved == len(kept) + 1  # the bias of the head stands in the file twice
    expected = {"momentum copies": len(state)} if layout_name == "fine-tuned" else {}
    for what, count in expected.items():
        assert done.dropped[what] == count
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert (tokenizer("red").input_ids[-1] == tokenizer.sep_token_id) is (layout_name == "modelscope")
    assert f"questions end with{'' if layout_name == 'modelscope' else 'out'} [SEP]" in done.format()
    drop = 0.0 if layout_name == "modelscope" else 0.1
    assert model.config.vision_config.attention_dropout == drop
    assert f"in training the image encoder drops {drop:g} of its attention weights" in done.format()
    origin = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert origin["left_behind"] == dict(done.dropped)


def test_captioning_alone(state, tmp_path):
    done = convert(tmp_path, state, arrangement="caption", image_dropout=0.0)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vision_config"]["attention_dropout"] == 0.0
    model = MPlugForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto")
    assert done.dropped["text encoder and fusion network"] > 0
    pixels, (ids, _) = pictures(SIZES, 2), texts(SIZES, [4, 4])
    image = reference.image_features(state, pixels, heads=SIZES.heads)
    wanted = reference.decoder_logits(state, ids, image, None, heads=SIZES.heads)
    torch.testing.assert_close(model(pixels, ids).logits, wanted, rtol=1e-9, atol=1e-9)


def test_the_bridge_of_vit_l(tmp_path):
    sizes = replace(SIZES, vision_width=128, heads=2, width=128, vision_layers=1)
    sizes = replace(sizes, vision_width=64)  # one head in the image, two in the text
    weights = official_state(sizes)
    done = convert(tmp_path, weights, sizes=sizes, stride_layer=None)
    model = MPlugForQuestionAnswering.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.config.text_config.stride_layer == 6
    assert model.config.text_config.connected_layers == []
    assert torch.equal(model.bridge.dense.weight, weights["visn_fc.weight"])
    assert done.dropped["first layers of the fusion network, which do not run"] == 26


def test_another_image_size_and_half_precision(state, tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    done = convert(tmp_path, half, image_size=12)
    assert done.image_size == 12
    assert "positions interpolated from 2 x 2 to 3 x 3 patches" in done.format()
    model = MPlugForQuestionAnswering.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.float32
    assert model.config.vision_config.image_size == 12
    table = half["visual_encoder.visual.positional_embedding"].double()
    grid = table[1:].reshape(2, 2, -1)
    found = model.vision_model.embeddings.position_embedding.weight.double()
    assert torch.equal(found[0], table[0])
    torch.testing.assert_close(found[1], grid[0, 0])  # a corner, beyond the outermost old centres
    torch.testing.assert_close(found[1 + 4], grid.mean((0, 1)))  # the middle
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.size == {"height": 12, "width": 12}


def test_published_sizes_and_entries():
    """1047 entries; what the table takes is what the base model has."""
    found = shapes(base())
    config, first = config_of(found, fusion_layers=6, stride_layer=None)
    assert first == 6
    assert config.to_dict()["text_config"] == type(config)().to_dict()["text_config"]
    assert config.to_dict()["vision_config"] == type(config)().to_dict()["vision_config"]
    done = layout(config, "vqa", first).sort(found)
    assert not done.unknown
    assert not done.foreign
    assert len(done.moved) + sum(map(len, done.dropped.values())) == 1047
    with torch.device("meta"):
        model = MPlugForQuestionAnswering(config)
    unpacked = len(done.moved) + 2 * 2 * 12 - 1  # q, k, v of weights and biases; the head's bias twice
    assert unpacked == len(model.state_dict())
    counts = {what: len(names) for what, names in done.dropped.items()}
    assert counts == {
        "position numbers": 3,
        "projection of CLIP's image encoder": 1,
        "CLIP's text encoder": 150,
        "embeddings of the fusion network, which are not used": 5,
        "cross-attention of connected layers, which is not used": 10,
        "first layers of the fusion network, which do not run": 6 * 26,
    }
    large = layout(config, "vqa", first).sort(shapes(base(), distilled=True))
    assert len(large.dropped["momentum copies"]) == 1047


def test_everything_wrong_is_named(state, tmp_path):
    broken = dict(state)
    del broken["text_encoder.encoder.layer.1.output.dense.weight"]
    del broken["visual_encoder.visual.transformer.resblocks.0.attn.in_proj_weight"]
    broken["text_decoder.bert.pooler.dense.weight"] = torch.zeros(2)
    broken["fusion_encoder.encoder.layer.4.intermediate.dense.bias"] = torch.zeros(5)
    broken["text_encoder.embeddings.LayerNorm.bias"] = torch.full((64,), float("nan"))
    with pytest.raises(UserError) as caught:
        convert(tmp_path, broken)
    message = str(caught.value)
    assert "unknown: text_decoder.bert.pooler.dense.weight" in message
    assert "text_encoder.encoder.layer.1.output.dense.weight" in message.split("missing:")[1].splitlines()[0]
    assert "resblocks.0.attn.in_proj_weight" in message.split("missing:")[1].splitlines()[0]
    assert "fusion_encoder.encoder.layer.4.intermediate.dense.bias is (5,) and should be (12,)" in message
    assert "NaN: text_encoder.embeddings.LayerNorm.bias" in message
    assert not (tmp_path / "out").exists()


def test_first_layers_of_the_fusion_network_may_be_missing(state, tmp_path):
    kept = {name: value for name, value in state.items() if not name.startswith("fusion_encoder.encoder.layer.0.")}
    kept = {name: value for name, value in kept.items() if not name.startswith("fusion_encoder.embeddings")}
    convert(tmp_path, kept)
    check(tmp_path / "out", state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_decoder.cls.predictions.decoder.bias": torch.zeros(len(WORDS))}, r"predictions.bias differs from"),
        (
            {"text_decoder.cls.predictions.decoder.weight": torch.zeros(len(WORDS), 64)},
            r"predictions.decoder.weight differs from text_decoder.bert.embeddings.word",
        ),
        (
            {"text_encoder.bert.embeddings.LayerNorm.bias": torch.zeros(64)},
            "text_encoder.embeddings.LayerNorm.bias twice",
        ),
    ],
)
def test_entries_that_contradict_each_other(change, message, state, tmp_path):
    with pytest.raises(UserError, match=message):
        convert(tmp_path, {**state, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion_layers": 6}, "--fusion-layers: 6, but the fusion network in CHECKPOINT has 5 layers"),
        ({"image_size": 9}, "--image-size: 9 is no multiple of the model's patches of 4 pixels"),
        ({"stride_layer": 0}, "--stride-layer: must be at least 1"),
        ({"key": "weights"}, "holds no weights under 'model'"),
    ],
)
def test_options_that_do_not_fit(options, message, state, tmp_path):
    with pytest.raises(UserError, match=message):
        convert(tmp_path, state, **options)


def test_a_vocabulary_of_another_size(tmp_path):
    with pytest.raises(UserError, match=f"--vocab: {len(WORDS)} tokens, but CHECKPOINT embeds 40"):
        convert(tmp_path, official_state(replace(SIZES, words=40)))


def test_a_width_without_whole_heads(tmp_path):
    with pytest.raises(UserError, match="text_decoder is 8 wide, which is no multiple of 64"):
        convert(tmp_path, official_state(replace(SIZES, width=8)))


def test_names_of_a_fine_tuned_file_stay():
    names = {name: torch.zeros(()) for name in shapes(SIZES)}
    assert fine_tuned_names(names) == (names, False)
