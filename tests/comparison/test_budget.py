"""The chosen size is the nearest one, and counting without numbers counts the same."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, BlipConfig

from padapter.backbones import load_backbone
from padapter.comparison.budget import COLUMNS, find_size, lines, match, table
from padapter.comparison.counting import count, skeletons_of
from padapter.errors import UserError
from padapter.methods import METHODS, get_method, peft_methods, trainable_parameters
from padapter.models.shapes_blip import build_config

SKELETONS = skeletons_of(build_config())


def of_one_layer():
    """The same widths, and one layer of each kind: counts grow as they do in the whole model, and are quickly made."""
    config = build_config()
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    return skeletons_of(config)


SMALL = of_one_layer()
FORMS = {
    "adapter": ("adapter", {}),
    "adapter, pfeiffer": ("adapter", {"location": "pfeiffer", "reduction_factor": "4"}),
    "p-adapter": ("p-adapter", {}),
    "p-adapter, bottleneck": ("p-adapter", {"form": "bottleneck"}),
    "p-adapter, with feed-forward": ("p-adapter", {"ffn_adapter": True, "reduction-factor": 8}),
    "lora": ("lora", {"use_dora": "true"}),
    "prefix": ("prefix", {}),
    "vera": ("vera", {}),
    "gralora": ("gralora", {}),
    "oft": ("oft", {}),
    "fourierft": ("fourierft", {}),
    "unilora": ("unilora", {}),
}


LONG = ("oft", "unilora", "fourierft")


@pytest.fixture
def counted(monkeypatch):
    """Counts, and remembers: searches for several budgets come by the same sizes, and each is a model built anew."""
    known = {}

    def remembering(method, values, skeletons):
        key = (method, repr(sorted(values.items())), skeletons)
        if key not in known:
            known[key] = count(method, values, skeletons)
        return known[key]

    monkeypatch.setattr("padapter.comparison.budget.count", remembering)
    return remembering


def sizes(counted, method, values, up_to):
    """Trainable and total parameters of every size that the method takes."""
    found = {}
    for size in range(1, up_to + 1):
        try:
            found[size] = counted(method, get_method(method).sized(values, size, 160), SMALL)
        except UserError:
            continue
    return found


@pytest.mark.filterwarnings("error::UserWarning")  # nobody asked for the sizes that are tried
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in FORMS]
)
def test_the_chosen_size_is_the_nearest_of_all(name, counted):
    method, values = FORMS[name]
    every = sizes(counted, method, values, 20 if name in ("oft", "p-adapter, bottleneck") else 9)
    assert len(every) > 2
    order = sorted(every)
    middle, following = (every[size] for size in order[len(order) // 2 - 1 : len(order) // 2 + 1])
    step = following.trainable - middle.trainable
    for target in (middle.trainable, middle.trainable + step // 2 + 1, 1):
        chosen = find_size(method, values, SMALL, target_count=target)
        best = min(every, key=lambda size: (abs(every[size].trainable - target), size))
        assert (chosen.size, chosen.count) == (best, every[best])
    fraction = 1.003 * middle.fraction
    options = match(method, values, SMALL, target_fraction=fraction)
    best = min(every, key=lambda size: (abs(every[size].fraction - fraction), size))
    assert options[get_method(method).size.name] == best


def test_counts_are_those_of_a_model_with_weights():
    backbone = load_backbone("shapes-blip")
    skeletons = skeletons_of(backbone.base_model.config)
    for method in ("p-adapter", "adapter", "lora", "prefix", "full", "vera", "shira"):
        fresh = skeletons("cpu")
        get_method(method).apply(fresh, get_method(method).parse({}))
        counted = count(method, {}, skeletons)
        assert (counted.trainable, counted.total) == trainable_parameters(fresh.model)
        assert counted.base == trainable_parameters(backbone.model)[1] == 2_658_659
        assert counted.fraction == counted.trainable / counted.total
        assert counted.fraction_of_base == counted.trainable / counted.base


def test_the_meta_device_takes_no_memory_and_methods_that_need_numbers_get_them():
    devices = []

    def watched(device):
        devices.append(device)
        return SKELETONS(device)

    assert count("lora", {}, watched).trainable == 40_960
    assert devices == ["meta"]
    assert count("shira", {}, watched).trainable == 163_840
    assert devices == ["meta", "meta", "cpu"]
    assert all(value.is_meta for value in SKELETONS("meta").model.parameters())


def test_the_published_size_of_full_size_blip():
    """24 * 222,146 + 12 * 148,320 parameters of the published adapter, and without its gate."""
    full_size = skeletons_of(BlipConfig())
    published = {"form": "bottleneck", "reduction_factor": 8}
    assert count("p-adapter", published, full_size).trainable == 7_111_344
    assert count("p-adapter", {**published, "gate": False}, full_size).trainable == 5_339_568
    chosen = find_size("p-adapter", {"form": "bottleneck"}, full_size, target_count=7_111_344)
    assert (chosen.size, chosen.options["ffn_reduction_factor"]) == (96, 8)
    assert chosen.count.trainable == 7_111_344


def test_feed_forward_adapters_keep_in_step():
    for size in (5, 10, 15, 35, 95):
        values = get_method("p-adapter").sized({"form": "bottleneck"}, size, 160)
        skeleton = SKELETONS("meta")
        with torch.device("meta"):
            get_method("p-adapter").apply(skeleton, get_method("p-adapter").parse(values))
        widths = {
            tuple(value.shape)
            for name, value in skeleton.model.named_parameters()
            if name.endswith("down.default.weight")
        }
        assert widths == {(size, 160)}


def test_an_image_text_model_is_counted_from_its_configuration(tmp_path):
    from transformers import LlavaConfig

    config = LlavaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "model_type": "clip_vision_model",
        },
        text_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 50,
            "model_type": "llama",
        },
    )
    config.save_pretrained(tmp_path)
    skeletons = skeletons_of(AutoConfig.from_pretrained(tmp_path))
    assert count("lora", {"r": 2}, skeletons).trainable == 2 * 2 * 2 * (32 + 32)
    assert find_size("lora", {}, skeletons, target_count=1100).size == 4


def test_the_table_has_every_method_and_says_which_cannot_be_sized():
    rows = table(
        {"Adapter": ("adapter", {}), "LoRA": ("lora", {"r": 3}), "Full": ("full", {}), "IA3": ("ia3", {})},
        SKELETONS,
        target_fraction=0.01,
    )
    assert [(row.label, row.knob, row.size) for row in rows] == [
        ("Adapter", "r", 6),
        ("LoRA", "r", 5),
        ("Full", "", None),
        ("IA3", "", None),
    ]
    text = lines(rows)
    assert text[0].split("  ")[0] == COLUMNS[0]
    assert len(text) == 5
    assert text[3].split() == ["Full", "fixed", "2,658,659", "100.000", "%", "100.000", "%"]
    as_given = table({"LoRA": ("lora", {"r": 3})}, SKELETONS)
    assert as_given[0].count.trainable == 3 * 5120


@pytest.mark.parametrize("name", [*METHODS, *peft_methods()])
def test_every_method_has_a_size_or_says_that_it_has_none(name):
    method = get_method(name)
    if method.size is None:
        with pytest.raises(UserError, match=rf"method '{name}' has no size that could be chosen"):
            match(name, {}, SKELETONS, target_count=10_000)
        with pytest.raises(ValueError, match="has no size"):
            method.sized({}, 1, 160)
    else:
        assert vars(method.parse(method.sized({}, 8, 160)))[method.size.name] == 8


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"target_fraction": 1.5}, "between 0 and 1, not 1.5"),
        ({"target_count": 0}, "at least 1, not 0"),
    ],
)
def test_budgets_that_make_no_sense(budget, message):
    with pytest.raises(UserError, match=message):
        find_size("lora", {}, SKELETONS, **budget)


def test_options_that_fit_no_size_are_reported_as_such():
    with pytest.raises(UserError, match="nothing_like_this"):
        find_size("lora", {"target_modules": "nothing_like_this"}, SMALL, target_count=1000)
    with pytest.raises(ValueError, match="either"):
        find_size("lora", {}, SKELETONS)


def test_building_a_model_leaves_its_configuration_alone():
    config = build_config()
    before = config.to_dict()
    skeletons_of(config)("meta")
    assert config.to_dict() == before
