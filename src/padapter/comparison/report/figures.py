"""The figures of a report, one small drawing for every benchmark so that they fit a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from padapter.comparison.records import MethodEntry, RunRecord
from padapter.comparison.report import numbers
from padapter.comparison.report.analysis import Analysis, Pair
from padapter.comparison.report.tables import baseline_entry, column_labels
from padapter.pages.svg import APART, COLOURS, GRID, INK, MUTED, SURFACE, colour, style, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; 72 units of the SVG each, about as many pixels as a column of the page has.
WIDTH, HEIGHT = 4.3, 2.9
# matplotlib's names; the page draws the same shapes in its legend.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_EDGE: dict[str, Any] = {"markeredgecolor": SURFACE, "markeredgewidth": 0.6}
# A curve with more points is averaged over neighbouring ones.
POINTS = 150


@dataclass(frozen=True)
class Look:
    """How a method is drawn: index of its colour (-1: grey), marker and dashes."""

    colour: int
    marker: int
    dash: int

    @property
    def paint(self) -> str:
        """The colour to draw with."""
        return APART if self.colour < 0 else colour(self.colour)


@dataclass(frozen=True)
class Drawing:
    """A figure: heading and SVG."""

    label: str
    svg: str


def looks(methods: Sequence[MethodEntry]) -> dict[str, Look]:
    """Colours for the methods that can be best, grey for those apart; neighbours differ in marker and dashes too."""
    found = {}
    for apart in (False, True):
        for index, method in enumerate(each for each in methods if each.apart == apart):
            turn = index + index // COLOURS  # where colours begin again, markers and dashes have moved on by one
            marker = (-1 - index if apart else turn) % len(MARKERS)
            found[method.name] = Look(-1 if apart else index % COLOURS, marker, turn % len(DASHES))
    return found


def forest(analysis: Analysis) -> list[Drawing]:
    """Differences to the baseline with their intervals, a drawing for every column of the table."""
    baseline = baseline_entry(analysis)
    if baseline is None:
        return []
    drawings = []
    for index, column in enumerate(analysis.columns):
        rows = [
            (method, pair)
            for method in analysis.results.methods
            if method.name != baseline.name
            and isinstance(pair := analysis.pair(method.name, baseline.name, column), Pair)
        ]
        if rows:
            drawings.append(_forest(analysis, f"difference-{index}", column, baseline, rows))
    return drawings


def scatter(analysis: Analysis) -> list[Drawing]:
    """Score against trainable parameters, a drawing for every benchmark."""
    drawings = []
    for index, benchmark in enumerate(analysis.benchmarks):
        points = [method for method in analysis.results.methods if analysis.cells[method.name, benchmark]]
        if points:
            drawings.append(_scatter(analysis, f"parameters-{index}", benchmark, points))
    return drawings


def loss_curves(analysis: Analysis) -> list[Drawing]:
    """Training loss against the step, a drawing for every benchmark."""
    return _curves(analysis, "loss", "training loss", lambda run: run.curve)


def score_curves(analysis: Analysis) -> list[Drawing]:
    """Validation score against the step, where runs were scored during training."""
    return _curves(analysis, "score", "validation score, %", lambda run: [[s, 100 * v] for s, v in run.scores])


def _figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _forest(
    analysis: Analysis, name: str, column: str, baseline: MethodEntry, rows: list[tuple[MethodEntry, Pair]]
) -> Drawing:
    look, label, words = looks(analysis.results.methods), column_labels(analysis)[column], []
    with style():
        figure, axes = _figure(0.7 + 0.33 * len(rows))
        axes.axvline(0, color=MUTED, linewidth=1.0)
        for place, (method, pair) in enumerate(rows):
            found, paint = pair.difference, look[method.name].paint
            ends = None if found.low is None or found.high is None else (100 * found.low, 100 * found.high)
            if ends is not None:
                axes.plot(ends, [place, place], color=paint, linewidth=2.2, solid_capstyle="round")
            marker = MARKERS[look[method.name].marker]
            axes.plot([100 * found.mean], [place], marker=marker, color=paint, markersize=8, **_EDGE)
            words.append(f"{method.label}: {numbers.difference_of(found)}")
        axes.set_yticks(range(len(rows)), [_short(method.label) for method, _ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"points above {_short(baseline.label)}")
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=6)
        svg = to_svg(figure, name, f"{label}: differences to {baseline.label}", "; ".join(words))
    return Drawing(label, svg)


def _scatter(analysis: Analysis, name: str, benchmark: str, points: list[MethodEntry]) -> Drawing:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    look, label, words, scores = looks(analysis.results.methods), column_labels(analysis)[benchmark], [], []
    with style():
        figure, axes = _figure()
        axes.set_xscale("log")
        for method in points:
            spread = analysis.score(method.name, benchmark)
            assert spread is not None  # a point has runs
            trainable = median(run.parameters["trainable"] for run in analysis.cells[method.name, benchmark])
            mean, std = 100 * spread.mean, 100 * (spread.std or 0)
            scores += [mean - std, mean + std]
            axes.errorbar(
                [max(trainable, 1)],
                [mean],
                yerr=[std] if std else None,
                color=look[method.name].paint,
                marker=MARKERS[look[method.name].marker],
                markersize=9,
                **_EDGE,
                elinewidth=1.6,
            )
            words.append(f"{method.label}: {mean:.2f} with {trainable:,.0f} parameters")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.6, high * 1.6)
        base = analysis.base_score(benchmark)
        if base is not None and 100 * base >= min(scores) - (max(scores) - min(scores)):
            axes.axhline(100 * base, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
            axes.annotate(
                "not adapted", (1, 100 * base), xycoords=("axes fraction", "data"), color=MUTED, ha="right", va="bottom"
            )
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("trainable parameters")
        axes.set_ylabel("score, %")
        svg = to_svg(figure, name, f"{label}: score against trainable parameters", "; ".join(words))
    return Drawing(label, svg)


def _curves(analysis: Analysis, name: str, what: str, curve_of: Any) -> list[Drawing]:
    drawings = []
    for index, entry in enumerate(analysis.results.benchmarks):
        lines = {
            method.name: points
            for method in analysis.results.methods
            if (points := _over_seeds([curve_of(run) for run in analysis.cells[method.name, entry.name]]))
        }
        if lines:
            drawings.append(_curve_drawing(analysis, f"{name}-{index}", entry.label, what, lines))
    return drawings


def _curve_drawing(
    analysis: Analysis, name: str, label: str, what: str, lines: dict[str, list[tuple[float, float, float, float]]]
) -> Drawing:
    look = looks(analysis.results.methods)
    labels = {method.name: method.label for method in analysis.results.methods}
    words = [f"{labels[method]}: {points[0][1]:.3g} to {points[-1][1]:.3g}" for method, points in lines.items()]
    with style():
        figure, axes = _figure()
        for method, points in lines.items():
            steps, means, lows, highs = zip(*points, strict=True)
            paint = look[method].paint
            if lows != highs:
                axes.fill_between(steps, lows, highs, color=paint, alpha=0.14, linewidth=0)
            alone = MARKERS[look[method].marker] if len(points) == 1 else ""
            axes.plot(steps, means, color=paint, linestyle=DASHES[look[method].dash], marker=alone)
        axes.set_xlabel("step")
        axes.set_ylabel(what)
        axes.margins(x=0.02)
        axes.locator_params(axis="x", nbins=6)
        axes.spines["left"].set_color(GRID)
        svg = to_svg(figure, name, f"{label}: {what} against the step", "; ".join(words))
    return Drawing(label, svg)


def _over_seeds(curves: list[list[list[float]]]) -> list[tuple[float, float, float, float]]:
    """(step, mean, least, greatest) over the seeds, at the steps that all of them have."""
    tables = [{step: value for step, value in curve if value == value} for curve in curves]
    if not tables:
        return []
    steps = sorted(set.intersection(*map(set, tables)))
    values = [[table[step] for table in tables] for step in steps]
    points = [(step, fmean(each), min(each), max(each)) for step, each in zip(steps, values, strict=True)]
    stride = -(-len(points) // POINTS)
    if stride <= 1:
        return points
    bins = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [
        (fmean(p[0] for p in b), fmean(p[1] for p in b), fmean(p[2] for p in b), fmean(p[3] for p in b)) for b in bins
    ]


def _short(label: str, limit: int = 22) -> str:
    """A label that leaves room for the drawing."""
    return label if len(label) <= limit else label[: limit - 1].rstrip() + "…"


def _short_count(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def curve_runs(runs: Sequence[RunRecord]) -> bool:
    """Whether any run has a curve longer than is drawn."""
    return any(len(run.curve) > POINTS for run in runs)
