"""The tables of a report, once: Markdown, CSV and HTML only lay them out. Numbers are formatted here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from padapter.comparison.records import MethodEntry, RunRecord
from padapter.comparison.report import numbers
from padapter.comparison.report.analysis import BEST, SAME, UNKNOWN, Analysis, Unpaired
from padapter.comparison.statistics import ENOUGH_SEEDS, FEWEST_SEEDS, Difference

DIVERGED = "diverged"
SIGNS = {SAME: "≈", UNKNOWN: "?"}
AVERAGE_LABEL = "Avg."
BASE_LABEL = "Base model, not adapted"
_TOO_FEW = (
    f"no interval, or one without 0 from too few seeds: fewer than {FEWEST_SEEDS}, or fewer than {ENOUGH_SEEDS} "
    "where there are no rows or seeds matter more than rows. A single seed with rows is judged by its rows."
)


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: for people.
        value: the same number for a program, if it is one; also the next three.
        std: standard deviation.
        low: lower end of an interval.
        high: upper end.
        unit: of all of them.
        runs: how many it was computed from.
        mark: `BEST`, `SAME`, `UNKNOWN`, `DIVERGED` or nothing.
        note: a remark in a few words, as "2 of 3 seeds".
    """

    text: str
    value: str = ""
    std: str = ""
    low: str = ""
    high: str = ""
    unit: str = ""
    runs: int | None = None
    mark: str = ""
    note: str = ""

    @property
    def sign(self) -> str:
        """The sign that stands for the mark behind the number."""
        return SIGNS.get(self.mark, "")


@dataclass(frozen=True)
class Column:
    """A column's heading.

    Attributes:
        label: what people read.
        note: a second line, may be empty.
        group: heading that it shares with its neighbours, may be empty.
    """

    label: str
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its heading, whether it stands apart, one cell for every column."""

    label: str
    cells: tuple[Cell, ...]
    apart: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: its name in the CSV.
        title: its heading.
        head: heading of the rows.
        columns: headings.
        rows: those that stand apart first.
        caption: how to read it, in sentences.
    """

    key: str
    title: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: tuple[str, ...] = field(default=())

    def has(self, *marks: str) -> bool:
        """Whether a cell carries one of the marks."""
        return any(cell.mark in marks for row in self.rows for cell in row.cells)


def score_table(analysis: Analysis) -> Table:
    """Mean ± standard deviation over seeds, in per cent."""
    columns = [Column("Trainable", "of all parameters"), *_benchmark_columns(analysis)]
    rows = []
    if analysis.results.base_scores:
        scores = [analysis.base_score(column) for column in analysis.columns]
        rows.append(Row(BASE_LABEL, (_per_cent_cell(0.0), *(_score_cell(score) for score in scores)), apart=True))
    for method in _apart_first(analysis.results.methods):
        cells = (_method_score(analysis, method, column) for column in analysis.columns)
        rows.append(Row(method.label, (_share_cell(analysis.runs_of(method.name)), *cells), method.apart))
    table = Table("scores", "Scores", "Method", tuple(columns), tuple(rows))
    return Table(table.key, table.title, table.head, table.columns, table.rows, _score_caption(analysis, table))


def difference_table(analysis: Analysis) -> Table | None:
    """Paired differences to the baseline with their intervals, in per cent; nothing without a baseline."""
    baseline = baseline_entry(analysis)
    if baseline is None:
        return None
    others = [method for method in _apart_first(analysis.results.methods) if method.name != baseline.name]
    columns: list[Column] = []
    for column, heading in zip(analysis.columns, _benchmark_columns(analysis), strict=True):
        pairs = (analysis.pair(method.name, baseline.name, column) for method in others)
        note = _resampled(pair.difference for pair in pairs if not isinstance(pair, Unpaired))
        if column == Analysis.AVERAGE and len({each.note for each in columns}) > 1:
            note = "seeds, and rows where they have scores"
        columns.append(Column(heading.label, note))
    rows = [
        Row(
            method.label,
            tuple(_difference_cell(analysis, method, baseline, column) for column in analysis.columns),
            method.apart,
        )
        for method in others
    ]
    caption = (
        f"Score minus that of {baseline.label}, in percentage points, with the 95 % bootstrap interval in brackets; "
        "paired by seed, and by row where a metric is the mean over its rows.",
        "Under each heading: what was resampled. 'Seeds only' says nothing about the choice of rows.",
        f"≈ the interval includes 0. ? {_TOO_FEW} The intervals are not corrected for how many there are.",
    )
    return Table("differences", f"Differences to {baseline.label}", "Method", tuple(columns), tuple(rows), caption)


