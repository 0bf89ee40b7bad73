"""Training as people run it: gradient checkpointing, bfloat16, torch.compile, several processes."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import sys
import warnings
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from peft import LoraConfig, get_peft_model
from test_every_architecture import base, exactly, outputs, shake
from tiny_models import MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DynamicCache

from padapter.architectures.checkpointing import copy_last, copy_leaf, reach_adapters, support_checkpointing
from padapter.methods import METHODS
from padapter.tuners import BottleneckConfig, PAdapterConfig
from padapter.tuners.base_layer import modules_of

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_backbone

CONFIGS = {
    "projected": PAdapterConfig,
    "bottleneck form": lambda **options: PAdapterConfig(form="bottleneck", **options),
    "parallel": lambda **options: BottleneckConfig(mode="parallel", **options),
}
LORA = r".*\.(query|value|q_proj|v_proj|qkv)"
#: Families that cannot be trained with gradient checkpointing, and why; docs/architectures.md shows it.
NOT_CHECKPOINTED = {"pix2struct": "transformers has no gradient checkpointing for it"}
CHECKPOINTED = sorted(MODELS.keys() - NOT_CHECKPOINTED.keys())
#: Families that run with every configuration; the others run with the bottleneck form, which hands on most.
EVERY_CONFIG = {"blip", "git", "kosmos-2", "qwen3-vl", "qwen2-vl", "blip-2 (OPT)", "t5", "vit"}
LOOPBACK = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
every_config = pytest.mark.parametrize("config", sorted(CONFIGS))
both_kinds = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
# Transformers has renamed what PEFT and everybody else call gradient checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def prepared(name, config, reentrant=None, afterwards=False, **options):
    """A model to be trained; with checkpointing unless `reentrant` is None, turned on after PEFT if `afterwards`."""
    model = base(name)
    enable = partial(model.gradient_checkpointing_enable, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant is not None and not afterwards:
        enable()
    torch.manual_seed(0)
    if config == "lora":
        support_checkpointing(model)
        adapter = LoraConfig(target_modules=LORA, init_lora_weights=False)
    else:
        adapter = CONFIGS[config](**options)
    model = without_dropout(get_peft_model(model, adapter)).train()
    if reentrant is not None and afterwards:
        enable()
    shake(model)
    return model


def require_gradients(model):
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


def loss_of(model, inputs):
    found = outputs(model, inputs)
    return (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(found)).mean()


def trained(name, model):
    """Loss, gradients by name, and the tolerance to compare them with."""
    tensors = {key: value for key, value in MODELS[name].inputs(2).items() if torch.is_tensor(value)}
    model, inputs, tolerance = exactly(name, model, tensors)
    loss = loss_of(model, {**MODELS[name].inputs(2), **inputs})
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.requires_grad}, tolerance


@cache
def without_checkpointing(name, config):
    return trained(name, prepared(name, config, where="all"))


def compare(found, expected):
    (loss, gradients, tolerance), (expected_loss, expected_gradients, _) = found, expected
    torch.testing.assert_close(loss, expected_loss, **tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in gradients.items():
        assert gradient is not None, key
        torch.testing.assert_close(gradient, expected_gradients[key], **tolerance)


def checkpointed_cases():
    for name in CHECKPOINTED:
        yield from ((name, config) for config in sorted(CONFIGS if name in EVERY_CONFIG else ["bottleneck form"]))


@pytest.mark.parametrize(("name", "config"), list(checkpointed_cases()))
@both_kinds
@pytest.mark.in_turn("reentrant")
def test_gradient_checkpointing_changes_no_number(name, config, reentrant):
    model = prepared(name, config, reentrant, where="all")
    prefix = model.base_model.prefix
    runs = dict.fromkeys((key for key, _ in model.named_modules() if key.endswith(f"{prefix}up.default")), 0)
    for key in runs:

        def count(*args, key=key):
            runs[key] += 1

        model.get_submodule(key).register_forward_hook(count)
    compare(trained(name, model), without_checkpointing(name, config))
    assert max(runs.values()) > 1, "no layer was computed again"
    # What `attend` leaves for `forward`, and hooks for either, is gone: it would keep the graph in memory.
    for module in model.modules():
        for holder in (module, module.__dict__.get("_padapter_node_query", module)):
            left = {key for key, value in vars(holder).items() if key.startswith("_per_thread_") and value}
            assert not left


@pytest.mark.parametrize("name", ["blip", "kosmos-2", "qwen3-vl", "vit"])
@both_kinds
def test_gradient_checkpointing_turned_on_after_peft(name, reentrant):
    model = prepared(name, "bottleneck form", reentrant, afterwards=True, where="all")
    compare(trained(name, model), without_checkpointing(name, "bottleneck form"))


@pytest.mark.parametrize("name", NOT_CHECKPOINTED)
def test_what_cannot_be_checkpointed_says_so(name):
    with pytest.raises(ValueError, match="does not support"):
        prepared(name, "parallel", False)


@pytest.mark.parametrize("name", ["blip", "git", "kosmos-2", "qwen3-vl"])
@both_kinds
def test_gradient_checkpointing_with_lora(name, reentrant):
    # With random weights, so that every number gets a gradient that is not zero.
    compare(trained(name, prepared(name, "lora", reentrant)), without_checkpointing(name, "lora"))


def test_a_filled_cache_is_not_dropped():
    model = prepared("git", "parallel", False)
    layer = next(module for module in model.modules() if type(module).__name__ == "GitLayer")
    states, cache = torch.randn(1, 3, 32), DynamicCache()
    assert reach_adapters(layer, (states, None, cache), {})[0][2] is None
    cache.update(torch.randn(1, 4, 3, 8), torch.randn(1, 4, 3, 8), 0)
    assert reach_adapters(layer, (states, None, cache), {})[0][2] is cache
    with torch.no_grad():
        assert reach_adapters(layer, (states, None, cache), {}) is None
    assert reach_adapters(layer.eval(), (states, None, cache), {}) is None


@pytest.mark.parametrize("method", ["p-adapter", "adapter", "lora"])
@both_kinds
def test_gradient_checkpointing_of_a_backbone(method, reentrant):
    backbone = make_backbone()
    kwargs = {"use_reentrant": reentrant}
    backbone.base_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    METHODS[method].apply(backbone, METHODS[method].parse({}))
    backbone.model.train()
    ids = torch.randint(5, 30, (2, 6))
    loss_of(backbone.model, {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}).backward()
    require_gradients(backbone.model)


def test_the_hooks_are_there_once_and_go_with_the_adapter():
    def hooks(model):
        every = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        return sum(hook in (copy_last, copy_leaf, reach_adapters) for hook in every)

    plain, hooked = base("blip"), base("blip")
    support_checkpointing(hooked)
    # Word embedding and patch embedding; two layers of text and two of the image encoder.
    assert hooks(hooked) == 2 * 2 + 4
    support_checkpointing(hooked)
    assert hooks(hooked) == 2 * 2 + 4
    assert hooks(get_peft_model(copy.deepcopy(hooked), PAdapterConfig()).unload()) == 0
    again = pickle.loads(pickle.dumps(copy.deepcopy(hooked)))
    support_checkpointing(again)
    assert hooks(again) == 2 * 2 + 4
    inputs = MODELS["blip"].inputs(2)
    found = []
    for model in (plain, hooked, again):
        loss = loss_of(model, inputs)
        loss.backward()
        found.append((loss, *(p.grad for p in model.parameters() if p.grad is not None)))
    for same in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], same, strict=True))


def test_checkpointing_survives_deepcopy_and_unload():
    model = prepared("blip", "projected", False, where="all")
    compare(trained("blip", copy.deepcopy(model)), without_checkpointing("blip", "projected"))
    with torch.no_grad():
        expected = outputs(base("blip"), MODELS["blip"].inputs(2))
        assert torch.equal(outputs(model.unload().eval(), MODELS["blip"].inputs(2)), expected)


@pytest.mark.parametrize("name", ["blip", "llava", "qwen2-vl", "t5"])
@every_config
@pytest.mark.parametrize("full", [False, True], ids=["autocast", "bfloat16 weights"])
@pytest.mark.in_turn("config")
def test_a_step_in_bfloat16(name, config, full):
    inputs = MODELS[name].inputs(2)
    model = base(name)
    if full:
        model = model.to(torch.bfloat16)
        inputs = {key: x.to(torch.bfloat16) if x.is_floating_point() else x for key, x in inputs.items()}
    torch.manual_seed(0)
    model = get_peft_model(model, CONFIGS[config](where="all", activation="gelu")).train()
    shake(model)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    before = {key: p.detach().clone() for key, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not full):
            loss = loss_of(model, inputs)
        loss.backward()
        losses.append(loss)
        require_gradients(model)
        assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in parameters.values())
        optimizer.step()
    assert all(loss.isfinite() for loss in losses)
    assert all(p.isfinite().all() and not torch.equal(p, before[key]) for key, p in parameters.items())


def labelled(name):
    inputs = MODELS[name].inputs(2)
    return {**inputs, "labels": inputs["input_ids"]}


#: Families whose training step compiles into one graph, adapted as well as not, with the configurations tested.
COMPILED = {"llama": sorted(CONFIGS), "blip": ["projected"], "vit": ["projected"], "gpt-2": ["projected"]}
#: Compiling takes seconds: the fast run has every configuration once, one of them with attention by a shim. The next
#: test compiles a "llama".
COMPILED_FAST = {("llama", "bottleneck form"), ("llama", "parallel"), ("blip", "projected")}
#: Families that break the graph by themselves; the adapters do not break it further.
COMPILED_IN_PARTS = ("llava",)


def compiled(model, **options):
    """The compiled model; what is in the graphs is what counts, so no code is generated."""
    torch._dynamo.reset()
    return torch.compile(model, backend="eager", **options)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(name, config, marks=[] if (name, config) in COMPILED_FAST else pytest.mark.slow)
        for name in COMPILED
        for config in COMPILED[name]
    ],
)
def test_the_first_compiled_step_is_one_graph_with_the_same_gradients(name, config):
    model, inputs = prepared(name, config), MODELS[name].inputs(2)
    plain = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about the model
        loss = loss_of(compiled(model, fullgraph=True), inputs)
    loss.backward()
    expected = loss_of(plain, inputs)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for key, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(model.get_parameter(key).grad, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED_IN_PARTS)
def test_no_further_graph_breaks_where_the_base_model_has_some(name):
    def breaks(model):
        torch._dynamo.utils.counters.clear()
        loss_of(compiled(model), MODELS[name].inputs(2))
        return sum(torch._dynamo.utils.counters["graph_break"].values())

    unadapted = breaks(without_dropout(base(name)).requires_grad_(False).train())
    assert unadapted > 0
    assert breaks(prepared(name, "projected")) <= unadapted


def test_a_compiled_step_follows_the_weights_of_the_base_model():
    model, inputs = prepared("llama", "projected"), MODELS["llama"].inputs(2)
    torch._dynamo.reset()
    step = torch.compile(model, backend="aot_eager", fullgraph=True)

    def changed(change):
        before = loss_of(step, inputs).detach()
        with torch.no_grad():
            for layer in modules_of(model):
                change(layer.get_base_layer().weight)
        torch.testing.assert_close(loss_of(step, inputs), loss_of(copy.deepcopy(model), inputs), atol=1e-6, rtol=1e-5)
        assert abs(loss_of(step, inputs).item() - before.item()) > 1e-5

    changed(lambda weight: weight.mul_(torch.rand(32)))
    changed(lambda weight: (weight.data.mul_(torch.rand(32)), model.train()))  # leaves no other trace
    state = {key: torch.rand_like(value) for key, value in model.state_dict().items() if "o_proj.base" in key}
    changed(lambda weight: model.load_state_dict(state, strict=False))
    model.double()
    torch.testing.assert_close(loss_of(step, inputs), loss_of(copy.deepcopy(model), inputs))


def two_steps(rank, address):
    """One process of two, with its own rows."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK  # the machine's own name need not resolve
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{address}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for config in CONFIGS:
        torch.manual_seed(0)
        adapted = get_peft_model(base("llava"), CONFIGS[config]()).train()
        shake(adapted, seed=rank)  # made equal by the wrapper below
        model = DistributedDataParallel(adapted, find_unused_parameters=False)
        inputs = {key: x[rank : rank + 1] for key, x in labelled("llava").items()}
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        before = torch.cat([p.detach().flatten() for p in parameters])
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            require_gradients(adapted)
            optimizer.step()
        mine = torch.cat([loss.detach().view(1), *(p.detach().flatten() for p in parameters)])
        both = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(both, mine)
        assert both[0][0] != both[1][0], "the rows were not different"
        assert torch.equal(both[0][1:], both[1][1:])
        assert not torch.equal(mine[1:], before)
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    # Not by returning: what frees the process group waits for gloo's thread with the GIL held, and that thread may be
    # waiting for the GIL to free the last tensors it gathered (torch 2.13).
    os._exit(0)


@pytest.mark.timeout(300)
def test_two_processes_keep_the_same_adapter(tmp_path):
    # Processes that are forked import nothing anew. Where there are other devices than the processor, torch has threads
    # for gradients, which do not survive that.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    torch.multiprocessing.start_processes(two_steps, args=(tmp_path / "address",), nprocs=2, start_method=method)
