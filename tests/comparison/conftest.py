"""A report that many tests read."""

from __future__ import annotations

import pytest
from report_forms import written
from synthetic import make_results


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    results = make_results()
    return results, written(results, tmp_path_factory.mktemp("report"))
