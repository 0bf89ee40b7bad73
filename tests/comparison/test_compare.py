import functools
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from padapter.cli.app import app
from padapter.comparison import compare, read_records
from padapter.comparison.runner import Runner
from padapter.errors import UserError
from padapter.options import CompareOptions

FAKE = (sys.executable, str(Path(__file__).parent / "fake_train.py"))
module = sys.modules[compare.__module__]
RECIPE = """
title: Small
base: {model: shapes-blip, max_steps: 2}
seeds: [0, 1]
benchmarks:
  vqa: {label: VQA, task: vqa, train: "shapes:new-questions:train:16", eval: "shapes:new-questions:test:8"}
methods:
  full: {label: Everything, apart: true, size: false}
  lora: {label: LoRA, method: "lora:r=4"}
  p-adapter: {label: P}
baseline: lora
tune: {learning_rate: {lora: [0.01, 0.1], p-adapter: [0.01]}, max_steps: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("shapes:new-questions:test:8", "other"), encoding="utf-8")
    return path


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(module, "Runner", functools.partial(Runner, train=FAKE))


def options(recipe, tmp_path, **more):
    return CompareOptions(recipe=str(recipe), output=str(tmp_path / "out"), jobs=2, quiet=True, **more)


def test_a_comparison_is_tuned_run_and_reported_once(recipe, tmp_path, fake):
    done = compare(options(recipe, tmp_path, tune=True))
    assert done.failed == {}
    assert len(done.results.records) == 2 + 1 + 3 * 2
    runs = {(run.stage, run.method, run.seed): run for run in done.results.records}
    # The stand-in scores 0.25 at the rate 0.01 and 0.75 otherwise.
    assert {runs["test", "lora", seed].learning_rate for seed in (0, 1)} == {0.1}
    assert {runs["test", "p-adapter", seed].learning_rate for seed in (0, 1)} == {0.01}
    assert done.results.base_scores == {"vqa": 0.75}
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| LoRA |" in report
    assert "75.00" in report
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "records").iterdir()}
    again = compare(options(recipe, tmp_path, tune=True))
    assert again.results == done.results
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "records").iterdir()}
    assert len(read_records(tmp_path / "out" / "records")) == 9


def test_only_the_report_is_written_on_demand(recipe, tmp_path, fake):
    done = compare(options(recipe, tmp_path, report_only=True))
    assert done.results.records == ()
    assert all(path.is_file() for path in done.reports)
    assert not (tmp_path / "out" / "runs").exists()


def test_what_was_tuned_is_not_mixed_with_what_was_not(recipe, tmp_path, fake):
    compare(options(recipe, tmp_path, tune=True))
    with pytest.raises(UserError, match=r"learning_rate was 0.1 and is None"):
        compare(options(recipe, tmp_path))


def test_a_failed_tuning_run_stops_before_the_table(recipe, tmp_path, fake):
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("lora:r=4", "lora:r=99"), encoding="utf-8")
    with pytest.raises(UserError, match=r"--tune: 2 of 3 runs did not finish.*it cannot be done"):
        compare(options(recipe, tmp_path, tune=True))
    assert {run.stage for run in read_records(tmp_path / "out" / "records")} == {"tune"}


def test_a_budget_sets_sizes_once(recipe, tmp_path, fake):
    recipe.write_text(recipe.read_text(encoding="utf-8") + "budget: 0.01\n", encoding="utf-8")
    done = compare(options(recipe, tmp_path))
    sizes = {run.method: run.options["method_options"].get("r") for run in done.results.records}
    assert sizes["full"] is None
    assert sizes["lora"] == 5  # 20,480 parameters of 2.68 million at rank 4, as the test of budgets counts
    assert compare(options(recipe, tmp_path)).results == done.results


def test_the_command_says_what_failed_and_ends_with_1(recipe, tmp_path, fake):
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("lora:r=4", "lora:r=99"), encoding="utf-8")
    told = CliRunner().invoke(app, ["compare", str(recipe), "--output", str(tmp_path / "out"), "--quiet"])
    assert told.exit_code == 1, told.output
    assert "failed: test--vqa--lora--seed-0: exit code 2: error: it cannot be done" in told.output
    assert "Everything" in told.output
    assert "report.html" in told.output.replace("\n", "")


def test_sizes_and_plans_are_printed_without_a_folder(recipe, tmp_path):
    told = CliRunner().invoke(app, ["compare", str(recipe), "--match"])
    assert told.exit_code == 0, told.output
    assert "20,480" in told.output
    told = CliRunner().invoke(app, ["compare", str(recipe)])
    assert told.exit_code == 2
    assert "--output: is needed" in told.output
    told = CliRunner().invoke(app, ["compare", str(recipe), "--match", "--dry-run"])
    assert "--dry-run: contradicts --match" in told.output


@pytest.mark.timeout(600)
def test_a_real_comparison_from_nothing_to_the_report(tmp_path):
    path = tmp_path / "recipe.yaml"
    lines = [line for line in RECIPE.splitlines() if not line.startswith(("  full:", "tune:"))]
    path.write_text("\n".join(lines).replace("seeds: [0, 1]", "seeds: [5]"), encoding="utf-8")
    done = compare(options(path, tmp_path))
    assert done.failed == {}
    assert {(run.method, run.seed, run.steps, len(run.items)) for run in done.results.records} == {
        ("lora", 5, 2, 8),
        ("p-adapter", 5, 2, 8),
    }
    assert {run.parameters["trainable"] for run in done.results.records} == {20480, 52656}
    assert len({run.rows_digest for run in done.results.records}) == 1
    assert all(run.adapter_bytes > 4 * run.parameters["trainable"] for run in done.results.records)
    assert "vqa" in done.results.base_scores
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
