"""Cached image states are those that the encoder gives, and never those of another encoder."""

import logging

import numpy as np
import pytest
import torch
from tiny_blip import make_backbone, make_image

from padapter.backbones import TrainingExample
from padapter.backbones.feature_store import FeatureStore
from padapter.data import Picture
from padapter.errors import UserError
from padapter.methods import get_method


def cached(folder, training=False, **options):
    backbone = make_backbone()
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    backbone.cache_features(folder, precision=options.pop("precision", "fp32"), training=training)
    return backbone


def examples(backbone, numbers):
    sources = [np.asarray(make_image(number)) for number in numbers]
    return [
        TrainingExample(image=backbone.picture(source), prompt="what color", targets=(("red", 1.0), ("blue", 0.5)))
        for source in sources
    ]


def loss(backbone, numbers):
    return backbone.training_module("sequence")(**backbone.collate(examples(backbone, numbers)))["loss"].item()


def test_losses_answers_and_ranks_are_those_of_the_encoder(tmp_path, images, caplog):
    plain, prompts = make_backbone(), ["what color is the dog ?", "how many", "is it", "the dog"]
    for turn in range(3):
        backbone = cached(tmp_path)
        for numbers in ([0, 1], [1, 2, 2, 3]):
            assert loss(backbone, numbers) == pytest.approx(loss(plain, numbers), rel=1e-3)
        assert backbone.generate(images, prompts) == plain.generate(images, prompts)
        ranked = backbone.rank(images, prompts, ["red", "blue", "two dogs"])
        assert np.allclose(ranked, plain.rank(images, prompts, ["red", "blue", "two dogs"]), atol=0.02)
        assert backbone.features.computed == (0 if turn else 4)
    # whether just computed or read, the numbers are the same
    assert loss(cached(tmp_path), [0, 1]) == loss(cached(tmp_path / "fresh"), [0, 1])


def test_known_pictures_are_not_even_decoded(tmp_path, monkeypatch):
    loss(cached(tmp_path), [0, 1])
    backbone = cached(tmp_path)
    monkeypatch.setattr(Picture, "open", lambda self: pytest.fail("decoded"))
    batch = backbone.collate(examples(backbone, [1, 0, 1]))
    assert "pixel_values" not in batch
    assert batch["kept_states"].shape == (2, 5, 24)
    assert batch["image_order"].tolist() == [0, 1, 0]


def test_another_encoder_preprocessing_or_precision_has_its_own_features(tmp_path):
    def folder(**changes):
        backbone = make_backbone()
        if "weight" in changes:
            with torch.no_grad():
                backbone.model.vision_model.post_layernorm.bias[0] += 1e-3
        if "mean" in changes:
            backbone.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
        if "eps" in changes:
            backbone.model.config.vision_config.layer_norm_eps = 1e-3
        backbone.cache_features(tmp_path, precision=changes.get("precision", "fp32"), training=False)
        return backbone.features.store.folder

    changes = [{}, {"weight": 1}, {"mean": 1}, {"eps": 1}, {"precision": "bf16"}]
    assert len({folder(**change) for change in changes}) == len(changes)
    assert folder() == folder()
    text = make_backbone()
    with torch.no_grad():
        text.model.text_decoder.bert.embeddings.word_embeddings.weight += 1
    text.cache_features(tmp_path, precision="fp32", training=False)
    assert text.features.store.folder == folder()  # what is behind the encoder does not matter


def test_states_that_half_precision_cannot_hold_are_computed_every_time(tmp_path):
    numbers, losses = [0, 1], []
    for _ in range(2):
        backbone = make_backbone()
        with torch.no_grad():
            backbone.model.vision_model.post_layernorm.weight[0] = 1e6
        backbone.cache_features(tmp_path, precision="fp32", training=False)
        losses.append(loss(backbone, numbers))
        assert backbone.features.computed == 2
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0])


def test_a_full_disk_stops_keeping_not_training(tmp_path, monkeypatch, caplog):
    def full(self, arrays):
        raise OSError(28, "No space left on device")

    backbone = cached(tmp_path)
    monkeypatch.setattr(FeatureStore, "add", full)
    with caplog.at_level(logging.WARNING):
        assert loss(backbone, [0, 1]) == loss(backbone, [0, 1])
    assert [record.message for record in caplog.records if "No space left" in record.message] != []
    assert backbone.features.computed == 4


@pytest.mark.parametrize("method", ["lora", "full", "adapter", "prefix", "p-adapter"])
def test_methods_that_leave_the_encoder_alone_may_cache_the_others_are_refused(tmp_path, method):
    backbone = make_backbone()
    chosen = get_method(method)
    chosen.apply(backbone, chosen.parse({}))
    if method == "full":
        with pytest.raises(UserError, match=r"--cache-features: the image encoder is trained \(\S+\)"):
            backbone.cache_features(tmp_path, precision="fp32", training=True)
    else:
        backbone.cache_features(tmp_path, precision="fp32", training=True)


def test_adapters_in_the_encoder_and_dropout_are_refused(tmp_path):
    backbone = make_backbone()
    method = get_method("p-adapter")
    method.apply(backbone, method.parse({"where": "vision"}))
    with pytest.raises(UserError, match=r"--cache-features: the image encoder .*leave the option out"):
        backbone.cache_features(tmp_path, precision="fp32", training=False)
    random = make_backbone()
    random.model.vision_model.encoder.layers[0].mlp.add_module("drop", torch.nn.Dropout(0.1))
    random.model.requires_grad_(False)
    with pytest.raises(UserError, match=r"draws at random \(\S*drop\)"):
        random.cache_features(tmp_path, precision="fp32", training=True)
    random.cache_features(tmp_path, precision="fp32", training=False)  # there is no dropout in answering
