"""BLIP's plain attention in one fused call, against transformers' own step by step."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from test_every_architecture import shake
from torch.nn.parallel import DistributedDataParallel
from transformers import BlipForQuestionAnswering
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from padapter.architectures import AttentionShim, find_sites
from padapter.architectures.blip import FUSED, use_attention
from padapter.architectures.checkpointing import support_checkpointing
from padapter.architectures.fused import FusedAttention, fused_attention
from padapter.tuners import BottleneckConfig, PAdapterConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_model

CONFIGS = {
    "p-adapter": lambda: PAdapterConfig(where="all"),
    "p-adapter, bottleneck": lambda: PAdapterConfig(where="all", form="bottleneck"),
    "adapter": lambda: BottleneckConfig(where="all"),
    "lora": lambda: LoraConfig(r=2, target_modules=["query", "value", "qkv"]),
}
LAYERS, VISION_LAYERS = 2, 2
every_config = pytest.mark.parametrize("config", CONFIGS)
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def inputs(dtype=torch.float32, rows=3):
    """A batch with rows that are padded left, right and not at all."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(rows, 7, dtype=torch.long)
    mask[0, :3], mask[1, 5:] = 0, 0
    ids = torch.randint(5, 40, (rows, 7), generator=generator)
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 3] = -100  # or it would be predicted by padding
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator).to(dtype),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
    }


def fused_calls(monkeypatch):
    """A list that grows by the keyword arguments of every fused call."""
    calls, plain = [], F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return plain(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


def both(config=None, dtype=torch.float32, **options):
    """The same model twice, on transformers' attention and on the fused one, with the same shaken adapter."""
    pair = []
    for attention in ("eager", "sdpa"):
        model = make_model(**options).to(dtype)
        use_attention(model, attention)
        if config is not None:
            torch.manual_seed(1)
            model = get_peft_model(model, CONFIGS[config]())
            shake(model)
        pair.append(model.to(dtype))
    return pair


def trained(model, batch, **options):
    """Loss, and gradients by name."""
    model.zero_grad()
    loss = model(**batch, **options).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)], ids=["64", "32"])
def test_logits_and_all_gradients_are_those_of_transformers(monkeypatch, dtype, tolerance):
    eager, fused = both(dtype=dtype)
    batch = inputs(dtype)
    with torch.no_grad():
        expected = eager(**batch).logits
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        torch.testing.assert_close(fused(**batch).logits, expected, atol=tolerance, rtol=tolerance)
    assert [kwargs["attn_mask"] is None for kwargs in calls] == [True] * VISION_LAYERS + [False, True] * LAYERS
    expected = trained(eager.train(), batch)
    assert len(expected) > 50
    assert_same(trained(fused.train(), batch), expected, atol=tolerance, rtol=tolerance)


