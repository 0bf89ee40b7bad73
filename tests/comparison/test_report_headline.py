"""The sentence at the top claims what the intervals allow."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from report_forms import Page
from synthetic import BENCHMARKS, METHODS, make_results, make_run

from padapter.comparison.report import sentences
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.content import build_content


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
