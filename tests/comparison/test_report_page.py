"""The HTML page: valid, harmless, accessible, the same every time; and its figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_forms import NASTY, Page, csv_rows, written
from synthetic import BENCHMARKS, METHODS, make_results

from padapter.comparison.records import MethodEntry
from padapter.comparison.report import figures
from padapter.pages.svg import style


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
