"""What differs between the runs beside the method is told."""

from __future__ import annotations

from dataclasses import replace

from synthetic import make_results

from padapter.comparison.report import sentences
from padapter.comparison.report.analysis import Analysis
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
