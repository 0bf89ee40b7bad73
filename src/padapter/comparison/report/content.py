"""Everything a report holds but its figures, formatted and in order; the renderers only lay it out."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.comparison.report import sentences, tables
from padapter.comparison.report import settings as options
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.settings import Settings
from padapter.comparison.report.tables import Table


@dataclass(frozen=True)
class Content:
    """The words and tables of a report.

    Attributes:
        title: of the comparison.
        description: a paragraph, may be empty.
        headline: the result in a sentence or two.
        notices: what a reader must know before trusting the tables.
        scores: the table of scores.
        differences: to the baseline, if there is one.
        costs: of training.
        rates: one table for every benchmark whose learning rates were tuned.
        settings: options of the runs.
        provenances: how many runs, and their versions and hardware.
        runs: how many are finished.
        expected: how many there will be.
    """

    title: str
    description: str
    headline: str
    notices: tuple[str, ...]
    scores: Table
    differences: Table | None
    costs: Table
    rates: tuple[Table, ...]
    settings: Settings
    provenances: tuple[tuple[int, list[tuple[str, str]]], ...]
    runs: int
    expected: int

    @property
    def main_tables(self) -> tuple[Table, ...]:
        """Scores, differences and costs."""
        return tuple(table for table in (self.scores, self.differences, self.costs) if table is not None)


def build_content(analysis: Analysis) -> Content:
    """Write down all words and numbers of a report."""
    return Content(
        title=analysis.results.title,
        description=analysis.results.description,
        headline=sentences.headline(analysis),
        notices=tuple(sentences.notices(analysis)),
        scores=tables.score_table(analysis),
        differences=tables.difference_table(analysis),
        costs=tables.cost_table(analysis),
        rates=tuple(tables.rate_tables(analysis)),
        settings=options.settings(analysis),
        provenances=tuple(options.provenances(analysis)),
        runs=len(analysis.runs),
        expected=analysis.expected,
    )
