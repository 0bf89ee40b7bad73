"""The report says what the records say, in all three forms, finished or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_forms import Page, csv_rows, find, markdown_table, plain_numbers, words, written
from synthetic import BENCHMARKS, METHODS, make_results

from padapter.comparison.report import markdown, numbers, write_report
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.content import build_content
from padapter.errors import UserError


def test_three_files_and_nothing_else(tmp_path):
    paths = write_report(make_results(seeds=(0,), tuned=False, benchmarks=BENCHMARKS[:1]), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.md", "report.csv", "report.html"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.csv", "report.html", "report.md"]


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    good = make_results(seeds=(0,), tuned=False, benchmarks=BENCHMARKS[:1])
    before = written(good, tmp_path)
    bad = replace(good, records=(*good.records, replace(good.records[0], key="another")))
    with pytest.raises(UserError, match="two records"):
        write_report(bad, tmp_path)
    assert {path.suffix[1:]: path.read_text() for path in tmp_path.iterdir()} == before


def test_the_scores_are_means_and_deviations_of_the_records(report):
    results, texts = report
    rows, table = csv_rows(texts["csv"]), markdown_table(texts["md"], "Scores")
    for method in METHODS:
        for benchmark in BENCHMARKS:
            scores = [100 * run.score for run in results.cell(method.name, benchmark.name)]
            found = find(rows, "scores", method.label, benchmark.label)
            assert float(found["value"]) == pytest.approx(np.mean(scores), abs=0.0051)
            assert float(found["std"]) == pytest.approx(np.std(scores, ddof=1), abs=0.0051)
            assert found["runs"] == "3"
            shown = plain_numbers(table[method.label][benchmark.label])
            assert shown == [float(found["value"]), float(found["std"])]


def test_the_average_is_that_of_the_benchmarks(report):
    results, texts = report
    by_seed = [
        np.mean([results.cell("lora", benchmark.name)[place].score for benchmark in BENCHMARKS]) for place in range(3)
    ]
    found = find(csv_rows(texts["csv"]), "scores", "LoRA", "Avg.")
    assert float(found["value"]) == pytest.approx(100 * np.mean(by_seed), abs=0.0051)
    assert float(found["std"]) == pytest.approx(100 * np.std(by_seed, ddof=1), abs=0.0051)
    base = find(csv_rows(texts["csv"]), "scores", "Base model, not adapted", "Avg.")
    assert float(base["value"]) == pytest.approx(100 * np.mean([0.1021, 0.3331, 0.2144]), abs=0.0051)


def test_all_three_forms_show_the_same_numbers(report):
    _, texts = report
    page = Page(texts["html"]).text
    for each in csv_rows(texts["csv"]):
        if each["table"] == "scores" and each["std"]:
            assert f"{each['value']} ± {each['std']}" in page
            assert f"± {each['std']}" in texts["md"]
        if each["table"] == "differences":
            shown = numbers.difference(each["value"], each["low"], each["high"])
            assert shown in page
            assert shown in texts["md"]


def test_missing_cells_say_so(tmp_path):
    results = make_results(base_scores={})
    kept = [
        run
        for run in results.records
        if run.benchmark == "vqa" or (run.benchmark == "entailment" and run.method != "lora" and run.seed < 2)
    ]
    texts = written(replace(results, records=tuple(kept)), tmp_path)
    table, rows = markdown_table(texts["md"], "Scores"), csv_rows(texts["csv"])
    assert table["LoRA"]["Visual entailment"] == "- (0 of 3 seeds)"
    assert table["p-adapter"]["Visual entailment"].endswith("(2 of 3 seeds)")
    assert "**" not in table["p-adapter"]["Visual entailment"]  # the best of unfinished cells may change
    assert all(cells["Avg."] == "- (not finished)" for cells in table.values())
    missing = find(rows, "scores", "LoRA", "Visual entailment")
    assert (missing["value"], missing["runs"], missing["note"]) == ("", "0", "0 of 3 seeds")
    assert "So far (28 of 54 runs are finished)" in texts["md"]
    assert "on 1 of 3 benchmarks: Shapes VQA" in texts["md"]
    assert "28 of 54 runs finished" in Page(texts["html"]).text
    assert "no seed in common yet" in texts["md"]
    assert "Base model" not in texts["md"]


def test_nothing_finished_is_a_report_too(tmp_path):
    texts = written(make_results(records=()), tmp_path)
    assert "None of 54 runs is finished yet." in texts["md"]
    page = Page(texts["html"])
    assert "0 of 54 runs finished" in page.text
    assert "figure" not in {tag for tag, _ in page.tags}


def test_a_single_seed_has_no_deviation():
    texts = words(make_results(seeds=(0,), tuned=False))
    assert "±" not in texts["md"]
    assert all(not row["std"] for row in csv_rows(texts["csv"]))
    differences = markdown_table(texts["md"], "Differences to Adapter (Pfeiffer)")
    assert len(plain_numbers(differences["LoRA"]["Shapes VQA"])) == 3  # rows are resampled
    assert "64 rows only" in texts["md"]
    assert "no interval: no scores per row and one seed" in differences["LoRA"]["Captions"]
    assert "One seed:" in texts["md"]


def test_costs_are_medians_of_the_runs(report):
    results, texts = report
    rows = csv_rows(texts["csv"])
    runs = results.cell("lora", "caption")
    assert find(rows, "costs", "LoRA", "Trainable parameters")["value"] == "36864"
    seconds = find(rows, "costs", "LoRA", "Seconds per step, Captions")
    assert float(seconds["value"]) == pytest.approx(np.median([run.seconds_per_step for run in runs]), rel=1e-5)
    assert seconds["runs"] == "3"
    memory = find(rows, "costs", "LoRA", "Peak memory, Captions")
    assert int(memory["value"]) == np.median([run.peak_memory_bytes for run in runs])
    table = markdown_table(texts["md"], "Costs")
    assert table["LoRA"]["Trainable parameters"] == "36,864"
    assert table["LoRA"]["On disk"] == "146 KiB"


def test_tuning_runs_stand_with_the_learning_rates_and_nowhere_else(report):
    results, texts = report
    assert "54 of 54 runs finished" in Page(texts["html"]).text
    section = markdown_table(texts["md"], "Learning rates\n\n### Shapes VQA")
    assert list(section["LoRA"]) == ["1e-4", "5e-4", "2e-3"]
    assert section["LoRA"]["5e-4"].startswith("**")
    tuned = next(r for r in results.records if (r.stage, r.method, r.learning_rate) == ("tune", "lora", 1e-4))
    assert plain_numbers(section["LoRA"]["1e-4"]) == [pytest.approx(100 * tuned.score, abs=0.0051)]
    assert "end of the grid" not in texts["md"].split("## Learning rates")[1].split("Validation score")[0]
    at_end = tuple(replace(r, learning_rate=2e-3) if r.stage == "test" else r for r in results.records)
    content = build_content(Analysis(replace(results, records=at_end)))
    assert {row.cells[2].note for row in content.rates[0].rows} == {"end of the grid"}


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("p-adapter", "p-adapter"),
        ("a_b _c_", r"a_b \_c\_"),
        ("- item", r"\- item"),
        ("# head", r"\# head"),
        ("12. x", r"12\. x"),
        ("0.5 is", "0.5 is"),
        ("a\n# b", "a # b"),
        ("---", r"\---"),
        ("<b>", r"\<b\>"),
    ],
)
def test_markdown_is_escaped_where_it_must_be(text, literal):
    assert markdown.paragraph(text) == literal


def test_names_that_a_spreadsheet_would_run_are_made_harmless():
    results = make_results(seeds=(0,), tuned=False)
    methods = (replace(METHODS[0], label="=1+1"), replace(METHODS[1], label="@x"), *METHODS[2:])
    texts = words(replace(results, methods=methods))
    rows = {row["row"] for row in csv_rows(texts["csv"])}
    assert {"'=1+1", "'@x"} <= rows
    assert not [row for row in rows if row[0] in "=+-@"]


@pytest.mark.parametrize(
    ("written_as", "number", "text"),
    [
        (numbers.per_cent, -0.00001, "0.00"),
        (numbers.per_cent, 1.337, "133.70"),
        (numbers.size, 1023, "1,023 B"),
        (numbers.size, 215_000, "210 KiB"),
        (numbers.size, 1.62 * 2**30, "1.62 GiB"),
        (numbers.significant, 0.12, "0.120"),
        (numbers.significant, 1234.5, "1,234"),
        (numbers.rate, 5e-4, "5e-4"),
        (numbers.rate, 1.25e-5, "1.25e-5"),
        (numbers.signed, "-0.31", "−0.31"),  # noqa: RUF001
        (numbers.signed, "0.00", "0.00"),
        (numbers.listed, ["a", "b", "c"], "a, b and c"),
        (numbers.listed, ["a"], "a"),
    ],
)
def test_numbers_are_written_as_people_do(written_as, number, text):
    assert written_as(number) == text
