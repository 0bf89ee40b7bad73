"""The fused operators as PyTorch sees them: schemas, fake tensors, the compiler, checkpointing, autocast, dispatch."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED, assert_near, error, inputs, kernels, masks, run, small_and_quick
from torch.utils.checkpoint import checkpoint

from padapter import UserError
from padapter.functional import dispatch, native, p_laplacian_attention, p_laplacian_weights
from padapter.functional.fused import launch, operators, self_check

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is built for Linux"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]
SMALL = {"N1": 5, "N2": 6, "dk": 8, "dh": 4, "H": 2}


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    small_and_quick(monkeypatch)


def operator_inputs(kernel, *, distance=True, restart=True, grad=True):
    tensors, _ = inputs(**SMALL)
    query, key, value, node_query, p, mu = (tensors[name] for name in tensors)
    near_value = value.repeat_interleave(2, dim=1)
    given = [query, key, value, node_query if restart else None, node_query.clone() if distance else None]
    given += [near_value if distance else None, p.clone(), mu.clone() if restart else None]
    given = [it if it is None or not grad else it.detach().requires_grad_() for it in given]
    metric = torch.randn(2, 4, 4, device=DEVICE) if distance else None
    return (
        *given,
        metric,
        masks("bool", N1=5, N2=6)["attention_mask"],
        torch.tensor([5], device=DEVICE) if distance else None,
        0.3,
        False,
        distance,
        1e-6,
        1e-19,
        0.25 if distance else 0.0,
        kernel == "native",
    )


@kernels
@pytest.mark.parametrize(("distance", "restart"), [(True, True), (False, False)])
def test_opcheck_of_the_operator_and_its_backward(kernel, distance, restart):
    given = operator_inputs(kernel, distance=distance, restart=restart)
    torch.library.opcheck(operators.p_laplacian_forward, given)
    if not distance:
        return
    plain = operator_inputs(kernel, distance=distance, restart=restart, grad=False)
    with torch.no_grad():
        out = operators.p_laplacian_forward(*plain)
    for columns in (True, False):
        arguments = (torch.ones_like(out[0]), *plain[:11], *out, *plain[11:], columns)
        torch.library.opcheck(operators.p_laplacian_backward, arguments)


@kernels
def test_opcheck_of_the_degrees(kernel):
    query, key, *_ = operator_inputs(kernel)
    numbers = (0.3, True, kernel == "native")
    torch.library.opcheck(operators.attention_degrees, (query, key, None, *numbers))
    with torch.no_grad():
        degrees, *statistics = operators.attention_degrees(query.detach(), key.detach(), None, *numbers)
    backward = (torch.ones_like(degrees), query.detach(), key.detach(), None, *statistics, *numbers)
    torch.library.opcheck(operators.attention_degrees_backward, backward)


@kernels
@pytest.mark.parametrize("degree", ["row", "symmetric"])
def test_the_compiler_sees_one_graph(kernel, degree):
    """Forward and backward of the whole function, dispatch included, without a graph break."""
    tensors, arguments = inputs(**SMALL)
    arguments |= {"degree": degree, **masks("bool", N1=5, N2=6)}
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
    names = list(tensors)

    def function(*given):
        return p_laplacian_attention(**dict(zip(names, given, strict=True)), **arguments)

    with dispatch.forced(kernel):
        plain = function(*leaves)
        traced = torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)
    torch.testing.assert_close(traced, plain, rtol=1e-6, atol=1e-6)
    upstream = torch.randn_like(plain)
    for one, other in zip(*(torch.autograd.grad(it, leaves, upstream) for it in (plain, traced)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@kernels
def test_the_graph_holds_our_operators(kernel):
    """What the compiler sees is the operator, not Triton and not the eager path."""
    tensors, arguments = inputs(**SMALL)
    seen = []

    def look(graph, example_inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with dispatch.forced(kernel):
        torch.compile(lambda query: p_laplacian_attention(**{**tensors, "query": query}, **arguments), backend=look)(
            tensors["query"]
        )
    assert any("p_laplacian_forward" in name for name in seen)
    assert not any("softmax" in name for name in seen)


@kernels
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(kernel, reentrant):
    tensors, arguments = inputs(**SMALL)
    names = list(tensors)
    found = []
    for wrapped in (False, True):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]

        def function(*given):
            return p_laplacian_attention(**dict(zip(names, given, strict=True)), **arguments)

        with dispatch.forced(kernel):
            context = checkpoint(function, *leaves, use_reentrant=reentrant) if wrapped else function(*leaves)
            context.square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@kernels
def test_autocast_does_not_reach_distances(kernel):
    tensors, arguments = inputs(**SMALL)
    with dispatch.forced(kernel):
        plain = p_laplacian_attention(**tensors, **arguments)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            cast = p_laplacian_attention(**tensors, **arguments)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@kernels
def test_features_of_another_dtype_than_scores(kernel):
    """The bottleneck form in a half precision model: its features are those of a float32 adapter."""
    tensors, arguments = inputs(**SMALL, factor=False)
    tensors |= {name: tensors[name].half() for name in ("query", "key")}
    found = run(kernel, tensors, arguments)
    assert found["context"].dtype == torch.float32
    assert_near(found, run("eager", tensors, arguments), torch.float16)


@kernels
def test_a_context_is_laid_out_as_modules_want_it(kernel):
    tensors, arguments = inputs(**SMALL)
    with dispatch.forced(kernel):
        assert p_laplacian_attention(**tensors, **arguments).transpose(1, 2).is_contiguous()


@kernels
def test_nothing_of_the_size_of_the_scores_is_kept(kernel):
    tensors, arguments = inputs(N1=20, N2=24, dk=4, dh=4)
    kept = []
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    for degree in ("row", "symmetric"):
        with dispatch.forced(kernel), torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
            p_laplacian_attention(**leaves, **arguments, degree=degree)
    assert kept
    assert max(kept) < 20 * 24


# What runs, and why.


def given(**changes):
    tensors, arguments = inputs(**SMALL)
    return {**{name: tensors[name] for name in ("query", "key", "value", "node_query")}, **arguments, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 2}, "steps is 2"),
        ({"query": torch.zeros(1, 2, 5, 8, dtype=torch.float64)}, "query is torch.float64"),
        ({"key": torch.zeros(1, 1, 6, 8, dtype=torch.float16)}, "query is torch.float32 and key torch.float16"),
        ({"value": torch.zeros(1, 1, 6, 300)}, "wider than 256"),
        ({"attention_mask": torch.zeros(5, 6, requires_grad=True)}, "mask needs a gradient"),
        ({"value": torch.zeros(1, 1, 6, 0)}, "value is empty"),
        ({"value": torch.zeros(1, 1, 6, 4, device="meta")}, "value is on another device"),
    ],
)
def test_what_kernels_do_not_cover_is_refused_where_they_are_forced(monkeypatch, changes, reason):
    changes = {
        name: it.to(DEVICE) if isinstance(it, torch.Tensor) and it.device.type == "cpu" else it
        for name, it in changes.items()
    }
    monkeypatch.setattr(dispatch, "device_obstacle", lambda *_: None)
    with dispatch.forced("triton"):
        assert dispatch.choose(**given()).path == "triton"
        with pytest.raises(UserError, match=f"PADAPTER_KERNEL=triton: the triton kernels cannot run here: .*{reason}"):
            dispatch.choose(**given(**changes))


def test_what_kernels_do_not_cover_runs_eagerly_and_says_why_unless_forced():
    if DEVICE.type == "cpu" and native.obstacle() is not None:
        pytest.skip(native.obstacle())
    assert dispatch.choose(**given()).path == ("native" if DEVICE.type == "cpu" else "triton")
    assert dispatch.choose(**given(), steps=2) == ("eager", "steps is 2, and the kernels make one")


def test_cpu_tensors_run_natively_unless_there_is_an_obstacle(monkeypatch):
    cpu = {name: it.cpu() for name, it in given().items()}
    monkeypatch.setattr(dispatch, "_native_obstacle", lambda: None)
    assert dispatch.choose(**cpu) == ("native", "the native kernels cover this call")
    monkeypatch.setattr(dispatch, "_native_obstacle", lambda: "there is no C compiler")
    assert dispatch.choose(**cpu) == ("eager", "there is no C compiler")
    with dispatch.forced("native"), pytest.raises(UserError, match=r"PADAPTER_KERNEL=native: .*there is no C compiler"):
        dispatch.choose(**cpu)
    if INTERPRETED:
        with dispatch.forced("triton"):
            assert dispatch.choose(**cpu) == ("triton", "PADAPTER_KERNEL=triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with dispatch.forced("triton"), pytest.raises(UserError, match="on the CPU"):
        dispatch.choose(**cpu)


def test_other_devices_and_old_gpus(monkeypatch):
    for path in ("triton", "native"):
        assert "'meta'" in dispatch.device_obstacle(path, torch.device("meta"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
    assert "capability 7.5" in dispatch.device_obstacle("triton", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (8, 0))
    assert dispatch.device_obstacle("triton", torch.device("cuda")) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert dispatch.device_obstacle("triton", torch.device("cuda")) == "Triton is not installed"


def test_eager_can_be_forced_and_gives_what_it_always_gave():
    tensors, arguments = inputs(**SMALL)
    with dispatch.forced("eager"):
        assert dispatch.choose(**given()) == ("eager", "PADAPTER_KERNEL=eager")
        context = p_laplacian_attention(**tensors, **arguments)
    weights, beta = p_laplacian_weights(**tensors, **arguments)
    expected = weights @ tensors["value"] + beta.unsqueeze(-1) * tensors["node_query"]
    assert error(context, expected) < 1e-5


def test_an_unknown_kernel_is_refused():
    with (
        pytest.raises(UserError, match="PADAPTER_KERNEL: got 'cuda', accepted are auto, eager, native, triton"),
        dispatch.forced("cuda"),
    ):  # type: ignore[arg-type]
        pass
    assert dispatch.wanted() in dispatch.KERNELS


def test_the_environment_variable_is_read(monkeypatch):
    try:
        for value, expected in (("eager", "eager"), ("", "auto")):
            monkeypatch.setenv("PADAPTER_KERNEL", value)
            importlib.reload(dispatch)
            assert dispatch.wanted() == expected
    finally:
        monkeypatch.undo()
        importlib.reload(dispatch)


def test_only_kernels_import_triton():
    """The package works without it: kernels are imported when one is launched."""
    folder = Path(operators.__file__).parents[2]
    importing = {
        file.name for file in folder.rglob("*.py") if re.search(r"^\s*(import|from) triton", file.read_text(), re.M)
    }
    assert importing == {f"kernel_{name}.py" for name in ("parts", "forward", "backward", "degrees")}


def test_arguments_that_do_not_fit_are_refused_as_ever():
    tensors, arguments = inputs(**SMALL)
    with dispatch.forced("triton"):
        with pytest.raises(ValueError, match="metric_factor: got shape"):
            p_laplacian_attention(**tensors, metric_factor=torch.zeros(2, 3, 3, device=DEVICE))
        with pytest.raises(ValueError, match="degree: got 'column'"):
            p_laplacian_attention(**tensors, **arguments, degree="column")
        with pytest.raises(ValueError, match="p: got 0"):
            p_laplacian_attention(**{**tensors, "p": 0.5}, **arguments)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the kernels are compared before their first use anyway")
def test_kernels_are_compared_before_they_are_trusted(monkeypatch):
    self_check.failure.cache_clear()
    assert self_check.failure(DEVICE, torch.float32, 16, 16) is None
    self_check.failure.cache_clear()
    plain = launch.Plan.run
    monkeypatch.setattr(
        launch.Plan, "run", lambda plan: (plain(plan), plan.arguments.get("dk_ptr", torch.ones(1)).mul_(1.1))
    )
    assert "key is off by" in self_check.failure(DEVICE, torch.float32, 16, 16)
    self_check.failure.cache_clear()
    monkeypatch.setattr(launch.Plan, "run", lambda plan: 1 / 0)
    assert "ZeroDivisionError: division by zero" in self_check.failure(DEVICE, torch.float32, 16, 16)
    self_check.failure.cache_clear()


def test_kernels_that_disagree_are_not_used(monkeypatch):
    monkeypatch.setattr(dispatch, "device_obstacle", lambda *_: None)
    monkeypatch.setattr(dispatch, "on_device", lambda device: dispatch.Choice("triton", ""))
    monkeypatch.setattr(dispatch, "_distrust", lambda *_: "they do not agree")
    assert dispatch.choose(**given()) == ("eager", "they do not agree")
    with dispatch.forced("triton"):
        assert dispatch.choose(**given()).path == "triton"