@every_config
def test_an_adapted_model_computes_the_same(config):
    eager, fused = both(config, torch.float64)
    batch = inputs(torch.float64)
    expected = trained(eager, batch)
    assert_same(trained(fused, batch), expected, atol=1e-10, rtol=1e-9)
    eager.eval(), fused.eval()
    with torch.no_grad(), eager.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(fused(**batch).logits, eager(**batch).logits, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("config", [None, "p-adapter, bottleneck", "lora"])
def test_generated_tokens_are_the_same(monkeypatch, config, beams):
    eager, fused = both(config, torch.float64)
    batch = inputs(torch.float64)
    batch["attention_mask"][1] = 1
    found = []
    for model in (eager, fused):
        decoder = getattr(model, "base_model", model)
        decoder = getattr(decoder, "model", decoder).text_decoder
        states = model.get_base_model() if config else model
        states = states.vision_model(batch["pixel_values"]).last_hidden_state
        calls = fused_calls(monkeypatch)
        arguments = {"attention_mask": batch["attention_mask"], "encoder_hidden_states": states}
        found.append(decoder.generate(batch["input_ids"], num_beams=beams, max_new_tokens=8, **arguments))
        monkeypatch.undo()
    assert calls
    assert found[0].tolist() == found[1].tolist()
    assert found[0].shape[1] > 10


def test_dropout_drops_the_same_weights(monkeypatch):
    eager, fused = both(dtype=torch.float64, dropout=0.3)
    batch, found = inputs(torch.float64), []
    for model in (eager, fused):
        torch.manual_seed(5)
        calls = fused_calls(monkeypatch)
        found.append(trained(model.train(), batch))
        monkeypatch.undo()
    assert {kwargs["dropout_p"] for kwargs in calls} == {0.0, 0.3}  # none in the image encoder
    assert_same(found[1], found[0], atol=1e-11, rtol=1e-10)
    with torch.no_grad():
        assert not torch.allclose(fused(**batch).loss, found[1]["loss"])


@pytest.mark.parametrize("config", [None, "p-adapter", "p-adapter, bottleneck"])
def test_weights_that_are_asked_for_are_computed_step_by_step(monkeypatch, config):
    eager, fused = both(config, torch.float64)
    batch = {key: value for key, value in inputs(torch.float64).items() if key != "labels"}
    asked = {"output_attentions": True}
    with torch.no_grad():
        states = (fused.get_base_model() if config else fused).vision_model(batch["pixel_values"], **asked)
        text = [
            (model.get_base_model() if config else model).text_decoder(
                batch["input_ids"], batch["attention_mask"], encoder_hidden_states=states.last_hidden_state, **asked
            )
            for model in (eager, fused)
        ]
        expected = (eager.get_base_model() if config else eager).vision_model(batch["pixel_values"], **asked)
    assert len(states.attentions) == VISION_LAYERS
    assert len(text[1].attentions) == len(text[1].cross_attentions) == LAYERS
    torch.testing.assert_close(states.attentions, expected.attentions, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(text[1].attentions, text[0].attentions, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(text[1].cross_attentions, text[0].cross_attentions, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(text[1].logits, text[0].logits, atol=1e-10, rtol=1e-9)
    calls = fused_calls(monkeypatch)
    with torch.no_grad():
        fused(**batch)
    assert bool(calls) == (config != "p-adapter")  # the p-adapter makes the context itself


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [torch.finfo(torch.float32).min, float("-inf")])
def test_hidden_keys_weigh_nothing_and_a_query_without_keys_gets_the_mean(dtype, hidden):
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 3, 5, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.zeros(2, 1, 5, 5)
    mask[0, :, :, 3:], mask[1, :, 2], mask[1, :, 3:] = hidden, hidden, -20000.0  # of one size: hides nothing
    upstream = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64)
    found = fused_attention(*states, mask, 0.0)
    gradients = torch.autograd.grad(found, states, upstream.to(dtype))

    exact = [state.detach().double().requires_grad_() for state in states]
    alone = torch.zeros(2, 1, 5, 1, dtype=torch.bool)
    alone[1, :, 2] = True  # no key to attend to
    scores = exact[0] @ exact[1].mT / 8**0.5 + torch.where(alone, 0, mask.clamp(min=-1e6)).double()
    expected = (scores * ~alone).softmax(-1) @ exact[2]
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    near = {"atol": tolerance, "rtol": tolerance, "check_dtype": False}
    torch.testing.assert_close(found, expected.transpose(1, 2), **near)
    torch.testing.assert_close(found[1, 2], exact[2][1].mean(1), **near)
    for value, other in zip(gradients, torch.autograd.grad(expected.transpose(1, 2), exact, upstream), strict=True):
        torch.testing.assert_close(value, other, **near)


def test_under_autocast_left_padding_leaves_numbers():
    eager, fused = both()
    batch = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (trained(model.train(), batch) for model in (fused, eager))
    torch.testing.assert_close(found["loss"], expected["loss"], atol=0.05, rtol=0.02)
    assert all(value.isfinite().all() for value in found.values())


def test_a_boolean_mask_means_what_it_means_to_transformers():
    eager, fused = both(dtype=torch.float64)
    states = torch.randn(2, 5, 32, dtype=torch.float64)
    mask = torch.rand(2, 1, 5, 5) > 0.5
    here = [model.text_decoder.bert.encoder.layer[0].attention.self for model in (eager, fused)]
    torch.testing.assert_close(here[1](states, mask), here[0](states, mask))


def test_modules_are_what_they_were_to_everybody_else():
    eager, fused = both()
    assert fused.state_dict().keys() == eager.state_dict().keys()
    assert find_sites(fused).keys() == find_sites(eager).keys()
    kinds = [type(module) for module in fused.modules() if isinstance(module, BlipAttention | BlipTextSelfAttention)]
    assert set(kinds) == set(FUSED.values())
    assert len(kinds) == VISION_LAYERS + 2 * LAYERS
    batch = inputs()
    expected = fused(**batch).logits
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert isinstance(copied.vision_model.encoder.layers[0].self_attn, FusedAttention)
        assert torch.equal(copied(**batch).logits, expected)


def test_it_lies_below_the_shim_of_a_p_adapter():
    _, model = both("p-adapter")
    module = model.get_base_model().text_decoder.bert.encoder.layer[0].attention.self
    assert isinstance(module, AttentionShim)
    assert isinstance(module, FusedAttention)
    batch = inputs()
    expected = model(**batch).logits
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(**batch).logits, expected)
    base = model.unload()
    assert type(module) is FUSED[BlipTextSelfAttention]
    assert torch.equal(base(**batch).logits, both()[1](**batch).logits)


def test_attention_can_be_chosen_again_on_an_adapted_model(monkeypatch):
    eager, fused = both("p-adapter, bottleneck")
    batch = inputs()
    with torch.no_grad():
        expected = {"sdpa": fused(**batch).logits, "eager": eager(**batch).logits}
        calls = fused_calls(monkeypatch)
        for attention in ("eager", "sdpa", "eager"):
            calls.clear()
            assert use_attention(fused, attention) == VISION_LAYERS + 2 * LAYERS
            assert torch.equal(fused(**batch).logits, expected[attention])
            assert bool(calls) == (attention == "sdpa")
    module = fused.get_base_model().vision_model.encoder.layers[0].self_attn
    fused.unload()
    assert type(module) is BlipAttention
    with pytest.raises(ValueError, match="'sdpa' or 'eager', not 'flash'"):
        use_attention(fused, "flash")


def test_the_text_encoder_of_another_blip_is_reached_too(monkeypatch):
    config = make_model().config
    config.text_config.encoder_hidden_size = config.vision_config.hidden_size = 32  # the question's width too
    config.vision_config.num_attention_heads = 4
    model = BlipForQuestionAnswering(config).double().eval()
    batch = inputs(torch.float64)
    batch["labels"] = batch["input_ids"]
    with torch.no_grad():
        expected = model(**batch).loss
        assert use_attention(model, "sdpa") == VISION_LAYERS + 4 * LAYERS
        calls = fused_calls(monkeypatch)
        torch.testing.assert_close(model(**batch).loss, expected, atol=1e-11, rtol=1e-10)
    assert len(calls) == VISION_LAYERS + 4 * LAYERS


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("config", ["p-adapter, bottleneck", "lora"])
def test_gradient_checkpointing_changes_no_gradient(config, reentrant):
    _, model = both(config, torch.float64)
    batch = inputs(torch.float64)
    expected = trained(model.train(), batch)
    support_checkpointing(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(trained(model, batch, use_cache=False), expected, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("config", [pytest.param("p-adapter, bottleneck", marks=pytest.mark.slow), "lora"])
def test_a_compiled_step_is_one_graph_with_the_same_gradients(config):
    _, model = both(config, torch.float64)
    batch = inputs(torch.float64)
    expected = trained(model.train(), batch)
    torch.compiler.reset()
    step = torch.compile(lambda: model(**batch).loss, backend="eager", fullgraph=True)
    model.zero_grad()
    step().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    expected.pop("loss")
    assert_same(found, expected, atol=1e-11, rtol=1e-10)


def test_several_processes_train_it(tmp_path):
    _, model = both("lora", torch.float64)
    batch = inputs(torch.float64)
    expected = trained(model.train(), batch)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        found = trained(wrapped, batch)
    finally:
        torch.distributed.destroy_process_group()
    assert_same({n.removeprefix("module."): g for n, g in found.items()}, expected, atol=1e-11, rtol=1e-10)
