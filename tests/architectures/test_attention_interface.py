"""Architectures as data: rows for a toy model that calls transformers' attention interface, encoder and decoder."""

from __future__ import annotations

import copy
import io
import re
import sys

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from padapter.architectures import (
    ATTENTION_NAME,
    Architecture,
    AttentionRow,
    FeedForwardRow,
    architectures,
    as_pattern,
    default_sites,
    find_sites,
    register_architecture,
    unregister_architecture,
)
from padapter.architectures.sites import resolve
from padapter.errors import UserError
from padapter.functional import metric_factor, p_laplacian_attention_reference
from padapter.tuners import BottleneckConfig, PAdapterConfig

D, H, HKV, DH = 16, 4, 2, 4


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    key, value = (x.repeat_interleave(H // HKV, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


class ToyAttention(nn.Module):
    is_causal = False

    def __init__(self, config):
        super().__init__()
        self.config, self.num_heads, self.num_key_value_groups = config, H, H // HKV
        self.q_proj, self.k_proj = nn.Linear(D, H * DH), nn.Linear(D, HKV * DH)
        self.v_proj, self.o_proj = nn.Linear(D, HKV * DH), nn.Linear(H * DH, D)

    def forward(self, x, mask=None):
        q, k, v = (p(x).unflatten(-1, (-1, DH)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = interface(self, q, k, v, mask, scaling=DH**-0.5, dropout=0.0)
        return self.o_proj(context.flatten(2)), weights


class ToyCausalAttention(ToyAttention):
    is_causal = True


class ToyLayer(nn.Module):
    def __init__(self, config, attention):
        super().__init__()
        self.attn, self.fc1, self.fc2 = attention(config), nn.Linear(D, 20), nn.Linear(20, D)

    def forward(self, x, mask=None):
        x = x + self.attn(x, mask)[0]
        return x + self.fc2(torch.relu(self.fc1(x)))


class ToyConfig(PreTrainedConfig):
    model_type = "toy"


class Toy(nn.Module):
    def __init__(self, attention=ToyAttention, implementation="eager"):
        super().__init__()
        torch.manual_seed(0)
        self.config = ToyConfig(attn_implementation=implementation)
        self.layers = nn.ModuleList([ToyLayer(self.config, attention) for _ in range(2)])

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = layer(x, mask)
        return x


def row(module, decoder):
    return AttentionRow(
        module=module, query="q_proj", value="v_proj", output="o_proj", num_heads="num_heads", decoder=decoder
    )


TOY = Architecture(
    name="toy",
    attention=(row("ToyAttention", False), row("ToyCausalAttention", True)),
    feed_forward=(FeedForwardRow("ToyLayer", input="fc1", output="fc2"),),
)


@pytest.fixture(autouse=True)
def toy_rows():
    register_architecture(TOY)
    yield
    unregister_architecture("toy")


def adapted(model, **options):
    model = get_peft_model(model, PAdapterConfig(**options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.rand_like(parameter))
    return model


MASKS = {"none": None, "padded": torch.tensor([0.0, 0, 0, -torch.inf, -torch.inf]).view(1, 1, 1, 5).expand(2, 1, 5, 5)}


@pytest.mark.parametrize("form", ["projected", "bottleneck"])
@pytest.mark.parametrize("attention", [ToyAttention, ToyCausalAttention])
def test_eager_and_sdpa_agree(form, attention):
    x = torch.randn(2, 5, D)
    mask = torch.full((1, 1, 5, 5), -torch.inf).triu(1) if attention.is_causal else None
    eager = adapted(Toy(attention), form=form)(x, mask)
    sdpa = adapted(Toy(attention, "sdpa"), form=form)(x)
    torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("attention", "degree"), [(ToyAttention, "symmetric"), (ToyCausalAttention, "row")])
def test_degree_follows_the_row(attention, degree, mask):
    """The context handed to the output projection is the literal reference of the functional package."""
    model = adapted(Toy(attention), p=1.3, mu=0.2).double()
    module = model.base_model.model.layers[0].attn
    contexts = []
    module.o_proj.register_forward_pre_hook(lambda _, args: contexts.append(args[0]))
    x, mask = torch.randn(2, 5, D, dtype=torch.double), MASKS[mask]
    if attention.is_causal:
        causal = torch.full((1, 1, 5, 5), -torch.inf).triu(1)
        mask = causal if mask is None else mask + causal
    model(x, mask)
    q, k, v = (
        getattr(module, name)(x).unflatten(-1, (-1, DH)).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj")
    )
    if mask is not None and degree == "symmetric":  # padding is no query
        mask = mask.masked_fill(mask.isinf().all(dim=-2).unsqueeze(-1), -torch.inf)
    expected = p_laplacian_attention_reference(
        q,
        k,
        v,
        p=module.o_proj.p_adapter_p["default"],
        mu=module.o_proj.p_adapter_mu["default"],
        metric_factor=metric_factor(module.o_proj.base_layer.weight, H),
        attention_mask=mask,
        degree=degree,
    )
    torch.testing.assert_close(contexts[0], expected.transpose(1, 2).flatten(2), atol=1e-9, rtol=1e-9)


def test_config_is_the_models_own_again_when_disabled():
    model = adapted(Toy())
    module, config = model.base_model.model.layers[0].attn, model.base_model.model.config
    assert module.config._attn_implementation == ATTENTION_NAME
    assert module.config.model_type == "toy"
    assert config._attn_implementation == "eager"
    with model.disable_adapter():
        assert module.config is config
    assert isinstance(module, ToyAttention)
    assert not any("config" in name or "padapter" in name for name, _ in module.named_modules())


def test_disable_unload_copy_and_pickle():
    x, base = torch.randn(2, 5, D), Toy(ToyAttention, "sdpa").eval()
    before = base(x)
    model = adapted(copy.deepcopy(base))
    after = model(x)
    assert (after - before).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), after)
        assert twin.base_model.model.layers[0].attn.padapter_layer is twin.base_model.model.layers[0].attn.o_proj
        plain = twin.unload()
        assert torch.equal(plain(x), before)
        assert type(plain.layers[0].attn) is ToyAttention
    assert torch.equal(model(x), after)


def test_parallel_adapter_and_feed_forward_sites():
    model = Toy().eval()
    x = torch.randn(2, 5, D)
    before = model(x)
    peft_model = get_peft_model(model, BottleneckConfig(mode="parallel", location="both"))
    assert torch.equal(peft_model(x), before)
    assert len(peft_model.base_model.targeted_module_names) == 4


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_implementations_without_masks_are_refused(implementation):
    model = adapted(Toy())
    model.base_model.model.config._attn_implementation = implementation
    with pytest.raises(UserError, match=rf"'{implementation}'.*sdpa"):
        model(torch.randn(1, 3, D))


def test_attention_name_is_only_for_adapted_modules():
    model = Toy()
    model.config._attn_implementation = ATTENTION_NAME
    with pytest.raises(UserError, match="only for modules that carry a p-adapter, not for ToyAttention"):
        model(torch.randn(1, 3, D))


def test_module_without_config_needs_a_shim():
    model = Toy()
    for layer in model.layers:
        del layer.attn.config
    with pytest.raises(UserError, match=r"'layers.0.attn' \(ToyAttention\) has no `config`.*shim"):
        get_peft_model(model, PAdapterConfig())


def test_replaced_forward_of_a_shimmed_module_is_refused(tiny_blip):
    attention = tiny_blip.text_decoder.bert.encoder.layer[0].attention.self
    attention.forward = attention.forward
    with pytest.raises(UserError, match="`forward` replaced on the instance"):
        get_peft_model(tiny_blip, PAdapterConfig())


def test_registering():
    with pytest.raises(UserError, match=r"already in the table: toy.*replace=True"):
        register_architecture(TOY)
    register_architecture(TOY, replace=True)
    assert [known.name for known in architectures()].count("toy") == 1
    other = Architecture(name="other", attention=(row("BlipTextSelfAttention", True),))
    with pytest.raises(UserError, match="already in the table: BlipTextSelfAttention"):
        register_architecture(other)
    with pytest.raises(UserError, match="empty 'module'"):
        register_architecture(Architecture(name="empty", attention=(row("", True),)))
    with pytest.raises(UserError, match="'nobody' is not in the table"):
        unregister_architecture("nobody")


@pytest.mark.parametrize(
    ("name", "path", "full"),
    [("a.b.self", "..output.dense", "a.b.output.dense"), ("a.b", "o", "a.b.o"), ("a.b", "...o", "o"), ("", "o", "o")],
)
def test_relative_paths(name, path, full):
    assert resolve(name, path) == full


def test_relative_path_above_the_model():
    with pytest.raises(UserError, match=r"climbs above"):
        resolve("a", "...o")


def test_rows_that_do_not_fit_the_model():
    class ToyOther(ToyAttention):
        pass

    wrong = AttentionRow("ToyOther", query="q_proj", value="v_proj", output="out", num_heads="num_heads", decoder=True)
    register_architecture(Architecture(name="wrong", attention=(wrong,)))
    try:
        with pytest.raises(UserError, match=r"row ToyOther: looked for module 'layers.0.attn.out'"):
            find_sites(Toy(ToyOther))
        heads = AttentionRow("ToyOther", "q_proj", "v_proj", "o_proj", "heads", True)
        register_architecture(Architecture(name="wrong", attention=(heads,)), replace=True)
        with pytest.raises(UserError, match=r"'heads' of module 'layers.0.attn' is not an integer"):
            find_sites(Toy(ToyOther))
    finally:
        unregister_architecture("wrong")


def test_a_subclass_is_not_taken_for_its_parent():
    class ToyWindowedAttention(ToyAttention):
        def forward(self, x, mask=None):
            return super().forward(x, mask)

    with pytest.raises(UserError, match=r"for Toy: .*ToyWindowedAttention.*register_architecture"):
        get_peft_model(Toy(ToyWindowedAttention), PAdapterConfig())


def test_unknown_attention_of_the_usual_shape_is_read_by_the_generic_rule():
    class ElsewhereAttention(ToyAttention):
        pass  # inherits a forward that calls the attention interface

    model = Toy(ElsewhereAttention)
    sites = find_sites(model)
    row = sites["layers.0.attn.o_proj"].row
    assert (row.query, row.value, row.output, row.decoder, row.node_query) == (
        "q_proj",
        "v_proj",
        "o_proj",
        False,
        None,
    )
    get_peft_model(model, PAdapterConfig())


def test_default_targets_by_layer():
    model = Toy()
    chosen = default_sites(find_sites(model), attention=True, feed_forward=False, where=["decoder"], layers=[1])
    assert chosen == ["layers.1.attn.o_proj"]
    pattern = as_pattern(chosen, [name for name, _ in model.named_modules()])
    assert re.fullmatch(pattern, "layers.1.attn.o_proj")
    assert not re.fullmatch(pattern, "layers.0.attn.o_proj")
    assert sys.modules[ToyAttention.__module__].eager_attention_forward is eager_attention_forward
