"""Fixtures of the tests that make short runs, on the command line and from Python."""

from __future__ import annotations

import pytest
from tiny_world import short_run, write_data, write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Data folders by task."""
    root = tmp_path_factory.mktemp("data")
    return {task: write_data(root / task, task) for task in ("vqa", "entailment", "caption")}


@pytest.fixture
def options(model, data, tmp_path):
    """Makes options of a short run in `tmp_path / "run"`; keywords win."""

    def make(**changes):
        settings = {"output": str(tmp_path / "run"), **changes}
        return short_run(settings.pop("model", model), data[changes.get("task", "vqa")], **settings)

    return make
