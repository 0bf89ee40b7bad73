"""The C library: compiled once, by whatever compiler there is, and refused with a reason where there is none."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_cases import assert_near, double, inputs, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from padapter.functional import metric_factor, native, p_laplacian_attention
from padapter.functional.dispatch import forced
from padapter.functional.native import launch, library

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A machine that has not compiled anything yet."""
    monkeypatch.setenv("PADAPTER_CACHE", str(tmp_path))
    for function in (library.load, library.obstacle):
        function.cache_clear()
    yield tmp_path
    for function in (library.load, library.obstacle):
        function.cache_clear()


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_it_is_compiled_once_and_found_again(fresh, monkeypatch):
    assert library.obstacle() is None
    (built,) = (fresh / "native").iterdir()
    when = built.stat().st_mtime_ns
    library.load.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    library.load()
    assert built.stat().st_mtime_ns == when


@needs_compiler
def test_two_that_compile_at_the_same_time_do_not_meet(fresh):
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(lambda _: library.load.__wrapped__(), range(2)))
    assert all(it.padapter_panel() % 16 == 0 for it in loaded)
    assert len(list((fresh / "native").iterdir())) == 1  # and nothing half-written is left


def test_another_processor_compiles_its_own(fresh, monkeypatch):
    monkeypatch.setenv(
        "CC",
        program(fresh / "cc", 'for last; do true; done; for it in "$@"; do case $it in *.so) : > $it;; esac; done'),
    )
    with pytest.raises(library.UnavailableError, match="cannot be loaded"):  # what this compiler writes is no library
        library.load()
    monkeypatch.setattr(library, "_processor", lambda: "another")
    with pytest.raises(library.UnavailableError, match="cannot be loaded"):
        library.load()
    assert len(list((fresh / "native").iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no C compiler"),
        ("echo unknown option >&2; exit 1", r"cannot compile it \(unknown option\)"),
        ("exit 3", r"cannot compile it \(exit status 3\)"),
    ],
)
def test_without_a_compiler_that_works_there_is_a_reason_and_the_eager_path(fresh, monkeypatch, text, reason):
    monkeypatch.setenv("CC", "no-such-compiler" if text is None else program(fresh / "cc", text))
    assert library.obstacle() is not None
    with pytest.raises(library.UnavailableError, match=reason):
        library.load()
    assert not (fresh / "native").exists() or not list((fresh / "native").iterdir())
    tensors, arguments = inputs(N1=3, N2=4, dk=8, dh=8, device=CPU)
    with forced("eager"):
        expected = p_laplacian_attention(**tensors, **arguments)
    torch.testing.assert_close(p_laplacian_attention(**tensors, **arguments), expected, rtol=0, atol=0)


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("PADAPTER_CACHE", str(fresh / "file"))
    assert "the cache folder cannot be written" in library.obstacle()


@needs_library
@pytest.mark.parametrize("degree", ["row", "symmetric"])
def test_the_number_of_threads_changes_no_bit(degree):
    tensors, arguments = inputs(B=3, H=2, N1=33, N2=50, device=CPU)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run("native", tensors, {**arguments, "degree": degree}))
    finally:
        torch.set_num_threads(before)
    if degree == "symmetric":  # whose column sums are PyTorch's
        assert_near(*found, torch.float32)
    else:
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@needs_library
@pytest.mark.parametrize("lengths", [(300, 40), (7, 700), (100, 1000)], ids=str)
def test_several_blocks_of_rows(lengths, monkeypatch):
    """Of one pair: gradients of keys and values are sums over them."""
    tensors, arguments = inputs(N1=lengths[0], N2=lengths[1], dk=16, dh=24, device=CPU)
    assert_near(run("native", tensors, arguments), run("eager", double(tensors), double(arguments)), torch.float32)


@needs_library
def test_nothing_of_the_size_of_the_scores_is_allocated():
    tensors, arguments = inputs(N1=512, N2=512, dk=8, dh=8, H=1, device=CPU)
    with torch.profiler.profile(profile_memory=True) as profile:
        run("native", tensors, arguments)
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 512 * 512


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_the_same():
    """A fork has one thread, and what the others held is as it was: nothing may wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tensors, arguments = inputs(N1=3, N2=4, dk=16, dh=16, device=CPU, factor=False)
        with forced("native"):
            expected = p_laplacian_attention(**tensors, **arguments)
            child = os.fork()
            if child == 0:  # no pytest in here
                same = torch.equal(p_laplacian_attention(**tensors, **arguments), expected)
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


@needs_library
def test_numbers_that_cannot_be_normal_take_no_time_and_come_from_every_thread_alike():
    """Threads treat them as 0, whatever PyTorch was told; and the caller's setting is as it was."""
    tensors, arguments = inputs(N1=4, N2=6, dk=8, dh=8, device=CPU)
    tiny = torch.tensor([1e-40])
    run("native", {**tensors, "value": tensors["value"] * 1e-39}, arguments)
    assert float(tiny * 1) > 0


