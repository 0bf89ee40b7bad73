"""Options that cannot be meant are refused when the config is made, with the name of the field."""

from __future__ import annotations

import pytest
from peft import PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from padapter.errors import UserError
from padapter.tuners import TUNERS, BottleneckConfig, PAdapterConfig, register
from padapter.tuners.registration import Tuner, add_peft_type, register_tuner

BOTH = [
    ("r", 0), ("r", -3), ("r", 2.5), ("r", True), ("reduction_factor", 0), ("dropout", 1.0), ("dropout", -0.1),
    ("activation", "sinus"), ("bias", "lora_only"), ("init_weights", "gaussian"), ("layers_to_transform", [-1]),
    ("scaling", 0), ("scaling", "much"), ("reduction_factor", "8"), ("dropout", float("nan")),
]  # fmt: skip
P_ADAPTER = [
    ("form", "graph"), ("p", 0.5), ("p", float("inf")), ("mu", -1), ("learn_p", 1), ("learn_mu", None),
    ("per_head", "yes"), ("gate", 0), ("degree", "column"), ("message_passing", "gat"), ("ffn_adapter", "yes"),
    ("ffn_reduction_factor", -8), ("steps", 0), ("steps", 2.0), ("steps", True), ("teleport", -0.1), ("teleport", 1),
    ("theta", 0), ("theta", "half"),
]  # fmt: skip
BOTTLENECK = [("location", "ffn"), ("mode", "both")]


@pytest.mark.parametrize("config", [PAdapterConfig, BottleneckConfig])
@pytest.mark.parametrize(("field", "value"), BOTH)
def test_shared_fields(config, field, value):
    with pytest.raises(UserError, match=f"{config.__name__}: `{field}` must be .*got"):
        config(**{field: value})


@pytest.mark.parametrize(("field", "value"), P_ADAPTER)
def test_p_adapter_fields(field, value):
    with pytest.raises(UserError, match=f"PAdapterConfig: `{field}` must be .*got"):
        PAdapterConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), BOTTLENECK)
def test_bottleneck_fields(field, value):
    with pytest.raises(UserError, match=f"BottleneckConfig: `{field}` must be .*got"):
        BottleneckConfig(**{field: value})


def test_contradictions():
    with pytest.raises(UserError, match="`degree` must be 'row' or 'auto' with form='bottleneck'"):
        PAdapterConfig(form="bottleneck", degree="symmetric")
    with pytest.raises(UserError, match="`mu` must be > 0 with form='bottleneck'"):
        PAdapterConfig(form="bottleneck", mu=0)
    assert PAdapterConfig(form="bottleneck", mu=0, learn_mu=False).mu == 0
    for config in TUNERS.values():
        with pytest.raises(UserError, match="`layers_to_transform` cannot be used when `target_modules` is a str"):
            config(target_modules=".*dense", layers_to_transform=[0])
        with pytest.raises(UserError, match="`layers_pattern`"):
            config(target_modules=["dense"], layers_pattern="layer")


def test_symmetric_degree_in_a_decoder(tiny_blip):
    before = list(tiny_blip.state_dict())
    with pytest.raises(UserError, match=r"'symmetric' cannot be used in a decoder.*'row'"):
        get_peft_model(tiny_blip, PAdapterConfig(degree="symmetric"))
    assert list(tiny_blip.state_dict()) == before


@pytest.mark.parametrize(("r", "nearest"), [(3, "nearest: 4"), (10, "nearest: 8 or 12")])
def test_width_the_heads_do_not_divide(tiny_blip, r, nearest):
    with pytest.raises(UserError, match=f"`r` must be a multiple of the 4 attention heads.*{nearest}"):
        get_peft_model(tiny_blip, PAdapterConfig(form="bottleneck", r=r))


@pytest.mark.parametrize(
    ("features", "factor", "heads", "width"), [(768, 8, 12, 96), (32, 8, 4, 4), (32, 16, 4, 4), (100, 8, 5, 10)]
)
def test_width_from_the_reduction_factor(features, factor, heads, width):
    assert PAdapterConfig(form="bottleneck", reduction_factor=factor).width(features, heads) == width


def test_aliases_of_published_placements():
    assert BottleneckConfig(location="houlsby").location == "both"
    assert BottleneckConfig(location="pfeiffer").location == "feedforward"


def test_authors_sizes():
    """The published trainable sizes at width 768: 222,144 + 2 per attention module, 148,320 per feed-forward block."""
    config = PAdapterConfig(form="bottleneck")
    width = config.width(768, 12)
    attention = 2 * (768 * width + width) + width * 768 + 768
    feed_forward = config.ffn_width(768)
    assert (attention, 2 * 768 * feed_forward + feed_forward + 768) == (222_144, 148_320)


def test_registering_twice_changes_nothing():
    members = list(PeftType)
    register()
    register()
    assert list(PeftType) == members
    for name, config in TUNERS.items():
        assert PeftType(name.upper()) is PeftType[name.upper()] is config().peft_type
        assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType[name.upper()]] == f"{name}_"
    assert add_peft_type("LORA") is PeftType.LORA


def test_a_name_peft_has_already_is_refused():
    with pytest.raises(RuntimeError, match="PEFT already has a method 'lora'"):
        register_tuner(Tuner("lora", PAdapterConfig, object))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 16, "reduction_factor": 4}, "reduction_factor"),
        ({"message_passing": "gcn", "p": 3.0}, "p"),
        ({"message_passing": "gcn", "mu": 1.0}, "mu"),
        ({"message_passing": "gcn", "steps": 2}, "steps"),
        ({"message_passing": "appnp", "p": 1.25}, "p"),
        ({"message_passing": "appnp", "theta": 1.0}, "theta"),
        ({"message_passing": "gcnii", "mu": 1.0}, "mu"),
        ({"teleport": 0.2}, "teleport"),
        ({"theta": 0.2}, "theta"),
        ({"gate": False}, "gate"),
        ({"ffn_reduction_factor": 2}, "ffn_reduction_factor"),
        ({"form": "bottleneck", "ffn_adapter": False, "ffn_reduction_factor": 2}, "ffn_reduction_factor"),
    ],
)
def test_options_without_effect_are_refused(options, field):
    with pytest.raises(UserError, match=f"PAdapterConfig: `{field}`=.*has no effect.*leave it out"):
        PAdapterConfig(**options)


@pytest.mark.parametrize("config", [PAdapterConfig, BottleneckConfig])
@pytest.mark.parametrize("field", ["target_modules", "layers_to_transform"])
def test_naming_nothing_is_refused(config, field):
    with pytest.raises(UserError, match=f"`{field}` must be left out"):
        config(**{field: []})


def test_a_config_saved_before_there_were_steps_loads(tmp_path):
    import json

    PAdapterConfig(p=1.25).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    for name in ("steps", "teleport", "theta"):
        del saved[name]
    path.write_text(json.dumps(saved))
    loaded = PAdapterConfig.from_pretrained(tmp_path)
    assert (loaded.p, loaded.steps, loaded.teleport, loaded.theta) == (1.25, 1, 0.1, 0.5)


def test_a_saved_config_with_an_unknown_field_loads(tmp_path):
    import json

    PAdapterConfig(p=1.25).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        assert PAdapterConfig.from_pretrained(tmp_path).p == 1.25