def cost_table(analysis: Analysis) -> Table:
    """Parameters, size on disk, time per step and peak memory, measured in the runs that gave the scores."""
    columns = [Column("Trainable parameters"), Column("Share", "of all parameters"), Column("On disk")]
    for group in ("Seconds per step", "Peak memory"):
        columns += [Column(entry.label, group=group) for entry in analysis.results.benchmarks]
    rows = []
    for method in _apart_first(analysis.results.methods):
        runs = analysis.runs_of(method.name)
        cells = [_range_cell([run.parameters["trainable"] for run in runs], numbers.count), _share_cell(runs)]
        cells.append(_range_cell([run.adapter_bytes for run in runs], numbers.size, "bytes"))
        by_benchmark = [analysis.cells[method.name, benchmark] for benchmark in analysis.benchmarks]
        cells += [
            _median_cell([run.seconds_per_step for run in cell], numbers.significant, "s") for cell in by_benchmark
        ]
        cells += [_median_cell([run.peak_memory_bytes for run in cell], numbers.size, "bytes") for cell in by_benchmark]
        rows.append(Row(method.label, tuple(cells), method.apart))
    caption = (
        "Measured in the same runs as the scores: medians over the seeds of each cell "
        f"({numbers.plural(len(analysis.runs), 'run')} in all).",
        "On disk: what a run saved. Peak memory: of the process on a CPU, allocated by torch on a GPU.",
    )
    return Table("costs", "Costs", "Method", tuple(columns), tuple(rows), caption)


def rate_tables(analysis: Analysis) -> list[Table]:
    """Validation scores over the grid of learning rates, one table for every benchmark that was tuned."""
    tables = []
    for entry in analysis.results.benchmarks:
        tuned = [run for run in analysis.results.records if run.stage == "tune" and run.benchmark == entry.name]
        rates = sorted({run.learning_rate for run in tuned})
        rows = []
        for method in _apart_first(analysis.results.methods):
            grid = {
                rate: [run for run in tuned if (run.method, run.learning_rate) == (method.name, rate)] for rate in rates
            }
            if any(grid.values()):
                chosen = {run.learning_rate for run in analysis.cells[method.name, entry.name]}
                rows.append(Row(method.label, _rate_cells(grid, chosen), method.apart))
        if rows:
            caption = (
                "Validation score in per cent for every learning rate that was tried; no test row took part. "
                "Bold: the rate of the runs in the table of scores.",
                "'End of the grid': the best rate may lie beyond those that were tried. "
                "'Diverged': the training loss was no number, so the rate cannot be the best.",
            )
            columns = tuple(Column(numbers.rate(rate)) for rate in rates)
            tables.append(Table(f"learning rates, {entry.name}", entry.label, "Method", columns, tuple(rows), caption))
    return tables


def baseline_entry(analysis: Analysis) -> MethodEntry | None:
    """The method that differences are taken against."""
    return next((m for m in analysis.results.methods if m.name == analysis.results.baseline), None)


def column_labels(analysis: Analysis) -> dict[str, str]:
    """What people read over every column."""
    labels = {entry.name: entry.label for entry in analysis.results.benchmarks}
    return {**labels, Analysis.AVERAGE: AVERAGE_LABEL}


def _apart_first(methods: Sequence[MethodEntry]) -> list[MethodEntry]:
    return sorted(methods, key=lambda method: not method.apart)


def _benchmark_columns(analysis: Analysis) -> list[Column]:
    columns = []
    for entry in analysis.results.benchmarks:
        metrics = {run.metric for run in analysis.runs if run.benchmark == entry.name}
        columns.append(Column(entry.label, ", ".join(sorted(metrics))))
    return [*columns, Column(AVERAGE_LABEL, "all benchmarks")] if analysis.has_average else columns


def _score_caption(analysis: Analysis, table: Table) -> tuple[str, ...]:
    seeds = len(analysis.results.seeds)
    over = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "Scores of one seed"
    metrics = list(dict.fromkeys(run.metric for run in analysis.runs)) or ["every metric"]
    scaled = [f"{metric} \N{MULTIPLICATION SIGN} 100" for metric in metrics]
    caption = [f"{over}, in per cent ({', '.join(scaled)})."]
    if table.has(BEST):
        caption.append("Bold: the highest mean among the methods that have all seeds and do not stand apart.")
    if table.has(SAME):
        caption.append("≈ not distinguishable from it: the 95 % interval of the paired difference includes 0.")
    if table.has(UNKNOWN):
        caption.append(f"? not known: {_TOO_FEW}")
    if any(row.apart for row in table.rows):
        caption.append("The rows set apart at the top cannot be best.")
    return tuple(caption)