@needs_library
def test_not_a_number_stays_one():
    for name in ("query", "key", "value", "node_query"):
        tensors, arguments = inputs(N1=4, N2=20, dk=16, dh=16, device=CPU)
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0, 1, 3] = torch.nan
        with forced("native"):
            context = p_laplacian_attention(**tensors, **arguments)
        eager = p_laplacian_attention(**double(tensors), **double(arguments))
        # Not every number of a context need be one too: those of each query it reaches are.
        assert torch.equal(context.isnan().any(-1), eager.isnan().any(-1)), name


@needs_library
def test_a_problem_of_another_layout_is_refused(monkeypatch):
    real = library.load()

    class Other:
        padapter_panel = real.padapter_panel
        padapter_problem_size = staticmethod(lambda: 1)

    monkeypatch.setattr(launch, "load", lambda: Other)
    tensors, arguments = inputs(N1=3, N2=4, dk=16, dh=16, device=CPU)
    with forced("native"), pytest.raises(RuntimeError, match="disagree"):
        p_laplacian_attention(**tensors, **arguments)


@needs_library
def test_a_fresh_process_compiles_and_says_what_it_runs(tmp_path):
    """As a user meets it: nothing in the cache, and `padapter env` afterwards names the path."""
    done = subprocess.run(
        [sys.executable, "-m", "padapter", "env"],
        env={**os.environ, "PADAPTER_CACHE": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "native: fused kernels" in done.stdout
    assert len(list((tmp_path / "native").iterdir())) == 1


# What a reviewer would try.


@needs_library
def test_an_interrupt_waits_for_every_thread_and_is_not_lost():
    """A thread that went on would use memory that nobody holds any more. Signals come without end."""
    code = (
        "import os, signal, threading, torch\n"
        "from padapter.functional import p_laplacian_attention\n"
        "torch.set_num_threads(2)\n"
        "armed, done = [], threading.Event()\n"
        "def handle(*_):\n"
        "    if armed:\n"
        "        raise armed.pop()\n"
        "signal.signal(signal.SIGINT, handle)\n"
        "def interrupt():\n"
        "    while not done.wait(0.003):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "thread = threading.Thread(target=interrupt, daemon=True)\n"
        "caught = 0\n"
        "thread.start()\n"
        "while caught < 40:\n"
        "    try:\n"
        "        armed.append(KeyboardInterrupt())\n"
        "        while True:\n"
        "            q = torch.randn(1, 3, 300, 64)\n"
        "            p_laplacian_attention(q, q, q, p=1.5, mu=0.1)\n"
        "    except KeyboardInterrupt:\n"
        "        caught += 1\n"
        "done.set()\n"
        "print(caught)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 40


@needs_library
def test_tangents_and_transformations_take_the_eager_path():
    tensors, arguments = inputs(N1=4, N2=5, dk=8, dh=8, device=CPU, node_query=False)
    query = tensors.pop("query")

    def function(it):
        return p_laplacian_attention(it, **tensors, **arguments)

    tangent = torch.ones_like(query)
    _, moved = torch.func.jvp(function, (query,), (tangent,))
    step = 1e-3
    torch.testing.assert_close(
        moved, (function(query + step * tangent) - function(query - step * tangent)) / (2 * step), atol=2e-3, rtol=1e-2
    )
    leaf = query.clone().requires_grad_()
    function(leaf).sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda it: function(it).sum())(query), leaf.grad, atol=1e-5, rtol=1e-4)


@needs_library
@pytest.mark.parametrize("p", [2.0, 1.5])
def test_features_that_change_nothing_get_no_gradient(p):
    """p = 2 and mu = 0: no distances, no restart, so nobody reads the query nodes."""
    tensors, arguments = inputs(N1=4, N2=5, dk=8, dh=8, device=CPU, factor=False)
    leaves = {name: tensors[name].requires_grad_() for name in ("query", "key", "value", "node_query")}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        given = {name: it.detach().to(dtype).requires_grad_() for name, it in leaves.items()}
        for degree in ("row", "symmetric"):
            with forced("native"):
                p_laplacian_attention(**given, p=p, mu=0.0, degree=degree, **arguments).sum().backward()
            own = given["node_query"].grad
            assert (own is None or bool((own == 0).all())) == (p == 2.0)
            assert all(bool(given[name].grad.isfinite().all()) for name in ("query", "key", "value"))
            for it in given.values():
                it.grad = None


@needs_library
def test_what_comes_out_may_be_worked_on_in_place():
    tensors, arguments = inputs(N1=4, N2=5, dk=16, dh=16, device=CPU)
    leaf = tensors["query"].requires_grad_()
    with forced("native"):
        context = p_laplacian_attention(**tensors, **arguments)
        assert not context._is_view()
        torch.nn.functional.dropout(context.clone(), 0.1, inplace=True).sum().backward()
    assert leaf.grad is not None


@needs_library
def test_after_the_main_thread_has_ended():
    code = (
        "import threading, time, torch\n"
        "from padapter.functional import p_laplacian_attention\n"
        "torch.set_num_threads(2)\n"
        "def work():\n"
        "    time.sleep(0.5)\n"
        "    q = torch.randn(1, 4, 8, 16)\n"
        "    print(p_laplacian_attention(q, q, q, p=1.5, mu=0.1).shape)\n"
        "threading.Thread(target=work).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch.Size([1, 4, 8, 16])" in done.stdout, done.stderr


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files")
def test_what_others_could_have_written_is_not_loaded(fresh):
    library.load()
    library.load.cache_clear()
    (fresh / "native").chmod(0o777)
    assert "others can write to it" in library.obstacle()
    (fresh / "native").chmod(0o755)
    (built,) = (fresh / "native").iterdir()
    assert built.stat().st_mode & 0o777 == 0o755  # others may use it
    built.chmod(0o777)
    library.obstacle.cache_clear()
    assert "others can write to it" in library.obstacle()


def test_without_a_home_there_is_a_reason(fresh, monkeypatch):
    monkeypatch.setattr(library, "cache_folder", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert "no home directory" in library.obstacle()


def test_a_compiler_may_come_with_options(fresh, monkeypatch):
    monkeypatch.setenv("CC", "sh -c")
    command = library._compiler()
    assert command[0].endswith("sh")
    assert command[1:] == ["-c"]


@needs_library
def test_a_tiny_restart_of_a_row_without_keys_is_all_of_it():
    tensors, arguments = inputs(N1=4, N2=5, dk=16, dh=16, device=CPU)
    tensors["mu"] = torch.tensor(1e-22)
    keep = torch.ones(4, 5, dtype=torch.bool)
    keep[2] = False
    with forced("native"):
        context = p_laplacian_attention(**tensors, **arguments, attention_mask=keep)
    torch.testing.assert_close(context[:, :, 2], tensors["node_query"][:, :, 2])


@needs_library
@pytest.mark.parametrize("model_width", [128, 24])
def test_distances_behind_a_triangle_whose_zeros_are_left_out(model_width):
    """R of a projection; with d < dh its last columns are zero."""
    tensors, _ = inputs(H=2, kv_heads=2, N1=7, N2=19, dk=48, dh=48, device=CPU, node_query=False)
    factor = metric_factor(torch.randn(model_width, 96, generator=torch.Generator().manual_seed(5)) / 10, 2)
    assert factor[:, :16, 16:].count_nonzero() == 0  # a panel of 16 columns and of 32 begins with zeros
    expected = run("eager", double(tensors), {"metric_factor": factor.double()})
    assert_near(run("native", tensors, {"metric_factor": factor}), expected, torch.float32)


@needs_library
def test_without_the_dispatcher_everything_is_the_same_bit_for_bit():
    """Context and gradients, laid out as a model's tensors are; who looks at operators still sees them."""
    leaves = [torch.randn(2, n, h, 16).transpose(1, 2).requires_grad_() for n, h in ((5, 4), (9, 2), (9, 2))]
    p, mu = torch.tensor(1.3, requires_grad=True), torch.tensor([0.1, 0.2, 0.0, 0.3], requires_grad=True)

    def attend():
        out = p_laplacian_attention(*leaves, p=p, mu=mu)
        return out, *torch.autograd.grad(out.square().sum(), [*leaves, p, mu])

    seen = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    direct = attend()
    with Look():
        dispatched = attend()
    assert {"padapter.p_laplacian_forward.default", "padapter.p_laplacian_backward.default"} <= set(seen)
    assert all(torch.equal(one, other) for one, other in zip(direct, dispatched, strict=True))
    assert direct[1].stride() == leaves[0].stride()  # so that a projection's gradient need not be copied


def in_place(metric):
    metric.mul_(3)


def other_storage(metric):
    metric.data = metric * 3  # which leaves the version alone


@needs_library
@pytest.mark.parametrize("change", [in_place, other_storage])
def test_a_metric_that_is_changed_has_another_square(change):
    leaves = [torch.randn(1, 2, n, 16, requires_grad=True) for n in (3, 5, 5)]
    metric = torch.randn(2, 16, 16)

    def gradients():
        out = p_laplacian_attention(*leaves, p=1.3, mu=0.1, metric_factor=metric)
        return torch.autograd.grad(out.square().sum(), leaves)

    gradients()
    change(metric)
    changed = gradients()
    metric = metric.clone()  # of which nothing can be known
    assert all(torch.equal(one, other) for one, other in zip(changed, gradients(), strict=True))


@needs_library
def test_a_gradient_of_a_gradient_is_refused_and_not_left_out():
    """Also where the gradient from above is a constant: a penalty on gradients must not vanish without a word."""
    leaves = [torch.randn(1, 2, n, 16, requires_grad=True) for n in (3, 5, 5)]
    out = p_laplacian_attention(*leaves, p=1.3, mu=0.1)
    (gradient,) = torch.autograd.grad(out.sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (out.sum() + gradient.square().sum()).backward()


@needs_library
def test_gradients_of_several_directions_at_once():
    query, *others = (torch.randn(1, 2, n, 16) for n in (3, 5, 5))
    query.requires_grad_()
    out = p_laplacian_attention(query, *others, p=1.3, mu=0.1)
    directions = torch.randn(4, *out.shape)
    together = torch.autograd.grad(out, query, directions, is_grads_batched=True, retain_graph=True)[0]
    apart = [torch.autograd.grad(out, query, one, retain_graph=True)[0] for one in directions]
    torch.testing.assert_close(together, torch.stack(apart))


@needs_library
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_traced_graph_holds_the_operator():
    inputs_ = tuple(torch.randn(1, 2, n, 16) for n in (3, 5, 5))
    traced = torch.jit.trace(lambda *it: p_laplacian_attention(*it, p=1.3, mu=0.1), inputs_, check_trace=False)
    assert "padapter::p_laplacian_forward" in str(traced.graph)


@needs_library
def test_a_metric_on_another_device_is_not_read():
    query, key, value = (torch.randn(1, 2, n, 16) for n in (3, 5, 5))
    with pytest.raises(RuntimeError, match="device"):
        p_laplacian_attention(query, key, value, p=1.3, mu=0.1, metric_factor=torch.empty(2, 16, 16, device="meta"))


@needs_library
def test_saved_tensors_may_come_back_with_other_strides():
    leaves = [torch.randn(1, 2, n, 16, requires_grad=True) for n in (3, 5, 5)]

    def other(tensor):
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor

    def gradients():
        return torch.autograd.grad(p_laplacian_attention(*leaves, p=1.3, mu=0.1).square().sum(), leaves)

    with torch.autograd.graph.saved_tensors_hooks(lambda it: it, other):
        found = gradients()
    for one, expected in zip(found, gradients(), strict=True):
        torch.testing.assert_close(one, expected)


@needs_library
def test_a_backward_pass_that_alone_is_watched_goes_by_the_operator():
    """With checkpoints, whose saved tensors may be asked for once."""
    leaf = torch.randn(1, 2, 5, 16, requires_grad=True)
    seen = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    def attend(it):
        return p_laplacian_attention(it, it, it, p=1.3, mu=0.1)

    (expected,) = torch.autograd.grad(attend(leaf).square().sum(), leaf)
    out = checkpoint(attend, leaf, use_reentrant=False)
    with Look():
        (found,) = torch.autograd.grad(out.square().sum(), leaf)
    assert "padapter.p_laplacian_backward.default" in seen
    torch.testing.assert_close(found, expected)


@needs_library
@pytest.mark.parametrize("rows", [1, 5])
def test_a_key_that_the_mask_removes_is_gone_whatever_its_features_are(rows):
    query, key, value = (torch.randn(1, 2, n, 16) for n in (5, 9, 9))
    mask = (torch.arange(9) < 7).expand(1, 1, rows, 9)
    if rows > 1:
        mask = mask.clone()  # a row of its own for every query
    plain = p_laplacian_attention(query, key, value, p=1.5, mu=0.1, attention_mask=mask)
    key[:, :, 7:] = torch.nan
    assert torch.equal(p_laplacian_attention(query, key, value, p=1.5, mu=0.1, attention_mask=mask), plain)
