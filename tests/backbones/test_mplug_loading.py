"""Which folders of mPLUG are read, in which arrangement, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_blip import WORDS as BLIP_WORDS
from tiny_blip import make_image
from tiny_mplug_folder import save_tiny_mplug

from padapter.backbones import load_backbone
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.models.mplug import MPlugForConditionalGeneration, MPlugForQuestionAnswering
from padapter.models.mplug.positions import resize_positions

WORDS = BLIP_WORDS[5:]
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mplug")
    return {kind: save_tiny_mplug(root / kind, WORDS, arrangement=kind) for kind in ("vqa", "caption")}


@pytest.mark.parametrize(
    ("kind", "asks", "wanted"),
    [
        ("vqa", True, MPlugForQuestionAnswering),
        ("vqa", None, MPlugForQuestionAnswering),
        ("vqa", False, MPlugForConditionalGeneration),
        ("caption", False, MPlugForConditionalGeneration),
        ("caption", None, MPlugForConditionalGeneration),
    ],
)
def test_a_folder_is_read_as_the_task_needs_it(folders, caplog, kind, asks, wanted):
    backbone = load_backbone(folders[kind], asks=asks)
    assert type(backbone.model) is wanted
    assert (backbone.name, backbone.model.name_or_path) == (folders[kind], folders[kind])
    assert (backbone.start_id, backbone.end_id, backbone.pad_id, backbone.max_length) == (2, 3, 0, 48)
    assert backbone.auto_class == (
        "AutoModelForVisualQuestionAnswering" if wanted is MPlugForQuestionAnswering else "AutoModelForImageTextToText"
    )
    assert caplog.text == ""
    assert len(backbone.generate([make_image(0)], ["what is it"], max_new_tokens=3)) == 1


def test_captions_of_both_folders_are_the_same(folders):
    """Both were made with one seed; only what reads questions was drawn besides, later or not at all."""
    whole, captioner = (load_backbone(folders[kind], asks=False) for kind in ("vqa", "caption"))
    captioner.model.load_state_dict(whole.model.state_dict())
    images = [make_image(seed) for seed in range(2)]
    found = [each.rank(images, ["", ""], ["red", "a dog"]) for each in (whole, captioner)]
    np.testing.assert_allclose(*found, **CLOSE)


def test_questions_to_a_captioner_are_refused(folders):
    with pytest.raises(UserError, match=r"is an mPLUG for captions: .* without text encoder and fusion network"):
        load_backbone(folders["caption"], asks=True)


def test_weights_that_are_missing_are_named(folders, tmp_path):
    folder = save_tiny_mplug(tmp_path / "half", WORDS, arrangement="caption")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    config["architectures"] = ["MPlugForQuestionAnswering"]
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is not a whole mPLUG for questions: \d+ weights are missing, e\.g\. fusion_"):
        load_backbone(folder, asks=True)
    assert load_backbone(folder, asks=False).asks is False


def test_attention_is_as_asked_and_changes_nothing_but_rounding(folders):
    fused, eager = (load_backbone(folders["vqa"], attention=kind, asks=True) for kind in ("sdpa", "eager"))
    assert [each.model.config._attn_implementation for each in (fused, eager)] == ["sdpa", "eager"]
    asked = [make_image(0), make_image(1)], ["what color", "is it a dog ?"]
    np.testing.assert_allclose(fused.rank(*asked, ["red", "a dog"]), eager.rank(*asked, ["red", "a dog"]), **CLOSE)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = save_tiny_mplug(tmp_path / "a", WORDS)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["text_config"]["bos_token_id"] = 4
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tokenizer disagree: start token 4 in the model's text_config, 2"):
        load_backbone(folder)


def test_another_image_size_interpolates_positions_bilinearly(folders):
    backbone = load_backbone(folders["vqa"], asks=True)
    before = backbone.model.vision_model.embeddings.position_embedding.weight.detach().clone()
    backbone.preprocess(image_size=48, resize="pad")
    after = backbone.model.vision_model.embeddings.position_embedding.weight
    torch.testing.assert_close(after, resize_positions(before, 6))
    record = json.loads(json.dumps(backbone.preprocessing()))
    assert (record["resize"], record["processor"]["size"]) == ("pad", {"height": 48, "width": 48})
    again = load_backbone(folders["vqa"], asks=True)
    again.preprocess_as(record)
    assert again.preprocessing() == record
    asked = [make_image(0, 31).resize((31, 12))], ["what"]
    np.testing.assert_allclose(again.rank(*asked, ["red", "a dog"]), backbone.rank(*asked, ["red", "a dog"]), **CLOSE)
    with pytest.raises(UserError, match=r"--image-size: the model sees patches of 8 px; .* such as 32, not 30"):
        backbone.preprocess(image_size=30)


def test_full_fine_tuning_saves_the_arrangement_that_was_trained(folders, tmp_path):
    full = get_method("full")
    for asks in (True, False):
        backbone = load_backbone(folders["vqa"], asks=asks)
        full.apply(backbone, full.parse({}))
        with torch.no_grad():
            backbone.decoder.cls["predictions"].decoder.bias[7] += 3.0
        full.save(backbone, tmp_path / str(asks))
        other = load_backbone(folders["vqa"], asks=asks)
        full.load(other, tmp_path / str(asks))
        asked = [make_image(0)], ["what" if asks else ""]
        again = load_backbone(str(tmp_path / str(asks)), asks=asks)
        first, second, third = (each.rank(*asked, ["red", "a dog"]) for each in (backbone, other, again))
        np.testing.assert_allclose(second, first, **CLOSE)
        np.testing.assert_allclose(third, first, **CLOSE)
