"""What docs/results.md says is what the records say."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import results

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")


@pytest.mark.parametrize("name", results.found())
def test_reports_are_made_of_the_records_beside_them(name):
    assert (results.FOLDER / name / "report.md").read_text(encoding="utf-8") == results.report(name)


def test_so_is_the_one_with_differences_to_the_p_adapter():
    written = (results.FOLDER / "compare-shapes" / "against-p-adapter.md").read_text(encoding="utf-8")
    assert written == results.report("compare-shapes", "p-adapter")


def test_the_page_has_the_tables_of_the_reports():
    assert results.filled(PAGE) == PAGE
    assert len(results.inside_blocks(PAGE).splitlines()) > 10


def test_every_number_written_by_hand_stands_in_a_table():
    written = set(NUMBER.findall(results.outside_blocks(PAGE)))
    assert written
    assert sorted(written - set(NUMBER.findall(results.inside_blocks(PAGE))) - settings()) == []


def settings():
    """Numbers that are no results: settings in the recipes, and what is quoted as published."""
    recipes = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in results.RECIPES.values())
    return {*NUMBER.findall(recipes), "0.71", "6.39", "2312.10613"}


def test_a_sweep_has_a_row_for_every_p():
    scores = {"a[p=1.5,mu=0]": 0.5, "a[p=1.5,mu=10]": 0.25, "a[p=3,mu=0]": 0.125, "other": 1.0}
    records = [SimpleNamespace(method=name, score=score) for name, score in scores.items()]
    assert results.sweep(SimpleNamespace(records=records)).splitlines() == [
        "| a: p | mu = 0 | mu = 10 |",
        "| --: | --: | --: |",
        "| 1.5 | 50.00 | 25.00 |",
        "| 3 | 12.50 | - |",
    ]


def test_a_section_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="has no section 'Nothing'"):
        results.section("README.md", "Nothing")
