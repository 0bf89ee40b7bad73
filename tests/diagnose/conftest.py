from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A p-adapter run of one step on a model with one decoder layer, and the folder of its data."""
    from tiny_world import short_run, write_data, write_model

    from padapter.training import train

    root = tmp_path_factory.mktemp("diagnose")
    model, data = write_model(root / "model", layers=1), write_data(root / "data", "vqa")
    folder = root / "run & <b>"
    train(short_run(model, data, output=str(folder), max_steps=1, save_every="never", learning_rate=0.1))
    return folder, data
