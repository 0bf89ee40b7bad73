import functools
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from padapter.cli.app import app
from padapter.comparison import compare, read_recipe, read_records
from padapter.comparison.runner import Runner
from padapter.comparison.sizes import match_sizes
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
    path.write_text(RECIPE.replace("shapes:new-questions:test:8", "of/other"), encoding="utf-8")
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


def test_a_part_of_a_comparison_can_be_run_alone(recipe, tmp_path, fake):
    done = compare(options(recipe, tmp_path, tune=True, only="lora"))
    assert {(run.stage, run.method) for run in done.results.records} == {("tune", "lora"), ("test", "lora")}
    assert len(done.results.records) == 2 + 2
    rest = compare(options(recipe, tmp_path, tune=True, only="vqa, full,p-adapter"))
    assert len(rest.results.records) == 9
    assert compare(options(recipe, tmp_path, tune=True)).results == rest.results


def test_a_part_that_there_is_not_is_refused(recipe, tmp_path, fake):
    with pytest.raises(UserError, match=r"--only: 'vgg' is neither .*benchmarks: vqa; methods: full, lora, p-adapter"):
        compare(options(recipe, tmp_path, only="lora,vgg"))


def test_a_tuned_folder_stays_tuned(recipe, tmp_path, fake):
    first = compare(options(recipe, tmp_path, tune=True))
    assert compare(options(recipe, tmp_path)).results == first.results
    assert compare(options(recipe, tmp_path, report_only=True)).results == first.results


def test_an_interruption_says_the_whole_command(recipe, tmp_path, fake, monkeypatch):
    monkeypatch.setattr(Runner, "execute", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(
        KeyboardInterrupt, match=r"padapter compare .*recipe.yaml --output .*out --tune --jobs 2 --device cpu"
    ):
        compare(options(recipe, tmp_path, tune=True, device="cpu"))


def test_the_device_reaches_every_run(recipe, tmp_path, fake):
    done = compare(options(recipe, tmp_path, device="cpu"))
    assert {run.options["device"] for run in done.results.records} == {"cpu"}


def test_rates_chosen_on_the_rows_of_the_table_are_not_reported(recipe, tmp_path, fake):
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("eval: ", "eval_split: x, tune_split: y, eval: "), encoding="utf-8")
    compare(options(recipe, tmp_path, tune=True))
    for path in (tmp_path / "out" / "records").glob("*.json"):  # two names for the same rows
        content = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'"rows_digest": "\w+"', '"rows_digest": "same"', content), encoding="utf-8")
    with pytest.raises(UserError, match="vqa: learning rates were chosen on the very rows of the table"):
        compare(options(recipe, tmp_path, tune=True))


def test_options_no_method_takes_are_found_before_the_first_run(recipe, tmp_path, fake):
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("lora:r=4", "lora:rank=4"), encoding="utf-8")
    with pytest.raises(UserError, match=r"lora.*rank"):
        compare(options(recipe, tmp_path))
    assert not (tmp_path / "out" / "records").exists()


def test_sizes_fit_the_options_of_each_benchmark(recipe):
    text = recipe.read_text(encoding="utf-8") + "budget: 0.02\n"
    text = text.replace("methods:\n", "  ent: {task: entailment, train: a, eval: b}\nmethods:\n", 1)
    form = "p-adapter: {label: P, benchmarks: {ent: {method_options: {form: bottleneck}}}}"
    recipe.write_text(text.replace("p-adapter: {label: P}", form), encoding="utf-8")
    found = match_sizes(read_recipe(recipe))
    assert found.options["vqa"]["p-adapter"]["set"]["r"] == 21
    assert found.options["ent"]["p-adapter"]["set"]["r"] % 5 == 0
    assert any("P on ent" in line for line in found.table)
    assert found.options["vqa"]["lora"] == found.options["ent"]["lora"]


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
@pytest.mark.parametrize("only", ["lora", pytest.param(None, marks=pytest.mark.slow)], ids=["one", "all"])
def test_a_real_comparison_from_nothing_to_the_report(tmp_path, only):
    path = tmp_path / "recipe.yaml"
    lines = [line for line in RECIPE.splitlines() if not line.startswith(("  full:", "tune:"))]
    path.write_text("\n".join(lines).replace("seeds: [0, 1]", "seeds: [5]"), encoding="utf-8")
    done = compare(options(path, tmp_path, only=only))
    assert done.failed == {}
    trainable = {"lora": 20480} if only else {"lora": 20480, "p-adapter": 52656}
    assert {run.method: run.parameters["trainable"] for run in done.results.records} == trainable
    assert len(done.results.records) == len(trainable)
    assert {(run.seed, run.steps, len(run.items)) for run in done.results.records} == {(5, 2, 8)}
    assert len({run.rows_digest for run in done.results.records}) == 1
    assert all(run.adapter_bytes > 4 * run.parameters["trainable"] for run in done.results.records)
    assert "vqa" in done.results.base_scores
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
