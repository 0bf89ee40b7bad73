"""What differs between the runs beside the method is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_forms import Page, words, written
from synthetic import BENCHMARKS, METHODS, make_results

from padapter.comparison.report import sentences
from padapter.comparison.report.analysis import Analysis, Pair, Unpaired
from padapter.comparison.report.content import build_content


def test_settings_are_sorted_by_what_they_depend_on(report):
    results, _ = report
    content = build_content(Analysis(results))
    names = {table.title: [row.label for row in table.rows] for table in content.settings.tables}
    assert "batch_size" in names["Shared by all runs"]
    assert {"method", "method_options.rank"} <= set(names["By method"])
    assert names["By benchmark"] == ["task"]
    assert content.settings.by_seed == ("seed",)


def test_machines_that_differ_are_told():
    results = make_results(tuned=False)
    assert not [text for text in sentences.notices(Analysis(results)) if "machines" in text]
    other = replace(results.records[0], provenance={"hardware": {"processor": "another"}})
    analysis = Analysis(replace(results, records=(other, *results.records[1:])))
    assert [text for text in sentences.notices(analysis) if text.startswith("Runs on 2 different machines")]
    assert [runs for runs, _ in build_content(analysis).provenances] == [53, 1]


def changed(results, method, benchmark=None, **options):
    """The results with other options in the runs of a method."""
    records = [
        replace(run, options={**run.options, **options})
        if run.method == method and benchmark in (None, run.benchmark)
        else run
        for run in results.records
    ]
    return replace(results, records=tuple(records))


def told(results) -> list[str]:
    return [text for text in sentences.notices(Analysis(results)) if text.startswith("Methods differ in: ")]


def test_methods_with_other_options_are_told():
    results = make_results(tuned=False)
    assert told(results) == []
    longer = changed(results, "p-adapter", max_steps=2400)
    assert told(longer) == ["Methods differ in: max_steps (p-adapter: 2400, others: 1200)."]
    beams = changed(longer, "lora", "caption", num_beams=5)
    assert told(beams) == [
        "Methods differ in: max_steps (p-adapter: 2400, others: 1200), num_beams (LoRA: 5, others: -; on Captions)."
    ]
    by_seed = replace(
        results,
        records=tuple(replace(r, options={**r.options, "batch_size": 8 + r.seed}) for r in results.records),
    )
    assert told(by_seed) == []  # the same for all methods


def test_two_methods_that_differ_are_both_named():
    results = make_results(tuned=False, methods=METHODS[1:3])
    results = changed(results, "adapter", limit_train=None)
    assert told(changed(results, "p-adapter", limit_train=100)) == [
        "Methods differ in: limit_train (p-adapter: 100, Adapter (Pfeiffer): not set)."
    ]


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": 1.0}, {"output": "x"}, {"method_options": {"rank": 3}}, {"save_every": "7"}, {"device": "cpu"}],
)
def test_what_makes_a_method_or_only_places_a_run_is_no_difference(options):
    assert told(changed(make_results(tuned=False), "lora", **options)) == []


def test_differences_stand_in_every_form(tmp_path):
    results = changed(make_results(seeds=(0,), tuned=False, benchmarks=BENCHMARKS[:1]), "lora", prompt="*{question}*")
    texts = written(results, tmp_path)
    assert "prompt (LoRA: *{question}*, others: -)" in Page(texts["html"]).text
    assert r"prompt (LoRA: \*{question}\*, others: -)" in texts["md"]


def with_versions(run, **versions):
    return replace(run, provenance={**run.provenance, "versions": {**run.provenance["versions"], **versions}})


def test_versions_that_differ_within_a_benchmark_are_told():
    results = make_results(tuned=False)

    def told_of(records):
        notices = sentences.notices(Analysis(replace(results, records=tuple(records))))
        return [text for text in notices if "versions" in text]

    assert told_of(results.records) == []
    assert told_of(with_versions(r, torch=r.benchmark) for r in results.records) == []
    assert told_of(with_versions(r, numpy=r.method) for r in results.records) == []
    one = [with_versions(results.records[0], torch="2.12.0", peft="0.19"), *results.records[1:]]
    (notice,) = told_of(one)
    assert "different versions: torch (2.12.0, 2.13.0), peft (-, 0.19);" in notice


def with_field(run, **values):
    """A copy with fields set, whether the record has them as fields or not."""
    copy = replace(run)
    for name, value in values.items():
        object.__setattr__(copy, name, value)
    return copy


def test_runs_trained_on_different_data_are_not_ranked():
    results = make_results(tuned=False)
    same = [with_field(run, train_fingerprint=f"data of {run.benchmark}") for run in results.records]
    assert Analysis(replace(results, records=tuple(same))).best("vqa")
    other = [
        with_field(run, train_fingerprint="others") if (run.method, run.benchmark) == ("lora", "vqa") else run
        for run in same
    ]
    analysis = Analysis(replace(results, records=tuple(other)))
    assert analysis.best("vqa") == analysis.best(Analysis.AVERAGE) == ()
    assert analysis.best("entailment")
    assert analysis.pair("lora", "adapter", "vqa") == Unpaired("trained on different data")
    assert isinstance(analysis.pair("prefix", "adapter", "vqa"), Pair)
    reason = "Shapes VQA: trained on different data; its scores cannot be compared and none is marked best."
    assert reason in sentences.notices(analysis)


def test_a_rate_at_which_training_diverged_is_never_the_best():
    results = make_results()
    records = tuple(
        with_field(replace(run, score=float("nan")), diverged=True)
        if (run.stage, run.method, run.learning_rate) == ("tune", "lora", 5e-4)
        else run
        for run in results.records
    )
    (table, *_) = build_content(Analysis(replace(results, records=records))).rates
    cells = {row.label: row.cells[1] for row in table.rows}
    assert (cells["LoRA"].text, cells["LoRA"].value, cells["LoRA"].mark) == ("diverged", "", "diverged")
    assert cells["p-adapter"].mark == "best"  # at the same rate, which is that of the runs in the table
    texts = words(replace(results, records=records))
    assert "| LoRA | " in texts["md"].split("### Shapes VQA")[1]
    assert texts["csv"].count(",diverged,") == 3
    assert "nan" not in texts["csv"]
