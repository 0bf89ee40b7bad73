"""The report says what the records say, in all three forms, finished or not."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic import BENCHMARKS, METHODS, make_results, make_run

from padapter.comparison.records import MethodEntry
from padapter.comparison.report import csv as csv_form
from padapter.comparison.report import figures, markdown, numbers, sentences, write_report
from padapter.comparison.report.analysis import Analysis, Pair, Unpaired
from padapter.comparison.report.content import build_content
from padapter.comparison.report.svg import style
from padapter.comparison.statistics import Difference, difference_by_rows, difference_by_seeds
from padapter.errors import UserError

VOID = {"meta", "link", "br", "hr", "img", "input"}
NASTY = 'A|B <script>alert("x")</script> & *c* $d$ `e`'


def written(results, folder) -> dict[str, str]:
    return {path.suffix[1:]: path.read_text(encoding="utf-8") for path in write_report(results, folder)}


def words(results) -> dict[str, str]:
    """The two forms that need no drawing, which is what takes the time."""
    content = build_content(Analysis(results))
    return {"md": markdown.render(content), "csv": csv_form.render(content)}


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def find(rows: list[dict[str, str]], table: str, row: str, column: str) -> dict[str, str]:
    (found,) = [each for each in rows if (each["table"], each["row"], each["column"]) == (table, row, column)]
    return found


def markdown_table(text: str, title: str) -> dict[str, dict[str, str]]:
    """The first table below a heading: row -> column -> cell, marks and all."""
    lines = text.split(f"## {title}\n", 1)[1].strip().split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = [re.sub(r" \([^)]*\)$", "", head) for head in cells[0]]
    assert all(len(line) == len(heads) for line in cells)
    return {line[0].strip("*"): dict(zip(heads[1:], line[1:], strict=True)) for line in cells[2:]}


def plain_numbers(cell: str) -> list[float]:
    return [float(word) for word in re.findall(r"[+-]?\d+\.\d+", cell.replace(numbers.MINUS, "-"))]


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> closes itself only within SVG"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = make_results()
    return results, written(results, tmp_path_factory.mktemp("report"))


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


def test_marks_follow_the_interval_of_the_difference_to_the_best():
    results = make_results(rows=400)
    analysis = Analysis(results)
    for column in ("vqa", "entailment"):
        (best,) = analysis.best(column)
        for method in METHODS[1:]:
            standing = analysis.standing(method.name, column)
            if method.name == best:
                assert standing == "best"
                continue
            pair = analysis.pair(method.name, best, column).difference
            assert standing == ("same" if pair.low <= 0 <= pair.high else "worse")
    assert {analysis.standing(m.name, "vqa") for m in METHODS} >= {"best", "worse", ""}
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


def test_settings_are_sorted_by_what_they_depend_on(report):
    results, _ = report
    content = build_content(Analysis(results))
    names = {table.title: [row.label for row in table.rows] for table in content.settings.tables}
    assert "batch_size" in names["Shared by all runs"]
    assert {"method", "method_options.rank"} <= set(names["By method"])
    assert names["By benchmark"] == ["task"]
    assert content.settings.by_seed == ("seed",)


def duel(gap: float, noise: float, *, items: bool = True, apart: bool = False, seeds: int = 3):
    """Two methods on one benchmark whose rows differ by a gap and noise of their own."""
    generator = np.random.default_rng(0)
    methods = (METHODS[1], METHODS[4]) + ((METHODS[0],) if apart else ())
    records = []
    for seed in range(seeds):
        hard = generator.normal(0.5, 0.2, 64)
        for method in methods:
            rows = hard + gap * (method.name == "p-adapter") + noise * generator.normal(size=64)
            run = make_run(method.name, "vqa", seed)
            score = float(rows.mean()) + (method.name == "full")
            kept = rows.tolist() if items and method.name != "full" else []
            records.append(replace(run, items=kept, score=score))
    return make_results(
        seeds=tuple(range(seeds)), benchmarks=BENCHMARKS[:1], methods=methods, records=tuple(records), baseline=None
    )


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (
            duel(0.1, 0.01),
            "p-adapter has the highest mean on Shapes VQA. On Shapes VQA the lead over the others is larger than "
            "noise.",
        ),
        (
            duel(0.02, 0.5),
            "LoRA has the highest mean on Shapes VQA. On Shapes VQA the lead is within noise of p-adapter.",
        ),
        (
            duel(0.1, 0.01, items=False),
            "p-adapter has the highest mean on Shapes VQA. On Shapes VQA no interval tells whether the lead is more "
            "than noise.",
        ),
        (
            duel(0.1, 0.01, apart=True),
            "Full fine-tuning apart, p-adapter has the highest mean on Shapes VQA. On Shapes VQA the lead over the "
            "others is larger than noise.",
        ),
        (duel(0.0, 0.0), "p-adapter and LoRA share the highest mean on Shapes VQA."),
        (
            replace(duel(0.1, 0.01), seeds=(0, 1, 2, 3)),
            "6 of 8 runs are finished; no benchmark can be ranked yet.",
        ),
        (
            replace(duel(0.1, 0.01), methods=METHODS[1:2]),
            "3 of 3 runs are finished; with fewer than two methods side by side there is nothing to rank.",
        ),
    ],
    ids=["clear", "noise", "unknown", "apart", "tie", "unfinished", "alone"],
)
def test_the_headline_claims_what_the_intervals_allow(results, sentence):
    assert sentences.headline(Analysis(results)) == sentence


def test_the_headline_counts_benchmarks(report):
    headline = build_content(Analysis(report[0])).headline
    assert re.match(r"Full fine-tuning apart, p-adapter has the highest mean on \d of 3 benchmarks: ", headline)
    assert headline in Page(report[1]["html"]).text


def test_machines_that_differ_are_told():
    results = make_results(tuned=False)
    assert not [text for text in sentences.notices(Analysis(results)) if "machines" in text]
    other = replace(results.records[0], provenance={"hardware": {"processor": "another"}})
    analysis = Analysis(replace(results, records=(other, *results.records[1:])))
    assert [text for text in sentences.notices(analysis) if text.startswith("Runs on 2 different machines")]
    assert [runs for runs, _ in build_content(analysis).provenances] == [53, 1]


def test_markup_in_a_recipe_stays_text(tmp_path):
    results = make_results(seeds=(0,), tuned=False, benchmarks=BENCHMARKS[:1])
    methods = tuple(replace(method, label=f"{NASTY} {method.name}") for method in METHODS)
    benchmarks = tuple(replace(benchmark, label=NASTY + benchmark.name) for benchmark in BENCHMARKS[:1])
    records = tuple(replace(run, options={NASTY: NASTY, "x": run.method}) for run in results.records)
    results = replace(
        results, title=NASTY, description="1. " + NASTY, methods=methods, benchmarks=benchmarks, records=records
    )
    texts = written(results, tmp_path)
    page = Page(texts["html"])
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script" not in texts["html"]
    assert page.text.count('A|B <script>alert("x")</script> & *c* $d$ `e`') > 10
    assert "<script" not in re.sub(r"\\<", "", texts["md"])
    assert r"1\. A\|B" in texts["md"]
    scores = [line for line in texts["md"].splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in scores[:8]}) == 1
    assert {row["row"] for row in csv_rows(texts["csv"]) if row["table"] == "scores"} > {m.label for m in methods}


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


def test_the_page_needs_nothing_but_itself(report):
    page = Page(report[1]["html"])
    assert not re.search(r"https?:|@import|//\w+\.\w", report[1]["html"])
    for tag, attributes in page.tags:
        assert tag not in {"script", "img", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    for reference in re.findall(r"url\(([^)]*)\)", report[1]["html"]):
        assert reference.startswith("#")


def test_ids_are_unique_and_every_reference_has_one(report):
    page = Page(report[1]["html"])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {value[1:] for _, attributes in page.tags if (value := attributes.get("href", "")) and value[0] == "#"}
    references |= set(re.findall(r"url\(#([^)]*)\)", report[1]["html"]))
    references |= {word for _, attributes in page.tags for word in (attributes.get("aria-labelledby") or "").split()}
    assert references
    assert references <= set(ids)


def test_the_page_is_accessible(report):
    page = Page(report[1]["html"])
    assert all(attributes.get("scope") in {"col", "row", "colgroup"} for tag, attributes in page.tags if tag == "th")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("aria-hidden") != "true"]
    assert len(drawings) == 4 + 3 + 3 + 3  # differences with the average, parameters, loss, validation score
    assert all(drawing["role"] == "img" and drawing["aria-labelledby"] for drawing in drawings)
    assert [attributes["lang"] for tag, attributes in page.tags if tag == "html"] == ["en"]
    assert [tag for tag, _ in page.tags].count("h1") == 1


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_stand_out_in_light_and_dark(report):
    css = report[1]["html"].split("<style>")[1].split("</style>")[0]
    themes = css.split("@media print")[0].split("dark)")
    least = {"ink": 7, "muted": 4.5, "accent": 4.5, "apart": 3, **{f"m{index}": 3 for index in range(8)}}
    for theme in (dict(re.findall(r"--(\w[\w-]*): (#\w{6})", part)) for part in themes):
        for name, ratio in least.items():
            for ground in ("page", "surface"):
                bright, dim = sorted((luminance(theme[name]), luminance(theme[ground])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= ratio, (name, ground)
        bright, dim = sorted((luminance(theme["warn"]), luminance(theme["warn-wash"])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5


def test_the_same_results_give_the_same_bytes_whatever_matplotlib_is_set_to(report, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert written(report[0], tmp_path) == report[1]
        assert matplotlib.rcParams["font.size"] == 30
    assert dict(matplotlib.rcParams) == before
    assert not re.search(r"20\d\d-\d\d-\d\d", report[1]["html"])
    with style():
        assert matplotlib.rcParams["svg.fonttype"] == "none"


def test_nothing_is_imported_that_is_not_needed(tmp_path):
    """No pyplot with its global state, no torch; and no matplotlib before there is something to draw."""
    code = (
        "import sys; from pathlib import Path; from padapter.comparison.report import write_report;"
        "from synthetic import BENCHMARKS, make_results; import padapter.cli.app;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules;"
        "write_report(make_results(seeds=(0,), tuned=False, benchmarks=BENCHMARKS[:1]), Path(sys.argv[1]));"
        "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["[]"], done.stderr


def test_curves_are_means_over_seeds_at_common_steps_and_thinned():
    curves = [[[1, 2.0], [2, 1.0], [3, 0.5]], [[1, 4.0], [2, float("nan")], [3, 1.5]]]
    assert figures._over_seeds(curves) == [(1, 3.0, 2.0, 4.0), (3, 1.0, 0.5, 1.5)]
    assert figures._over_seeds([]) == []
    long = figures._over_seeds([[[step, float(step)] for step in range(1000)]])
    assert len(long) <= figures.POINTS
    assert long[0][1] == pytest.approx(np.mean(range(7)))


def test_every_method_looks_different():
    methods = [MethodEntry(str(n), str(n), apart=n < 2) for n in range(12)]
    looks = figures.looks(methods)
    assert len({(look.paint, look.marker, look.dash) for look in looks.values()}) == 12
    assert looks["0"].paint == looks["1"].paint != looks["2"].paint


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
