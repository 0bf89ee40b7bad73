"""Benchmarks: the frame around them, and that each of them runs at toy size. How long anything takes is not tested."""

import importlib
import json

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import blip_step, operator, performance, process, scaling, step, timing
from benchmarks.process import NotHereError, Process, interleaved_processes
from benchmarks.registry import BENCHMARKS, Benchmark


def test_sides_take_turns():
    called = []
    seconds = timing.interleaved({name: lambda name=name: called.append(name) for name in "ab"}, repeats=3)
    assert called == list("ab" * 4)  # the first round is to warm up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_those_of_medians():
    found = timing.compare({"a": [2.0, 4.0, 100.0], "b": [1.0, 6.0, 8.0]}, "a", b=1.3)
    assert found["ratio"] == {"a": 1.0, "b": 1.5}
    assert found["median"] == {"a": 4.0, "b": 6.0}
    assert found["quartiles"] == {"a": [3.0, 52.0], "b": [3.5, 7.0]}
    assert (found["baseline"], found["target"], found["repeats"]) == ("a", {"b": 1.3}, 3)


def test_memory_is_compared_too():
    found = timing.compare_memory({"a": 2 * 2**20, "b": 3 * 2**20}, "a")
    assert found["peak_mb"] == {"a": 2.0, "b": 3.0}
    assert found["peak_ratio"] == {"a": 1.0, "b": 1.5}


def test_a_peak_is_what_work_needs_at_most_and_not_what_was_there_before():
    there = torch.ones(2**22)  # 16 MiB
    peak = timing.peak_above(lambda: torch.ones(2**23))  # 32 MiB
    assert peak == pytest.approx(2**25, abs=2**21)  # the kernel counts pages in batches
    assert there.numel()


def test_a_file_says_on_what_machine(tmp_path):
    path = timing.write("name", [{"seconds": [1.0, 2.5e-05]}], tmp_path, quick=True)
    found = json.loads(path.read_text())
    assert (found["benchmark"], found["quick"], found["cases"]) == ("name", True, [{"seconds": [1.0, 2.5e-05]}])
    assert {"cpu", "cores", "threads", "torch", "instructions"} <= set(found["machine"])
    assert '"seconds": [ 1.0, 2.5e-05 ]' in path.read_text()


def test_a_process_answers_until_it_has_no_more_with_its_threads_and_without_denormal_numbers(monkeypatch):
    monkeypatch.setenv(process.THREADS, "3")
    with Process("benchmarks.timing:facts") as asked:
        (found,) = asked
    assert (found["threads"], found["denormals"]) == (3, "flushed")
    assert timing.machine()["denormals"] == "kept"  # in this process nobody has asked for it


def test_a_process_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(process.sys, "executable", "false")
    with Process("module:run", a=1) as dead, pytest.raises(RuntimeError, match=r'module:run \{"a": 1\} ended with 1'):
        dead.ask()


def test_sides_in_processes_take_turns(monkeypatch):
    asked = []

    class Side:
        def __init__(self, function, start):
            self.start = start

        def ask(self):
            asked.append(self.start)
            self.start += 1
            return self.start

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(process, "Process", Side)
    facts, found = interleaved_processes("any:side", {"a": {"start": 0}, "b": {"start": 10}}, repeats=2)
    assert facts == {"a": 1, "b": 11}
    assert found == {"a": [2, 3], "b": [12, 13]}
    assert asked == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_registry_names_modules_that_run(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_all_of_them_fit_into_ten_minutes():
    assert sum(benchmark.seconds for benchmark in BENCHMARKS.values() if not benchmark.long) <= 600


@pytest.fixture
def here(monkeypatch):
    """Sides run in this process: what they measure is not looked at."""

    def interleaved_here(function, sides, repeats):
        module, name = function.split(":")
        generator = getattr(importlib.import_module(module), name)
        running = {side: generator(**arguments) for side, arguments in sides.items()}
        facts = {side: next(items) for side, items in running.items()}
        return facts, {side: [next(items) for _ in range(repeats)] for side, items in running.items()}

    for module in (blip_step, operator, step):
        monkeypatch.setattr(module, "interleaved_processes", interleaved_here)


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("features", "kernel")])
def test_it_runs_at_toy_size_and_the_page_can_show_it(name, here, tmp_path):
    cases = list(importlib.import_module(f"benchmarks.{name}").run(quick=True))
    for case in cases:
        assert "ratio" in case or "peak_ratio" in case
    timing.write(name, cases, tmp_path)
    blocks = [section for file, section in performance.blocks() if file == name]
    assert blocks
    for section in blocks:
        assert "Not measured yet" not in performance.section(name, section, tmp_path)
    assert all(path.is_file() for path in performance.draw(tmp_path, tmp_path / "images"))