def _score_cell(score: float | None) -> Cell:
    if score is None:
        return Cell(numbers.MISSING)
    text = numbers.per_cent(score)
    return Cell(text, value=text, unit="%")


def _method_score(analysis: Analysis, method: MethodEntry, column: str) -> Cell:
    wanted = len(analysis.results.seeds)
    if column == Analysis.AVERAGE:
        have = wanted if analysis.is_complete(method.name, column) else 0
        note = "" if have else "not finished"
    else:
        have = len(analysis.cells[method.name, column])
        note = "" if have == wanted else f"{have} of {numbers.plural(wanted, 'seed')}"
    score = analysis.score(method.name, column)
    if score is None:
        return Cell(numbers.MISSING, unit="%", runs=have, note=note)
    mean, std = numbers.per_cent(score.mean), None if score.std is None else numbers.per_cent(score.std)
    return Cell(
        numbers.plus_minus(mean, std),
        value=mean,
        std=std or "",
        unit="%",
        runs=have,
        mark=analysis.standing(method.name, column),
        note=note,
    )


def _difference_cell(analysis: Analysis, method: MethodEntry, baseline: MethodEntry, column: str) -> Cell:
    pair = analysis.pair(method.name, baseline.name, column)
    if isinstance(pair, Unpaired):
        return Cell(numbers.MISSING, unit="points", note=pair.reason)
    found, wanted = pair.difference, len(analysis.results.seeds)
    mean = numbers.per_cent(found.mean)
    low, high = (None if end is None else numbers.per_cent(end) for end in (found.low, found.high))
    notes = [f"{found.seeds} of {wanted} seeds"] if found.seeds < wanted else []
    if low is None:
        notes.append("no interval: no scores per row" + (" and one seed" if found.seeds == 1 else ""))
    return Cell(
        numbers.difference(mean, low, high),
        value=mean,
        low=low or "",
        high=high or "",
        unit="points",
        runs=found.seeds,
        mark={True: SAME, False: "", None: UNKNOWN}[found.is_noise],
        note=", ".join(notes),
    )


def _resampled(found: Iterable[Difference]) -> str:
    """What the intervals of a column were resampled over."""
    ways = set()
    for each in found:
        if each.rows and each.seeds > 1:
            ways.add(f"seeds and {numbers.plural(each.rows, 'row')}")
        elif each.rows:
            ways.add(f"{numbers.plural(each.rows, 'row')} only")
        elif each.low is not None:
            ways.add("seeds only")
    return "; ".join(sorted(ways))


def _rate_cells(grid: dict[float, list[RunRecord]], chosen: set[float]) -> tuple[Cell, ...]:
    tried = [rate for rate, runs in grid.items() if runs]
    cells = []
    for rate, runs in grid.items():
        if not runs:
            cells.append(Cell(numbers.MISSING, unit="%"))
            continue
        if any(run.diverged for run in runs):
            cells.append(Cell(DIVERGED, unit="%", runs=len(runs), mark=DIVERGED))
            continue
        mean = numbers.per_cent(fmean(run.score for run in runs))
        end = rate in chosen and len(tried) > 1 and rate in (tried[0], tried[-1])
        cells.append(
            Cell(
                mean,
                value=mean,
                unit="%",
                runs=len(runs),
                mark=BEST if rate in chosen else "",
                note="end of the grid" if end else "",
            )
        )
    return tuple(cells)


def _per_cent_cell(fraction: float) -> Cell:
    text = numbers.per_cent(fraction)
    return Cell(f"{text} %", value=text, unit="%")


def _share_cell(runs: Sequence[RunRecord]) -> Cell:
    return _range_cell([100 * run.fraction for run in runs], lambda share: f"{share:.2f} %", "%", digits=4)


def _range_cell(values: Sequence[float], write: numbers.Writer, unit: str = "", digits: int = 0) -> Cell:
    """What should be the same in all runs: one number, or from smallest to largest where it is not."""
    if not values:
        return Cell(numbers.MISSING, unit=unit)
    low, high = min(values), max(values)
    plain = f"{median(values):.{digits}f}"
    if write(low) == write(high):
        return Cell(write(low), value=plain, unit=unit, runs=len(values))
    ends = {"low": f"{low:.{digits}f}", "high": f"{high:.{digits}f}"}
    return Cell(f"{write(low)} to {write(high)}", value=plain, unit=unit, runs=len(values), **ends)


def _median_cell(values: Sequence[float], write: numbers.Writer, unit: str) -> Cell:
    if not values:
        return Cell(numbers.MISSING, unit=unit, runs=0)
    middle = median(values)
    plain = f"{middle:.0f}" if unit == "bytes" else f"{middle:.6g}"
    return Cell(write(middle), value=plain, unit=unit, runs=len(values))
