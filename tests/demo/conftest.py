from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from run_fixtures import data, model  # noqa: F401
from tiny_world import short_run

from padapter.training import train


@pytest.fixture(scope="session")
def runs(model, data, tmp_path_factory):  # noqa: F811
    """Runs of one step by name, with large enough a rate that every adapter says something of its own."""
    root = tmp_path_factory.mktemp("runs")
    settings = {
        "first": {},
        "second": {"seed": 3},
        "low-rank": {"method": "lora"},
        "prefix": {"method": "prefix"},
        "labels": {"task": "entailment"},
    }
    made = {}

    def get(name: str) -> str:
        if name not in made:
            changes = {"learning_rate": 0.5, "max_steps": 1, "score_base": False, **settings[name]}
            task = changes.get("task", "vqa")
            made[name] = str(root / name)
            train(short_run(model, data[task], output=made[name], **changes))
        return made[name]

    return get
