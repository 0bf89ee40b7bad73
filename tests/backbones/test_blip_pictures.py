"""Pixels are those published, at every size, and a run's pixels can be had again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blip import make_backbone, make_image
from tiny_image_text import save
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.backbones import load_backbone
from padapter.backbones.blip import resize_positions
from padapter.errors import UserError
from padapter.models import builtin_path

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def pixels(backbone, image):
    return backbone._pixels([image])


def published(image, side):
    """Squashed to a square, bicubic, CLIP's mean and deviation, written down from the paper's settings."""
    resized = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    return torch.from_numpy(((resized - MEAN) / STD).transpose(2, 0, 1))[None]


@pytest.mark.parametrize("size", [(20, 20), (33, 14), (1, 1), (1, 500)])
@pytest.mark.parametrize(
    "options", [{}, {"resize": "squash"}, {"image_size": 24}, {"image_size": 24, "resize": "squash"}]
)
def test_pixels_are_the_published_ones(size, options):
    backbone = make_backbone()
    backbone.preprocess(**options)
    image = make_image(0, 40).resize(size)
    torch.testing.assert_close(
        pixels(backbone, image).double(), published(image, options.get("image_size", 16)), atol=1e-6, rtol=0
    )


def test_built_in_and_default_processors_hold_the_published_numbers():
    for processor in (BlipImageProcessorPil(), BlipImageProcessorPil.from_pretrained(builtin_path("shapes-blip"))):
        assert np.allclose(processor.image_mean, MEAN)
        assert np.allclose(processor.image_std, STD)
        assert processor.resample == Image.Resampling.BICUBIC


def test_without_options_pixels_are_the_processors_own():
    backbone, image = make_backbone(), make_image(0, 37)
    backbone.processor.image_processor.resample = Image.Resampling.NEAREST
    own = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels(backbone, image), own)
    backbone.preprocess(resize="squash")
    assert not torch.equal(pixels(backbone, image), own)


def test_padding_is_zero_after_normalisation():
    backbone = make_backbone()
    backbone.preprocess(resize="pad")
    found = pixels(backbone, Image.new("RGB", (40, 10)))
    assert found[..., :4, :].abs().max() < 0.01
    assert found[..., 8, :].max() < -1
    backbone.preprocess(resize="crop")
    assert pixels(backbone, Image.new("RGB", (40, 10))).max() < -1


@pytest.mark.parametrize("side", [8, 24, 40])
def test_positions_are_interpolated_as_transformers_does_it(side):
    plain, resized = make_backbone(), make_backbone()
    resized.preprocess(image_size=side)
    values = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = plain.model.vision_model(values, interpolate_pos_encoding=True).last_hidden_state
        found = resized.model.vision_model(values).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert resized.model.config.vision_config.image_size == side
    saved = resized.model.vision_model.embeddings
    assert saved.position_embedding.shape[1] == saved.num_positions == (side // 8) ** 2 + 1


def test_its_own_size_changes_no_weight():
    backbone = make_backbone()
    before = backbone.model.vision_model.embeddings.position_embedding
    backbone.preprocess(image_size=16)
    assert backbone.model.vision_model.embeddings.position_embedding is before


def test_frozen_positions_stay_frozen():
    backbone = make_backbone()
    backbone.model.requires_grad_(False)
    backbone.preprocess(image_size=24)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize(("side", "near"), [(20, 16), (3, 8), (30, 32)])
def test_sizes_that_no_patches_fill_are_refused(side, near):
    with pytest.raises(UserError, match=f"--image-size: the model sees patches of 8 px; .* such as {near}, not {side}"):
        resize_positions(make_backbone().model, side)


def test_a_record_brings_everything_back():
    first = make_backbone()
    first.preprocess(image_size=24, resize="pad")
    first.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    record = json.loads(json.dumps(first.preprocessing()))
    second, image = make_backbone(), make_image(5, 31).resize((31, 12))
    second.preprocess_as(record)
    assert torch.equal(pixels(second, image), pixels(first, image))
    assert second.preprocessing() == record
    with torch.no_grad():
        values = pixels(first, image)
        ours, theirs = (b.model.vision_model(values).last_hidden_state for b in (first, second))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resize": "fold"}, "'fold'"),
        ({"processor": {}}, "damaged"),
        ({"processor": {"size": {"height": 20}}}, "patches"),
    ],
)
def test_damaged_records_are_refused(change, words):
    backbone = make_backbone()
    with pytest.raises(UserError, match=words):
        backbone.preprocess_as({**backbone.preprocessing(), **change})


def test_every_choice_has_features_of_its_own(tmp_path):
    def folder(**options):
        backbone = make_backbone()
        backbone.preprocess(**options)
        backbone.cache_features(tmp_path, precision="fp32", training=False)
        return backbone.features.store.folder

    choices = [{}, {"resize": "squash"}, {"resize": "crop"}, {"resize": "pad"}, {"image_size": 24}]
    assert len({folder(**choice) for choice in choices}) == len(choices)


def test_other_families_keep_their_own_processor(tmp_path):
    backbone = load_backbone(str(save("llava", tmp_path)))
    for option, flag in (({"image_size": 32}, "--image-size"), ({"resize": "pad"}, "--resize")):
        with pytest.raises(UserError, match=f"{flag}: not for models like"):
            backbone.preprocess(**option)
    backbone.preprocess()
    record = json.loads(json.dumps(backbone.preprocessing()))
    backbone.processor.image_processor.image_mean = [0.9, 0.9, 0.9]
    backbone.preprocess_as(record)
    assert backbone.preprocessing() == record
    image = make_image(0)
    assert backbone.fit(image) is image


def test_what_another_version_calls_or_adds_is_no_difference(monkeypatch):
    backbone = make_backbone()
    record = json.loads(json.dumps(backbone.preprocessing()))
    own = type(backbone.processor.image_processor)
    plain = own.to_dict
    monkeypatch.setattr(
        own, "to_dict", lambda self: {**plain(self), "image_processor_type": "Other", "new_option": False}
    )
    backbone.preprocess_as(record)
    record["processor"]["do_normalize"] = "sometimes"
    monkeypatch.setattr(own, "from_dict", lambda values: backbone.processor.image_processor)
    with pytest.raises(UserError, match=r"do_normalize was 'sometimes' and would be True\. Use the versions"):
        backbone.preprocess_as(record)
