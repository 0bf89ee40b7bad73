"""What every method must do; a method enters by being registered."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_blip import make_backbone, make_model, make_processor
from toy_task import PROMPTS, assert_same, outputs, overfit, toy_batch, toy_images

from padapter.backbones import BlipBackbone
from padapter.errors import UserError
from padapter.methods import METHODS, PeftMethod, method_of, trainable_parameters

ADAPTERS = [name for name, method in METHODS.items() if isinstance(method, PeftMethod)]
BROKEN_TARGETS = {"p-adapter": "nothing_like_this", "adapter": "nothing_like_this", "lora": "nothing_like_this"}


def adapted(name, **options):
    torch.manual_seed(1)
    backbone = make_backbone()
    METHODS[name].apply(backbone, METHODS[name].parse(options))
    return backbone


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_changes_only_what_it_trains(name):
    backbone = adapted(name)
    before = {n: p.detach().clone() for n, p in backbone.model.named_parameters() if not p.requires_grad}
    trained = {n: p.detach().clone() for n, p in backbone.model.named_parameters() if p.requires_grad}
    losses = overfit(backbone, rate=3e-3 if name == "full" else 3e-2)
    assert losses[-1] < 0.5 * losses[0]
    after = dict(backbone.model.named_parameters())
    assert all(torch.equal(after[n], value) for n, value in before.items())
    assert sum(not torch.equal(after[n], value) for n, value in trained.items()) > 0.8 * len(trained)
    trainable, total = trainable_parameters(backbone.model)
    assert trainable == sum(value.numel() for value in trained.values())
    assert (trainable == total) == (name == "full")


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_keeps_nothing_of_a_frozen_image_encoder(name):
    backbone = adapted(name)
    saved, batch = [], toy_batch(backbone)

    def count(tensor):
        saved.append(tensor.shape)
        return tensor

    module = backbone.training_module("sequence").train()
    tower = backbone.base_model.vision_model
    counts = {}
    tower.register_forward_pre_hook(lambda *_: counts.update(before=len(saved)))
    tower.register_forward_hook(lambda *_: counts.update(after=len(saved)))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(**batch)["loss"].backward()
    assert len(saved) > counts["after"]
    assert (counts["after"] > counts["before"]) == (name == "full")
    assert any(p.grad is not None for p in tower.parameters()) == (name == "full")


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_gives_the_same_outputs(name, tmp_path):
    backbone = adapted(name)
    start = outputs(backbone)
    overfit(backbone, steps=5)
    expected = outputs(backbone)
    assert not torch.equal(start[0], expected[0])
    METHODS[name].save(backbone, tmp_path)
    assert method_of(tmp_path) is METHODS[name]
    fresh = make_backbone()
    METHODS[name].load(fresh, tmp_path)
    assert_same(outputs(fresh), expected)
    assert trainable_parameters(fresh.model)[0] == 0


@pytest.mark.parametrize("name", METHODS)
def test_loaded_for_training_it_goes_on(name, tmp_path):
    backbone = adapted(name)
    overfit(backbone, steps=5)
    METHODS[name].save(backbone, tmp_path)
    fresh = make_backbone()
    METHODS[name].load(fresh, tmp_path, trainable=True)
    assert trainable_parameters(fresh.model) == trainable_parameters(backbone.model)
    assert overfit(fresh, steps=3) == pytest.approx(overfit(backbone, steps=3), rel=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_adapter_folder_is_peft_and_names_the_users_model(name, tmp_path):
    METHODS[name].save(adapted(name), tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in tmp_path.iterdir()}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-blip"


@pytest.mark.parametrize("name", METHODS)
def test_a_left_padded_batch_equals_single_rows(name):
    backbone = adapted(name)
    overfit(backbone, steps=3)
    for beams in (1, 3):
        batch = backbone.generate(toy_images(), PROMPTS, num_beams=beams, max_new_tokens=6)
        single = [
            backbone.generate([i], [p], num_beams=beams, max_new_tokens=6)[0]
            for i, p in zip(toy_images(), PROMPTS, strict=True)
        ]
        assert batch == single


@pytest.mark.parametrize("name", METHODS)
def test_ranking_agrees_with_the_loss(name):
    """Score of the answer = minus its summed token loss: cached prompt and full forward are one function."""
    backbone = adapted(name)
    overfit(backbone, steps=3)
    decoder = backbone.base_model.text_decoder
    decoder.label_smoothing = 0.0
    batch = toy_batch(backbone)
    answers = ["blue green", "three", "a large cat on the left"]
    scores = backbone.rank(toy_images(), PROMPTS, answers)
    module = backbone.training_module("sequence")
    for row in range(3):
        only = batch | {"labels": batch["labels"].clone()}
        only["labels"][[i for i in range(3) if i != row]] = -100
        with torch.no_grad():
            assert -3 * float(module(**only)["loss"]) == pytest.approx(scores[row][row], abs=1e-4)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_for_another_model_is_refused_and_leaves_no_trace(name, tmp_path):
    METHODS[name].save(adapted(name), tmp_path)
    other = BlipBackbone(make_model(layers=3), make_processor(), "deeper")
    untouched = copy.deepcopy(other.model)
    with (
        pytest.warns(UserWarning, match="was trained on model 'tiny-blip' and is loaded into 'deeper'"),
        pytest.raises(UserError, match=r"does not fit.*(the file lacks|num_layers)"),
    ):
        METHODS[name].load(other, tmp_path)
    assert other.model is other.base_model
    assert other.model.state_dict().keys() == untouched.state_dict().keys()
    before = BlipBackbone(untouched, make_processor(), "deeper")
    assert_same(outputs(other), outputs(before))


def test_a_full_model_of_another_shape_is_refused(tmp_path):
    METHODS["full"].save(adapted("full"), tmp_path)
    other = BlipBackbone(make_model(layers=3), make_processor(), "deeper")
    with pytest.raises(UserError, match=r"does not fit model 'deeper': the file lacks: .*layer\.2\..* and \d+ more"):
        METHODS["full"].load(other, tmp_path)


@pytest.mark.parametrize("name", BROKEN_TARGETS)
def test_targets_that_match_nothing_are_refused(name):
    with pytest.raises(UserError, match="nothing_like_this"):
        adapted(name, target_modules=BROKEN_TARGETS[name])


@pytest.mark.parametrize("name", METHODS)
def test_an_adapted_model_is_not_adapted_again(name):
    backbone = adapted("lora")
    with pytest.raises(UserError, match="load it again"):
        METHODS[name].apply(backbone, METHODS[name].options())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_folder_of_another_kind_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="is not an adapter"):
        METHODS[name].load(make_backbone(), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a whole model"):
        METHODS[name].load(make_backbone(), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match=f"is of type IA3, but method '{name}'"):
        METHODS[name].load(make_backbone(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": METHODS[name].peft_type}))
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        METHODS[name].load(make_backbone(), tmp_path)


@pytest.mark.parametrize("name", ["p-adapter", "adapter"])
def test_defaults_are_those_of_the_config(name):
    """Two lists of defaults drift apart unless something compares them."""
    method, backbone = METHODS[name], make_backbone()
    method.prepare()
    config = method.config(backbone, method.options())
    defaults = type(config)()
    for field in vars(method.options()).keys() - {"p_mu_lr_factor"}:  # the optimizer's
        assert getattr(config, field) == getattr(defaults, field), field


@pytest.mark.parametrize("name", ["p-adapter", "adapter"])
@pytest.mark.parametrize(
    ("where", "parts"),
    [
        ("decoder", {"text_decoder"}),
        ("vision", {"vision_model"}),
        (" decoder , vision ", {"text_decoder", "vision_model"}),
        ("all", {"text_decoder", "vision_model"}),
    ],
)
def test_where_chooses_parts_of_the_model(name, where, parts, tmp_path):
    backbone = adapted(name, where=where)
    trained = {key.split(".")[2] for key, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained == parts
    METHODS[name].save(backbone, tmp_path)
    again = make_backbone()
    METHODS[name].load(again, tmp_path, trainable=True)
    assert {key.split(".")[2] for key, p in again.model.named_parameters() if p.requires_grad} == parts


@pytest.mark.parametrize("name", ["p-adapter", "adapter"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "decoder,image"}, "`where` must be one or several of 'decoder', 'text_encoder', 'fusion', 'vision'"),
        ({"where": ","}, "`where` must be one or several of"),
        ({"where": "connector"}, "leaves nothing to adapt"),
        ({"where": "vision", "target_modules": "projection"}, "no effect beside target_modules='projection'"),
    ],
)
def test_a_place_that_cannot_be_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        adapted(name, **options)
