"""The diagnosis as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from padapter.diagnose.results import Diagnosis, Exponent, Layer
from padapter.diagnose.sections import Drawn, sections
from padapter.diagnose.streams import Statistic
from padapter.pages import render_page


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


def render(found: Diagnosis, *, heads: Collection[str] = (), drawn: Drawn = lambda: None) -> str:
    """The whole page.

    Args:
        found: what it shows.
        heads: names of the layers that get a map of each head too.
        drawn: called after each map.
    """
    return render_page(
        __package__,
        page=found,
        adapted=any(layer.after is not None for layer in found.layers),
        calibrated=any(layer.after is not None and layer.after.calibrated is not None for layer in found.layers),
        headlines=headlines(found),
        heads=HEADS,
        groups=[(group, len(list(heads))) for group, heads in groupby(HEADS, key=lambda head: head[0])],
        lines=[_line(layer) for layer in found.layers],
        sections=sections(found, heads, drawn),
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
            f"Calibration changes the attention weights by {np.mean(sizes):.3f} nats (KL divergence; 0 is no change) "
            f"in the mean over {len(sizes)} layers, most in {most.label} ({max(sizes):.3f})."
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
