"""Where adapters go, what they see there, and what other parts of transformers make of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_every_architecture import CONFIGS, GENERATING, adapted, base, exactly, generate, outputs, shake
from tiny_models import HEADS, MODELS
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import padapter.models
from padapter.architectures import (
    WHERE,
    Architecture,
    AttentionRow,
    AttentionSite,
    FeedForwardRow,
    Place,
    find_sites,
    register_architecture,
)
from padapter.architectures.sites import resolve
from padapter.architectures.table import architectures
from padapter.errors import UserError
from padapter.functional import metric_factor, p_laplacian_attention_reference
from padapter.methods.peft_method import WHERE_HELP
from padapter.tuners import BottleneckConfig, PAdapterConfig
from padapter.tuners.base_layer import modules_of
from padapter.tuners.p_adapter.layer import PAdapterLayer


def test_a_llama_layer_is_the_literal_reference_with_queries_before_rotation():
    torch.manual_seed(0)
    model = get_peft_model(base("llama"), PAdapterConfig(p=1.5, mu=0.3, init_weights=True)).double().eval()
    llama = model.base_model.model.model
    attention = llama.layers[0].self_attn
    states = torch.randn(2, 6, 32, dtype=torch.float64)
    cos, sin = llama.rotary_emb(states, torch.arange(6)[None])
    mask = torch.ones(6, 6).tril().bool()[None, None]
    with torch.no_grad():
        found = attention(states, position_embeddings=(cos, sin), attention_mask=mask)[0]
        query, key, value = (
            part(states).unflatten(-1, (-1, 8)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        rotated, key_rotated = apply_rotary_pos_emb(query, key, cos, sin)
        projection = attention.o_proj.get_base_layer()
        context = p_laplacian_attention_reference(
            rotated,
            key_rotated.repeat_interleave(2, 1),
            value.repeat_interleave(2, 1),
            p=1.5,
            mu=float(attention.o_proj.p_adapter_mu["default"]),
            node_query=query,
            metric_factor=metric_factor(projection.weight, HEADS),
            attention_mask=mask,
        )
        expected = projection(context.transpose(1, 2).flatten(2))  # W_up is zero
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "path", "part"),
    [
        ("llama", "self_attn.q_proj", "flat"),
        ("qwen3", "self_attn.q_norm", "heads last"),
        ("gemma3", "self_attn.q_norm", "heads first"),
        ("blip-2 (OPT)", "self_attn.q_proj", "flat"),
        ("qwen2-vl", "attn.qkv", "fused"),
        ("qwen3-vl", "self_attn.q_norm", "heads last"),
    ],
)
def test_node_queries_are_the_output_of_the_projection(name, path, part, monkeypatch):
    """Seen by a hook of the test's own on the module that makes them."""
    made: list[torch.Tensor] = []
    used: dict[int, list[torch.Tensor]] = {}
    attend = PAdapterLayer.attend

    def spy(layer, call):
        used.setdefault(id(layer), []).append(call.node_query)
        return attend(layer, call)

    monkeypatch.setattr(PAdapterLayer, "attend", spy)
    model = adapted(name, "projected", where="all")
    modules = [m for key, m in model.named_modules() if key.endswith(path) and "qformer" not in key]
    for module in modules:
        module.register_forward_hook(lambda _module, _args, output: made.append(output))
    with torch.no_grad():
        outputs(model, MODELS[name].inputs(2))
    seen = [torch.cat(slices, dim=2) for slices in used.values() if slices[0] is not None]
    assert len(made) == len(modules) > 0
    for output in made:
        if part == "fused":
            output = output[:, : output.shape[1] // 3][None]
        if part in ("flat", "fused"):
            output = output.unflatten(-1, (HEADS, -1))
        expected = output if part == "heads first" else output.transpose(1, 2)
        assert any(nodes.shape == expected.shape and torch.equal(nodes, expected) for nodes in seen)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("by", ["rows", "generic rule"])
def test_cross_attention_is_where_keys_have_another_source_than_queries(name, by, monkeypatch):
    """Seen by hooks on the two projections: is it the same tensor that enters them?"""
    if by == "generic rule":
        monkeypatch.setattr("padapter.architectures.sites.architectures", tuple)
    model = base(name)
    sites = [site for site in find_sites(model).values() if isinstance(site, AttentionSite)]
    entered: dict[tuple[str, str], torch.Tensor] = {}
    for site in sites:
        value = model.get_submodule(resolve(site.name, site.row.value))
        for key, module in (((site.name, "query"), site.query), ((site.name, "value"), value)):
            module.register_forward_pre_hook(lambda _module, args, key=key: entered.update({key: args[0]}))
    with torch.no_grad():
        outputs(model, MODELS[name].inputs(2))
    crossing = {site.name for site in sites if entered[site.name, "query"] is not entered[site.name, "value"]}
    assert {site.name for site in sites if site.cross} == crossing
    assert by == "generic rule" or sites
    assert by == "generic rule" or bool(crossing) == (name in CROSSING)


CROSSING = {
    "blip", "blip-2 (OPT)", "blip-2 (T5)", "instructblip", "instructblip (T5)", "florence-2", "kosmos-2", "pix2struct",
    "vit + gpt-2", "vit + trocr", "mllama", "t5", "bart", "blip (VQA)", "mplug", "mplug (VQA)",
}  # fmt: skip


def parts_of(model: nn.Module) -> set[str]:
    sites = find_sites(model.base_model.model)
    layers = set(modules_of(model))
    return {sites[key].part for key, module in model.base_model.model.named_modules() if module in layers}


@pytest.mark.parametrize("name", ["llava", "blip-2 (OPT)", "qwen2-vl", "smolvlm"])
def test_where_chooses_parts(name):
    assert parts_of(get_peft_model(base(name), BottleneckConfig())) == {"decoder"}
    assert parts_of(get_peft_model(base(name), BottleneckConfig(where="language"))) == {"decoder"}
    for part in ("decoder", "vision", "connector"):
        assert parts_of(get_peft_model(base(name), BottleneckConfig(where=part))) == {part}
    both = get_peft_model(base(name), BottleneckConfig(where=["decoder", "vision"]))
    assert parts_of(both) == {"decoder", "vision"}
    assert parts_of(get_peft_model(base(name), BottleneckConfig(where="all"))) == {"decoder", "vision", "connector"}


#: Models with parts that read a text for a decoder: the attention modules in each.
READERS = {
    "mplug (VQA)": {"decoder": 4, "text_encoder": 1, "fusion": 5, "vision": 2},
    "blip (VQA)": {"decoder": 4, "text_encoder": 4, "vision": 2},
    "t5": {"decoder": 4, "text_encoder": 2},
    "bart": {"decoder": 4, "text_encoder": 2},
    "blip-2 (T5)": {"decoder": 4, "text_encoder": 2, "vision": 2, "connector": 4},
    "clip": {"text_encoder": 2, "vision": 2},
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_where_chooses_what_reads_a_text(name):
    def chosen(where) -> dict[str, int]:
        model = get_peft_model(base(name), PAdapterConfig(where=where))
        parts = [layer.part for layer in modules_of(model)]
        return {part: parts.count(part) for part in set(parts)}

    parts = READERS[name]
    for part, modules in parts.items():
        if part != "decoder" or "decoder" in parts:
            assert chosen(part) == {part: modules}
    assert chosen("language") == {part: n for part, n in parts.items() if part in ("decoder", "text_encoder", "fusion")}
    both = [part for part in ("text_encoder", "vision") if part in parts]
    assert chosen(both) == {part: parts[part] for part in both}
    assert chosen("all") == parts
    assert chosen("decoder") == ({"decoder": 4} if "decoder" in parts else parts)
    for part in {"fusion", "connector"} - parts.keys():
        with pytest.raises(UserError, match=rf"where='{part}'.*leaves nothing.* in the text_encoder part"):
            chosen(part)


def test_a_part_that_adds_nothing_beside_others_is_said():
    with pytest.warns(
        UserWarning, match=r"'fusion' in where=\['decoder', 'fusion'\] adds nothing. MPlugForCond.*4 in the"
    ):
        model = get_peft_model(base("mplug"), PAdapterConfig(where=["decoder", "fusion"]))
    assert {layer.part for layer in modules_of(model)} == {"decoder"}


def test_parts_and_places_of_a_new_row_are_checked():
    row = AttentionRow("A", "q", "v", "o", "heads", decoder=False)
    wrong = (
        {"attention": (replace(row, part="audio"),)},
        {"attention": (row,), "places": (Place(".*", part="audio"),)},
        {"attention": (row,), "feed_forward": (FeedForwardRow("B", "i", "o", part="audio"),)},
        {"attention": (row,), "feed_forward": (FeedForwardRow("B", "i", "o", part="language"),)},
    )
    for fields in wrong:
        with pytest.raises(UserError, match=r"part '\w+' is not one of .*decoder, text_encoder, fusion, vision"):
            register_architecture(Architecture("new", **fields))


def test_the_command_line_names_every_value_of_where():
    assert set(re.findall(r"\w+", WHERE_HELP.split(":")[1])) - {"these", "three"} == set(WHERE)


def test_where_of_an_encoder_decoder_is_the_decoder_alone():
    for name in ("t5", "bart", "blip-2 (T5)", "florence-2"):
        model = get_peft_model(base(name), PAdapterConfig())
        keys = [key for key, module in model.named_modules() if isinstance(module, PAdapterLayer)]
        assert keys
        assert all("encoder." not in key.replace("decoder.", "") for key in keys)


def test_layers_to_transform_counts_within_each_part():
    model = get_peft_model(base("llava"), PAdapterConfig(where="all", layers_to_transform=[1]))
    keys = [key for key, module in model.named_modules() if isinstance(module, PAdapterLayer)]
    assert len(keys) == 2
    assert all(".1." in key for key in keys)


@pytest.mark.parametrize("where", ["decoders", [], ["vision", "audio"], 3])
def test_unknown_parts_are_refused(where):
    with pytest.raises(
        UserError, match=r"`where` must be one or several of 'decoder', 'text_encoder', 'fusion', 'vision'"
    ):
        PAdapterConfig(where=where)


def test_a_part_without_attention_is_said():
    with pytest.raises(UserError, match=r"where='connector'.*leaves nothing.*2 in the decoder part, 2 in the vision"):
        get_peft_model(base("llava"), PAdapterConfig(where="connector"))


@pytest.mark.parametrize("config", ["projected", "bottleneck form"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2-vl", "gemma3", "gpt-2", "vit", "clip", "git", "vit + trocr"])
def test_attention_maps_can_be_recorded(name, config):
    model = base(name)
    model.set_attn_implementation("eager")
    expected = model(**MODELS[name].inputs(2), output_attentions=True)
    model = get_peft_model(model, CONFIGS[config](where="all")).eval()
    shake(model)
    with torch.no_grad():
        found = model(**MODELS[name].inputs(2), output_attentions=True)
    fields = [
        key
        for key in ("attentions", "decoder_attentions", "cross_attentions", "encoder_attentions")
        if expected.get(key)
    ]
    assert fields or name == "clip"
    for field in fields:
        for map_, old in zip(found[field], expected[field], strict=True):
            assert map_.shape == old.shape
            assert (map_ >= 0).all()
            assert (map_.sum(-1) <= 1 + 1e-4).all()  # what is missing to 1 is beta, the node's own share


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "qwen2-vl", "paligemma"])
@pytest.mark.parametrize("config", ["projected", "bottleneck form"])
def test_static_cache(name, config):
    model, inputs, _ = exactly(name, adapted(name, config), MODELS[name].inputs(2))
    static = generate(model, inputs, cache_implementation="static").sequences
    assert torch.equal(static, generate(model, inputs).sequences)


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2-vl"])
def test_lora_on_the_query_projection_beside_a_p_adapter(name):
    """The node queries are those that LoRA has changed, whichever of the two came first."""
    found = []
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    for first in ("lora", "p-adapter"):
        model = base(name)
        for method in ("lora", "p-adapter") if first == "lora" else ("p-adapter", "lora"):
            torch.manual_seed(1)
            model = get_peft_model(model, lora if method == "lora" else PAdapterConfig(learn_p=False, learn_mu=False))
        with torch.no_grad():
            found.append(outputs(model.double().eval(), MODELS[name].inputs(2)))
            found.append(outputs(model, MODELS[name].inputs(2)))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-6, rtol=1e-5)


def with_lora(config: str, targets: str) -> nn.Module:
    """LoRA around a model that carries an adapter of ours by transformers' `add_adapter`."""
    model = base("qwen3")
    model.add_adapter(CONFIGS[config](init_weights=False), "ours")
    return get_peft_model(model, LoraConfig(target_modules=[targets], init_lora_weights=False)).eval()


@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.parametrize(
    ("targets", "merging"),
    [("q_proj", "merge_and_unload"), ("o_proj", "merge_and_unload"), ("o_proj", "merge_adapter")],
)
def test_merging_that_would_change_or_lose_an_adapter_is_refused(config, targets, merging):
    """Before anything is changed."""
    lora, inputs = with_lora(config, targets), MODELS["qwen3"].inputs(2)
    with torch.no_grad():
        expected = outputs(lora, inputs)
        with pytest.raises(UserError, match="cannot be merged"):
            getattr(lora, merging)()
        assert torch.equal(outputs(lora, inputs), expected)
        assert torch.equal(outputs(lora.unload(), inputs), outputs(base("qwen3"), inputs))


@pytest.mark.parametrize("config", sorted(CONFIGS))
def test_lora_below_an_adapter_is_not_merged_either(config):
    """Ours around LoRA, which is on all projections; those before the shared one stay unmerged too."""
    lora = get_peft_model(base("qwen3"), LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    get_peft_model(lora.base_model.model, CONFIGS[config]())
    with pytest.raises(UserError, match=r"o_proj: carries \w+Layer around Linear, .*cannot be merged"):
        lora.merge_adapter()
    assert not any(getattr(module, "merged_adapters", None) for module in lora.modules())


@pytest.mark.parametrize("config", sorted(CONFIGS))
def test_lora_on_other_projections_is_merged_beside_an_adapter(config):
    lora, inputs = with_lora(config, "q_proj"), MODELS["qwen3"].inputs(2)
    ours = set(modules_of(lora))
    query = lora.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        lora, inputs, close = exactly("qwen3", lora, inputs)
        before, weight = outputs(lora, inputs), query.base_layer.weight.clone()
        lora.merge_adapter()
        assert not torch.allclose(query.base_layer.weight, weight)
        torch.testing.assert_close(outputs(lora, inputs), before, **close)
        assert set(modules_of(lora)) == ours
        for layer in ours:
            layer.enable_adapters(False)
        assert not torch.allclose(outputs(lora, inputs), before, atol=1e-3)
        for layer in ours:
            layer.enable_adapters(True)
        lora.unmerge_adapter()
        torch.testing.assert_close(query.base_layer.weight, weight)
        torch.testing.assert_close(outputs(lora, inputs), before, **close)


def test_lora_alone_is_merged_as_ever():
    model, inputs = base("qwen3"), MODELS["qwen3"].inputs(2)
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    with torch.no_grad():
        expected = outputs(lora, inputs)
        torch.testing.assert_close(outputs(lora.merge_and_unload(), inputs), expected, atol=1e-4, rtol=1e-4)


def test_every_row_names_a_class_of_a_model():
    """Of transformers, or of this package."""
    files = [
        *Path(transformers.__file__).parent.glob("models/*/modeling_*.py"),
        *Path(padapter.models.__file__).parent.glob("*/*.py"),
    ]
    classes = {name for file in files for name in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.M)}
    rows = [row for known in architectures() for row in (*known.attention, *known.feed_forward)]
    assert {row.module for row in rows} <= classes


def test_generating_models_have_a_decoder():
    for name in GENERATING:
        assert any(site.part == "decoder" for site in find_sites(base(name)).values()), name
