"""Other parts, models and methods: pictures, decoder-only models, p and mu, LoRA, prefixes, full fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnosed import SELF, adapted, examples, values
from peft import LoraConfig, get_peft_model
from tiny_blip import make_backbone, make_image, save_tiny

from padapter.backbones import TrainingExample
from padapter.diagnose import diagnose
from padapter.diagnose.reading import exponents_of
from padapter.evaluation.source import Source
from padapter.methods import get_method
from padapter.tasks import get_task
from padapter.tuners import PAdapterConfig


def test_pictures_are_measured_too():
    found = diagnose(adapted(where="vision"), examples(2), points=10)
    parts = {layer.part for layer in found.layers}
    assert parts == {"decoder", "vision"}  # the decoder by default, and what carries a p-adapter
    vision = next(layer for layer in found.layers if layer.part == "vision")
    assert vision.label == "vision layer 0, self-attention"
    assert vision.after.calibrated is not None  # symmetric degrees
    assert vision.after.plain.entropy.count.tolist() == [2 * 5] * 3
    language = next(layer for layer in found.layers if layer.part == "decoder")
    assert language.after.calibrated is None
    assert not language.exponents


def test_decoder_only_models_and_shared_keys(tmp_path):
    """Pictures are tokens of the text, key heads are shared, and texts of a batch are padded."""
    from tiny_image_text import save

    from padapter.backbones import load_backbone

    backbone = load_backbone(str(save("idefics3", tmp_path / "model")))
    backbone.model = get_peft_model(backbone.model, PAdapterConfig(p=1.3, mu=0.2, where="all"))
    texts = ("what", "what color is the dog ?", "what color is")
    rows = [TrainingExample(make_image(n), text, (("red", 1.0),)) for n, text in enumerate(texts)]
    alone, together = (diagnose(backbone, rows, points=5, batch_size=size) for size in (1, 3))
    np.testing.assert_allclose(values(alone), values(together), atol=1e-5)
    lengths = [int(backbone.collate([row])["attention_mask"].sum()) for row in rows]
    assert len(set(lengths)) == 3
    language = together.layer("decoder layer 1, self-attention")
    np.testing.assert_array_equal(language.after.plain.entropy.count, sum(lengths))
    assert language.after.divergence.overall > 1e-3


def sites_of(backbone):
    from padapter.architectures import attention_sites

    return {site.name: site for site in attention_sites(backbone.model)}


def test_p_and_mu_with_their_starts():
    backbone = adapted(per_head=True)
    site = sites_of(backbone)[SELF.format(0)]
    layer = site.output()
    with torch.no_grad():
        layer.p_adapter_p["default"].copy_(torch.tensor([0.5, 1.25, 2.5, 3.0]))
        layer.p_adapter_mu["default"].copy_(torch.tensor([-1.0, 0.25, 0.5, 0.0]))
    found = exponents_of(site)
    assert (found["p"].start, found["mu"].start) == (pytest.approx(1.4), pytest.approx(0.3))
    assert found["p"].value.tolist() == [1.0, 1.25, 2.5, 3.0]
    assert found["p"].stored.tolist() == [0.5, 1.25, 2.5, 3.0]
    assert found["mu"].value.tolist() == [0.0, 0.25, 0.5, 0.0]
    assert found["p"].trained
    with backbone.model.disable_adapter():
        assert exponents_of(site) == {}
    fixed = exponents_of(sites_of(adapted(learn_p=False))[SELF.format(0)])
    assert (fixed["p"].value.tolist(), fixed["p"].trained, fixed["mu"].trained) == ([1.4], False, True)
    assert exponents_of(sites_of(adapted(message_passing="gcn", p=1.5, mu=0.1))[SELF.format(0)]) == {}


def test_the_bottleneck_form_starts_at_twice_its_mu():
    backbone = adapted(form="bottleneck")
    exponent = exponents_of(sites_of(backbone)[SELF.format(0)])["mu"]
    theta = backbone.base_model.get_submodule("text_decoder.bert.encoder.layer.0.attention.output.dense").leaf("mu")
    assert exponent.start == pytest.approx(0.6)
    assert exponent.value[0] == pytest.approx(0.3 * (2 + np.tanh(theta["default"].item())))
    assert exponent.stored is None
    state = diagnose(backbone, examples(2), points=0, where="decoder").layers[0].after
    assert state.divergence.overall > 1e-4


def test_lora_has_no_calibrated_weights():
    backbone = make_backbone()
    backbone.model = get_peft_model(
        backbone.model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
    )
    found = diagnose(backbone, examples(2), points=10)
    assert (found.method, len(found.layers)) == ("lora", 4)
    assert "no p-adapter" in found.notes[0]
    for layer in found.layers:
        assert (layer.after.calibrated, layer.after.divergence, layer.exponents) == (None, None, {})
        calibration, adaptation = layer.gain()
        assert calibration is None
        assert np.abs(adaptation).max() > 1e-4


def test_a_prefix_is_no_text():
    backbone = make_backbone()
    method = get_method("prefix")
    method.apply(backbone, method.options(num_virtual_tokens=3))
    found = diagnose(backbone, examples(2), points=10)
    self_attention = found.layer("layer 0, self-attention")
    assert self_attention.after.plain.by_offset is None
    assert self_attention.before.plain.by_offset is not None
    assert self_attention.gain("offset") == (None, None)
    np.testing.assert_array_equal(self_attention.after.plain.entropy.count, self_attention.before.plain.entropy.count)
    assert self_attention.after.plain.entropy.overall > self_attention.before.plain.entropy.overall


def test_full_fine_tuning_is_compared_with_the_base_model(tmp_path):
    base = save_tiny(tmp_path / "base")
    other = make_backbone(seed=5)
    get_method("full").save(other, tmp_path / "run" / "model")
    source = Source(
        base, get_task("vqa"), None, method=get_method("full"), weights=tmp_path / "run" / "model", candidates=None,
        device="cpu",
    )  # fmt: skip
    found = diagnose(source, examples(2), points=0)
    assert (found.title, found.method) == ("run", "full")
    for state, model in (("before", make_backbone()), ("after", other)):
        alone = diagnose(model, examples(2), points=0).layers[0].before
        mine = getattr(found.layers[0], state)
        np.testing.assert_allclose(mine.plain.entropy.mean, alone.plain.entropy.mean, atol=1e-5)
