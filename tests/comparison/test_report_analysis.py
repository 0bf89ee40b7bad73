"""Means, the best of every column and paired differences are those of the records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_forms import Page, markdown_table, words
from synthetic import BENCHMARKS, METHODS, make_results, make_run

from padapter.comparison.plan import Job
from padapter.comparison.report.analysis import Analysis, Pair, Unpaired, record_file
from padapter.comparison.statistics import Difference, difference_by_rows, difference_by_seeds
from padapter.errors import UserError


def test_differences_are_those_of_the_arrays(report):
    results, _ = report
    analysis = Analysis(results)
    for benchmark, compute in (("vqa", difference_by_rows), ("caption", difference_by_seeds)):
        arrays = [
            [run.items or run.score for run in results.cell(method, benchmark)] for method in ("p-adapter", "adapter")
        ]
        expected = compute(*arrays)
        found = analysis.pair("p-adapter", "adapter", benchmark)
        assert isinstance(found, Pair)
        assert found.difference.mean == pytest.approx(expected.mean)
        width = expected.high - expected.low
        assert found.difference.low == pytest.approx(expected.low, abs=0.05 * width)
        assert found.difference.high == pytest.approx(expected.high, abs=0.05 * width)
        assert (found.difference.seeds, found.difference.rows) == (expected.seeds, expected.rows)


def test_the_average_difference_is_narrower_than_its_parts_would_add_up_to(report):
    results, _ = report
    analysis = Analysis(replace(results, benchmarks=BENCHMARKS[:2]))
    parts = [analysis.pair("lora", "adapter", name).difference for name in ("vqa", "entailment")]
    whole = analysis.pair("lora", "adapter", Analysis.AVERAGE).difference
    assert whole.mean == pytest.approx(np.mean([part.mean for part in parts]))
    half = [(part.high - part.low) / 2 for part in parts]
    assert (whole.high - whole.low) / 2 == pytest.approx(np.hypot(*half) / 2, rel=0.1)
    assert whole.rows == 128


def test_the_best_is_bold_and_no_method_apart_is(report):
    results, texts = report
    table = markdown_table(texts["md"], "Scores")
    analysis = Analysis(results)
    for benchmark in BENCHMARKS:
        means = {m: analysis.score(m.name, benchmark.name).mean for m in METHODS if not m.apart}
        best = max(means, key=means.get).label
        bold = [row for row, cells in table.items() if cells[benchmark.label].startswith("**")]
        assert bold == [best]
    high = [replace(run, score=1.0, items=[]) if run.method == "full" else run for run in results.records]
    assert Analysis(replace(results, records=tuple(high))).best("vqa") == analysis.best("vqa")
    assert Page(texts["html"]).tags.count(("tbody", {"class": "apart"})) >= 1


def test_ties_share_the_first_place():
    results = make_results(benchmarks=BENCHMARKS[:1], tuned=False)
    lora = {run.seed: run for run in results.cell("p-adapter", "vqa")}
    records = [
        replace(lora[run.seed], method="lora", key=run.key) if run.method == "lora" else run for run in results.records
    ]
    results = replace(results, records=tuple(records))
    assert set(Analysis(results).best("vqa")) == {"p-adapter", "lora"}
    texts = words(results)
    bold = [row for row, cells in markdown_table(texts["md"], "Scores").items() if cells["Shapes VQA"][:2] == "**"]
    assert bold == ["p-adapter", "LoRA"]
    assert "p-adapter and LoRA share the highest mean on Shapes VQA." in texts["md"]
    assert "Avg." not in texts["md"]  # of one benchmark


@pytest.mark.parametrize(("rows", "seen"), [(300, "worse"), (400, "unknown")])
def test_marks_follow_the_interval_of_the_difference_to_the_best(rows, seen):
    """With more rows their choice matters less, here at last less than the seeds do."""
    results = make_results(rows=rows)
    analysis = Analysis(results)
    for column in ("vqa", "entailment"):
        (best,) = analysis.best(column)
        for method in METHODS[1:]:
            standing = analysis.standing(method.name, column)
            if method.name == best:
                assert standing == "best"
                continue
            pair = analysis.pair(method.name, best, column).difference
            if pair.low <= 0 <= pair.high:
                assert standing == "same"
            else:
                assert standing == ("worse" if pair.seed_variance <= pair.row_variance else "unknown")
    assert {analysis.standing(m.name, "vqa") for m in METHODS} >= {"best", seen, ""}
    assert analysis.standing("full", "vqa") == ""
    assert analysis.standing("prefix", "caption") == "unknown"  # three seeds alone prove nothing


@pytest.mark.parametrize(
    ("to_first", "to_second", "standing"),
    [((0.1, 0.2), (-0.1, 0.3), "same"), ((0.1, 0.2), (0.1, 0.3), "worse"), ((0.1, 0.2), (None, None), "unknown")],
)
def test_behind_a_shared_first_place_the_most_careful_mark_counts(monkeypatch, to_first, to_second, standing):
    analysis = Analysis(make_results(tuned=False))
    ends = {"lora": to_first, "p-adapter": to_second}
    monkeypatch.setattr(analysis, "best", lambda column: ("lora", "p-adapter"))
    pair = lambda method, leader, column: Pair(Difference(-0.15, *ends[leader], 3, 64), None)  # noqa: E731
    monkeypatch.setattr(analysis, "pair", pair)
    assert analysis.standing("prefix", "vqa") == standing


def test_columns_with_different_rules_or_rows_are_not_ranked():
    results = make_results(tuned=False)
    changed = tuple(
        replace(run, rule="another rule") if (run.method, run.benchmark) == ("lora", "vqa") else run
        for run in results.records
    )
    analysis = Analysis(replace(results, records=changed))
    assert analysis.best("vqa") == ()
    assert analysis.best(Analysis.AVERAGE) == ()
    assert analysis.pair("lora", "adapter", "vqa") == Unpaired("scored by different rules")
    moved = tuple(
        replace(run, rows_digest="other rows") if (run.method, run.benchmark) == ("lora", "vqa") else run
        for run in results.records
    )
    texts = words(replace(results, records=moved))
    assert "Shapes VQA: scored on different rows; its scores cannot be compared" in texts["md"]
    assert "**" not in "".join(cells["Shapes VQA"] for cells in markdown_table(texts["md"], "Scores").values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 0.9}, "the mean over its rows is"),
        ({"items": [0.5] * 63, "score": 0.5}, r"scores of \[63, 64\] rows"),
    ],
)
def test_records_that_contradict_themselves_are_refused(change, message):
    results = make_results(tuned=False)
    records = (replace(results.records[0], **change), *results.records[1:])
    with pytest.raises(UserError, match=message):
        Analysis(replace(results, records=records))


def test_runs_of_other_seeds_do_not_count():
    results = make_results(seeds=(0, 1))
    extra = make_run("lora", "vqa", 9)
    analysis = Analysis(replace(results, records=(*results.records, extra)))
    assert [run.seed for run in analysis.cells["lora", "vqa"]] == [0, 1]


def test_two_rows_with_the_same_options_keep_their_own_draws():
    """Their runs have one digest: it knows neither the method's name nor the benchmark's."""
    results = make_results(tuned=False)
    alike = tuple(replace(run, key=f"options {run.seed}") for run in results.records)
    for column in ("vqa", "entailment"):
        expected = Analysis(results).pair("prefix", "adapter", column).difference
        assert Analysis(replace(results, records=alike)).pair("prefix", "adapter", column).difference == expected


def test_what_seeds_and_rows_add_reaches_the_difference_and_its_average():
    analysis = Analysis(make_results(benchmarks=BENCHMARKS[:2], tuned=False))
    parts = [analysis.pair("lora", "adapter", name).difference for name in ("vqa", "entailment")]
    items = [[run.items for run in analysis.cells[method, "vqa"]] for method in ("lora", "adapter")]
    direct = difference_by_rows(*items)
    assert (parts[0].row_variance, parts[0].seed_variance) == (direct.row_variance, direct.seed_variance)
    assert direct.row_variance > 0
    whole = analysis.pair("lora", "adapter", Analysis.AVERAGE).difference
    assert whole.row_variance == pytest.approx(sum(part.row_variance for part in parts) / 4)
    assert whole.seed_variance == pytest.approx(sum(part.seed_variance for part in parts) / 4)


@pytest.mark.parametrize(
    ("change", "file"),
    [
        ({"score": 0.9}, "records/test--vqa--full--seed-0.json"),
        ({"items": [0.5] * 63, "score": 0.5}, "records/test--vqa--full--seed-0.json"),
        (None, "records/test--vqa--full--seed-0.json"),
    ],
)
def test_what_is_to_be_deleted_is_a_file_that_can_be_found(change, file):
    results = make_results(tuned=False)
    first = results.records[0]
    records = (first, *results.records) if change is None else (replace(first, **change), *results.records[1:])
    with pytest.raises(UserError, match=file) as problem:
        Analysis(replace(results, records=records))
    assert first.key not in str(problem.value)
    assert "seed-1" not in str(problem.value)  # only what is wrong


def test_the_file_of_a_tuning_run_names_its_rate_as_the_runner_does():
    run = make_run("lora", "vqa", 3, stage="tune", rate=5e-4)
    job = Job("tune", "vqa", "lora", 3, {"learning_rate": 5e-4})
    assert record_file(run) == f"records/{job.name}.json" == "records/tune--vqa--lora--lr-0.0005--seed-3.json"
