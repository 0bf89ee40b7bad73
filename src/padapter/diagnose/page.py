"""The diagnosis as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from padapter.architectures import UNIONS
from padapter.diagnose import figures
from padapter.diagnose.embedding import LEAST
from padapter.diagnose.results import Diagnosis, Exponent, Layer
from padapter.diagnose.streams import Statistic
from padapter.pages import render_page
from padapter.pages.svg import PAGE, style, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure: heading and SVG."""

    label: str
    svg: str


@dataclass(frozen=True)
class Section:
    """Figures under one heading.

    Attributes:
        name: anchor.
        title: heading.
        question: what it answers.
        reading: how to read a figure, in one sentence.
        drawings: the figures.
        wide: whether they need half the page each.
    """

    name: str
    title: str
    question: str
    reading: str
    drawings: list[Drawing]
    wide: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the table: the layer, and its cells, empty where there is nothing."""

    label: str
    cells: list[str]


#: Columns of the table: heading over several columns, and heading.
HEADS = (
    ("", "p"), ("", "mu"),
    ("Heterophily", "before"), ("Heterophily", "after"), ("Heterophily", "calibrated"), ("Heterophily", "by chance"),
    ("Entropy, nats", "before"), ("Entropy, nats", "after"), ("Entropy, nats", "calibrated"),
    ("Calibration", "KL, nats"), ("Calibration", "own share"),
)  # fmt: skip


def render(found: Diagnosis) -> str:
    """The whole page."""
    return render_page(
        __package__,
        page=found,
        headlines=headlines(found),
        heads=HEADS,
        groups=[(group, len(list(heads))) for group, heads in groupby(HEADS, key=lambda head: head[0])],
        lines=[_line(layer) for layer in found.layers],
        sections=[section for section in _sections(found) if section.drawings],
    )


def headlines(found: Diagnosis) -> list[str]:
    """What stands out, in sentences."""
    sentences = []
    calibrated = [
        (it, it.after.divergence) for it in found.layers if it.after is not None and it.after.divergence is not None
    ]
    if calibrated:
        sizes = [float(divergence.overall) for _, divergence in calibrated]
        most = calibrated[int(np.argmax(sizes))][0]
        sentences.append(
            f"Calibration changes the attention weights by {np.mean(sizes):.3f} nats in the mean over {len(sizes)} "
            f"layers, most in {most.label} ({max(sizes):.3f})."
        )
        nearer = sum(_towards(layer) < 0 for layer, _ in calibrated)
        sentences.append(
            f"It moves weight towards nearer nodes in {nearer} of {len(calibrated)} layers, and towards more distant "
            f"ones in {sum(_towards(layer) > 0 for layer, _ in calibrated)}."
        )
    limits = [name for layer in found.layers for name, it in layer.exponents.items() if it.stored is not None]
    for name, limit in (("p", 1), ("mu", 0)):
        if name in limits:
            count = limits.count(name)
            sentences.append(
                f"{name} went below {limit} in training and counts as {limit} in {count} of {len(found.layers)} layers."
            )
    sides = [_side(layer.before.plain.preference) for layer in found.layers]
    sentences.append(
        f"Before adaptation, attention prefers nodes unlike the query in {sides.count(1)} of {len(sides)} layers and "
        f"alike ones in {sides.count(-1)}; in {sides.count(0)} it is within two standard errors of chance."
    )
    return sentences


def _side(preference: Statistic) -> int:
    """1 above, -1 below zero, 0 if within two standard errors."""
    mean, error = float(preference.mean[0]), float(preference.standard_error[0])
    return 0 if not abs(mean) > 2 * error else int(np.sign(mean))


def _towards(layer: Layer) -> float:
    """How far calibration moves the centre of the weight, in tenths; below zero towards nearer nodes."""
    calibration, _ = layer.gain()
    return 0.0 if calibration is None else float(calibration @ np.arange(len(calibration)))


def _line(layer: Layer) -> Line:
    before, after = layer.before, layer.after
    calibrated = None if after is None else after.calibrated
    cells = [
        *(_exponent(layer.exponents.get(name)) for name in ("p", "mu")),
        _number(before.plain.heterophily),
        _number(None if after is None else after.plain.heterophily),
        _number(None if calibrated is None else calibrated.heterophily),
        _number(before.random) if after is None else f"{_number(before.random)} → {_number(after.random)}",
        _number(before.plain.entropy, 2),
        _number(None if after is None else after.plain.entropy, 2),
        _number(None if calibrated is None else calibrated.entropy, 2),
        _number(None if after is None else after.divergence),
        _number(None if after is None else after.own),
    ]
    return Line(layer.label, cells)


def _number(statistic: Statistic | None, digits: int = 3) -> str:
    if statistic is None or np.isnan(statistic.overall):
        return ""
    return f"{statistic.overall:.{digits}f}"


def _exponent(exponent: Exponent | None) -> str:
    """``start → value``; the least and the greatest of several heads."""
    if exponent is None:
        return ""
    low, high = exponent.value.min(), exponent.value.max()
    value = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return f"{exponent.start:.3g} → {value}" if exponent.trained else f"{value} (fixed)"


def _sections(found: Diagnosis) -> Iterator[Section]:
    layers = found.layers
    adapted = [layer for layer in layers if layer.after is not None]
    calibrated = [layer for layer in adapted if layer.after is not None and layer.after.calibrated is not None]
    overview = []
    if any(layer.exponents for layer in layers):
        overview.append(_draw("p-mu", "p and mu", partial(figures.figure_p_mu, found, palette=PAGE)))
    yield Section(
        "exponents",
        "What was learnt about attention",
        "p below 2 lets a query listen more to near nodes, p above 2 to distant ones, p = 2 leaves attention as it is; "
        "mu is the weight of the query's own features.",
        "A dot is the trained value, the grey tick where it started; the dashed line is p = 2.",
        overview,
        wide=True,
    )
    yield Section(
        "heterophily",
        "Does attention join unlike nodes?",
        "Heterophily is one minus the cosine between query and value node, weighted by attention.",
        "Right of the line, attention prefers value nodes less like the query than chance would; left of it, more "
        "alike ones; a whisker is two standard errors over texts.",
        [_draw("unlike", "Heterophily against chance", partial(figures.figure_heterophily, found, palette=PAGE))],
        wide=True,
    )
    yield Section(
        "calibration",
        "How much does calibration change the weights?",
        "The Kullback-Leibler divergence compares calibrated with plain weights of the same query in the adapted "
        "model; the query's own share is left out of both.",
        "A longer bar is a greater change; a diamond right of its square means that calibration spreads the weight "
        "over more nodes.",
        [_draw("kl", "Change and spread", partial(figures.figure_calibration, found, palette=PAGE))]
        if calibrated
        else [],
        wide=True,
    )
    yield Section(
        "distance",
        "Which distances gained weight?",
        "For every query the value nodes are sorted by distance into ten groups of equal size. Calibration: calibrated "
        "minus plain weights of the adapted model. Adaptation: the weights it uses minus those before.",
        "A bar above the line means that nodes at this distance are listened to more, in percentage points of the "
        "query's weight.",
        [
            _draw(f"near-{number}", layer.label, partial(figures.figure_gain, layer, palette=PAGE))
            for number, layer in enumerate(adapted)
        ],
    )
    yield Section(
        "offset",
        "Which places in the text gained weight?",
        "The same changes by the number of tokens between query and value, in self-attention.",
        "A bar at 1 is about the neighbouring token, a bar at 0 about the token itself.",
        [
            _draw(
                f"offset-{number}",
                layer.label,
                partial(figures.figure_gain, layer, by="offset", palette=PAGE),
            )
            for number, layer in enumerate(adapted)
            if layer.part in UNIONS["language"] and any(change is not None for change in layer.gain("offset"))
        ],
    )
    yield Section(
        "maps",
        "Where do query and value nodes lie?",
        "t-SNE puts tokens with near features close together. Before and after share one map, with the same tokens.",
        "Two separate clouds are query and value nodes in different regions; how far apart clouds lie, and how big "
        "they are, means little.",
        [
            _draw(
                f"map-{number}",
                layer.label,
                partial(figures.figure_tsne, layer, seed=found.seed, palette=PAGE),
            )
            for number, layer in enumerate(layers)
            if _has_map(layer)
        ],
        wide=True,
    )


def _has_map(layer: Layer) -> bool:
    points = layer.before.points
    return points is not None and len(points.query) + len(points.value) >= LEAST


def _draw(name: str, label: str, make: Callable[[], Figure]) -> Drawing:
    figure = make()
    with style(PAGE):
        return Drawing(label, to_svg(figure, name, label, label))
