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

from padapter.functional import native, p_laplacian_attention
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
def test_a_forked_process_makes_threads_of_its_own(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tensors, arguments = inputs(N1=3, N2=4, dk=16, dh=16, device=CPU, factor=False)
        call = lambda: p_laplacian_attention(**tensors, **arguments)  # noqa: E731
        with forced("native"):
            call()
            assert launch._pool is not None
            child = os.fork()
            if child == 0:  # no pytest in here
                os._exit(0 if launch._pool is None else 1)
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
