"""The card of the built-in model quotes the scores that ship beside it."""

from __future__ import annotations

import json

import pytest

from padapter.evaluation import evaluate_source
from padapter.models import builtin_path
from padapter.options import EvalOptions
from padapter.worlds import DOMAINS


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_the_card_says_what_was_measured(domain):
    folder = builtin_path("shapes-blip")
    card = (folder / "README.md").read_text(encoding="utf-8")
    scores = {
        row["task"]: row["metrics"]
        for row in json.loads((folder / "scores.json").read_text())
        if row["domain"] == domain
    }
    line = next(line for line in card.splitlines() if line.startswith(f"| `{domain}` |"))
    expected = (
        f"| {scores['vqa']['accuracy']:.3f} | {scores['entailment']['accuracy']:.3f} | "
        f"{scores['caption']['cider']:.2f} / {scores['caption']['bleu_4']:.3f} |"
    )
    assert line.endswith(expected)


def test_the_shipped_weights_still_do_it():
    options = EvalOptions(
        model="shapes-blip", task="vqa", data="shapes:source", split="test", limit=128, num_beams=1, quiet=True
    )
    assert evaluate_source(options)["scores"]["metrics"]["accuracy"] > 0.85


def test_it_is_a_good_student():
    rows = json.loads((builtin_path("shapes-blip") / "scores.json").read_text())
    accuracy = {row["domain"]: row["metrics"]["accuracy"] for row in rows if row["task"] == "vqa"}
    assert accuracy["source"] >= 0.9
    assert accuracy["new-questions"] < 0.5 > accuracy["new-pictures"]