def test_so_does_that_of_features(tmp_path):
    from benchmarks import features

    cases = list(features.run(quick=True))
    timing.write("features", cases, tmp_path)
    assert cases[0]["largest_relative_difference_of_losses"] < 1e-3
    assert set(cases[1]["accuracy"]) == {"without", "cached"}
    for section in ("Time", "Answers"):
        assert "Not measured yet" not in performance.section("features", section, tmp_path)


def test_ways_to_attend_differ_only_as_they_should():
    sides = operator.Sides(1, 2, 3, 5, 4, torch.float64)
    query, key, value = sides.tensors
    p, mu = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(operator.softmax(query, key, value), expected)
    torch.testing.assert_close(operator.materialising(query, key, value, p, mu), expected)


def test_frozen_keys_get_no_gradient():
    sides = operator.Sides(1, 2, 3, 5, 4, torch.float32, frozen_keys=True)
    assert [tensor.requires_grad for tensor in sides.tensors] == [True, False, False]
    assert len(sides.side("sdpa")()) == 1
    assert len(sides.side("p-Laplacian")()) == 3  # and p and mu


def test_a_compiled_side_is_compiled_once(monkeypatch):
    compiled = []
    monkeypatch.setattr(operator.torch, "compile", lambda function: compiled.append(function) or function)
    sides = operator.Sides(1, 2, 3, 5, 4, torch.float32)
    found = operator.case("any", sides, ["p-Laplacian, compiled"], repeats=2)
    assert set(found["ratio"]) == {"sdpa", "p-Laplacian", "p-Laplacian, compiled"}
    assert compiled == [operator.p_laplacian_attention]


def test_scaling_changes_one_size_at_a_time(monkeypatch):
    made = []
    monkeypatch.setattr(
        scaling, "Sides", lambda **sizes: made.append(sizes) or operator.Sides(1, 1, 2, 2, 4, torch.float32)
    )
    list(scaling.growing("keys", (7, 9), repeats=1))
    assert [sizes["keys"] for sizes in made] == [7, 9]
    assert {(sizes["batch"], sizes["heads"], sizes["queries"]) for sizes in made} == {(4, 12, 40)}


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch):
    monkeypatch.setenv(process.THREADS, "1")


def test_busy_cores_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(command.os, "getloadavg", lambda: (1.9, 0, 0))
    monkeypatch.setattr(command, "run", lambda *_, **__: pytest.fail("it measured"))
    assert command.main(["operator"]) == 1
    assert "The cores are busy: 1.9" in capsys.readouterr().err


def test_unless_somebody_insists_and_then_the_file_says_so(monkeypatch, tmp_path, capsys):
    class Cases(list):
        ask = lambda self: {"threads": 1}  # noqa: E731
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(command.os, "getloadavg", lambda: (1.9, 0, 0))
    monkeypatch.setattr(command, "Process", lambda function, **arguments: Cases([{"case": "one"}]))
    assert command.main(["step", "--anyway", "--output", str(tmp_path), "--threads", "1"]) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    assert (found["busy"], found["load_at_start"], found["machine"]["threads"]) == (True, 1.9, 1)
    assert "case one" in capsys.readouterr().out


def test_what_cannot_run_here_is_left_out_with_its_reason(monkeypatch, tmp_path, capsys):
    class Nothing:
        def __iter__(self):
            raise NotHereError("no GPU")

        ask = lambda self: {}  # noqa: E731
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(command, "Process", lambda function, **arguments: Nothing())
    monkeypatch.setitem(command.BENCHMARKS, "other", Benchmark(1, "another"))
    assert command.main(["other", "--anyway", "--output", str(tmp_path)]) == 0
    assert "left out: no GPU" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_is_told(capsys):
    with pytest.raises(SystemExit):
        command.main(["operatr"])
    assert "no benchmark is called operatr; there are operator" in capsys.readouterr().err
