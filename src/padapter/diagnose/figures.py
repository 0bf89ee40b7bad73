"""Figures of a diagnosis, as matplotlib figures; the page draws the same ones in its own colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from padapter.diagnose.embedding import embed
from padapter.diagnose.graphs import OFFSET_LABELS, TENTHS, Array
from padapter.diagnose.results import STATES, Diagnosis, Layer, State, Weights
from padapter.errors import UserError
from padapter.pages.svg import LIGHT, Palette, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches; 72 units of the SVG each, about as many pixels as a column of the page has.
WIDE, NARROW = 7.2, 4.3
_ROW = 0.32


def figure_tsne(
    layer: Layer, *, head: int | None = None, most: int | None = None, seed: int = 0, palette: Palette = LIGHT
) -> Figure:
    """Query and value nodes of a layer in one map, before and after adaptation.

    Args:
        layer: with sampled nodes.
        head: one head's features; None for all heads together.
        most: at most this many query nodes, and value nodes, of what was sampled; None for all.
        seed: of the optimisation.
        palette: colours.

    Raises:
        UserError: see `padapter.diagnose.embedding.embed`.
    """
    places = embed(layer, head=head, most=most, seed=seed)
    states = [state for state in STATES if state in places.query]
    with style(palette):
        figure = _figure(WIDE if len(states) > 1 else NARROW, 3.5)
        panels = figure.subplots(1, len(states), sharex=True, sharey=True, squeeze=False)[0]
        for axes, state in zip(panels, states, strict=True):
            for kind, marker, paint in (("value", "^", palette.series[1]), ("query", "o", palette.series[0])):
                x, y = getattr(places, kind)[state].T
                axes.plot(
                    x, y, marker, color=paint, markersize=3.4, alpha=0.75, markeredgewidth=0, label=f"{kind} nodes"
                )
            axes.set_title(state, color=palette.ink)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(True)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, frameon=False, markerscale=1.8)
    return figure


def figure_p_mu(diagnosis: Diagnosis, *, palette: Palette = LIGHT) -> Figure:
    """Trained p and mu of every layer, or head, and where they started.

    Raises:
        UserError: no layer has them.
    """
    layers = [layer for layer in diagnosis.layers if layer.exponents]
    if not layers:
        raise UserError("no layer of this model has p or mu.")
    names = [name for name in ("p", "mu") if any(name in layer.exponents for layer in layers)]
    with style(palette):
        figure = _figure(WIDE, 0.95 + _ROW * len(layers))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for place, layer in enumerate(layers):
                exponent = layer.exponents.get(name)
                if exponent is None:
                    continue
                for value in exponent.value:
                    axes.plot([exponent.start, value], [place, place], color=palette.grid, linewidth=1.4, zorder=1)
                axes.plot([exponent.start], [place], "|", color=palette.muted, markersize=11, markeredgewidth=1.6)
                clamped = (
                    np.zeros(len(exponent.value), bool)
                    if exponent.stored is None
                    else exponent.stored != exponent.value
                )
                for at_limit, marker in ((False, "o"), (True, "D")):
                    values = exponent.value[clamped == at_limit]
                    axes.plot(
                        values, [place] * len(values), marker, color=palette.series[0], markersize=7, **_edge(palette)
                    )
            if name == "p":
                axes.axvline(2, color=palette.muted, linewidth=1.0, linestyle=(0, (4, 3)))
            axes.set_xlabel(name)
            axes.margins(x=0.1)
            axes.locator_params(axis="x", nbins=6)
        _layers_on(panels[0], [layer.label for layer in layers], palette)
        keys = [_key("|", palette.muted, "start", 11), _key("o", palette.series[0], "trained", 7)]
        if any(it.stored is not None for layer in layers for it in layer.exponents.values()):
            keys.append(_key("D", palette.series[0], "trained, at its limit", 7))
        figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False)
    return figure


def figure_heterophily(diagnosis: Diagnosis, *, palette: Palette = LIGHT) -> Figure:
    """How unlike the nodes are that attention joins, in every layer, beside weights dealt at random."""
    series = [
        ("before", "o", 0, lambda layer: (layer.before, layer.before.plain)),
        ("after, plain", "s", 1, lambda layer: _after(layer, "plain")),
        ("after, calibrated", "D", 2, lambda layer: _after(layer, "calibrated")),
    ]
    with style(palette):
        figure = _figure(WIDE, 0.95 + _ROW * len(diagnosis.layers))
        axes = figure.add_subplot()
        axes.axvline(0, color=palette.muted, linewidth=1.0)
        used = []
        for label, marker, index, of in series:
            paint, shown = palette.series[index], False
            for place, layer in enumerate(diagnosis.layers):
                pair = of(layer)
                if pair is not None:
                    state, weights = pair
                    value = weights.heterophily.overall - state.random.overall
                    error = 2 * weights.preference.standard_error[0]
                    height = place + 0.16 * (index - 1)
                    axes.plot([value - error, value + error], [height] * 2, color=paint, linewidth=1.4)
                    axes.plot([value], [height], marker, color=paint, markersize=6, **_edge(palette))
                    shown = True
            if shown:
                used.append(_key(marker, paint, label, 6.5))
        axes.set_xlabel("heterophily above that of random weights")
        axes.margins(x=0.08)
        _layers_on(axes, [layer.label for layer in diagnosis.layers], palette)
        figure.legend(handles=used, loc="outside lower center", ncols=3, frameon=False)
    return figure


def figure_calibration(diagnosis: Diagnosis, *, palette: Palette = LIGHT) -> Figure:
    """How far calibrated weights are from plain ones in every layer, and the entropy of both.

    Raises:
        UserError: no p-adapter is at work.
    """
    found = [
        (layer.label, state.plain, state.calibrated, state.divergence)
        for layer in diagnosis.layers
        if (state := layer.after) is not None and state.calibrated is not None and state.divergence is not None
    ]
    if not found:
        raise UserError("no p-adapter is at work in this model: there are no calibrated weights.")
    with style(palette):
        figure = _figure(WIDE, 0.95 + _ROW * len(found))
        left, right = figure.subplots(1, 2, sharey=True)
        for place, (_, plain, calibrated, divergence) in enumerate(found):
            left.barh([place], [divergence.overall], height=0.55, color=palette.series[2])
            ends = plain.entropy.overall, calibrated.entropy.overall
            right.plot(ends, [place, place], color=palette.grid, linewidth=1.4, zorder=1)
            right.plot(ends[:1], [place], "s", color=palette.series[1], markersize=6.5, **_edge(palette))
            right.plot(ends[1:], [place], "D", color=palette.series[2], markersize=6.5, **_edge(palette))
        left.set_xlabel("KL(calibrated | plain), nats")
        right.set_xlabel("entropy, nats")
        for axes in (left, right):
            axes.margins(x=0.08)
            axes.locator_params(axis="x", nbins=4)
        left.set_xlim(left=0)
        _layers_on(left, [label for label, *_ in found], palette)
        keys = [_key("s", palette.series[1], "plain", 6.5), _key("D", palette.series[2], "calibrated", 6.5)]
        figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False)
    return figure


def figure_gain(layer: Layer, *, by: str = "distance", palette: Palette = LIGHT) -> Figure:
    """Which value nodes of a layer gained weight.

    Args:
        layer: of an adapted model.
        by: "distance", tenths of the value nodes from near to far; or "offset", how many tokens lie between.
        palette: colours.

    Raises:
        UserError: there is no such change.
    """
    bars = [
        (label, paint, 100 * change)
        for label, paint, change in zip(
            ("calibration", "adaptation"), (palette.series[2], palette.apart), layer.gain(by), strict=True
        )
        if change is not None
    ]
    if not bars:
        raise UserError(f"{layer.label}: no change of weights by {by} was measured.")
    labels = OFFSET_LABELS if by == "offset" else tuple(str(tenth + 1) for tenth in range(TENTHS))
    kept = _there(layer, by)
    with style(palette):
        figure = _figure(NARROW, 2.7)
        axes = figure.add_subplot()
        places = np.arange(int(kept.sum()))
        width = 0.8 / len(bars)
        for index, (label, paint, change) in enumerate(bars):
            axes.bar(
                places + (index - (len(bars) - 1) / 2) * width, change[kept], width * 0.92, color=paint, label=label
            )
        axes.axhline(0, color=palette.muted, linewidth=1.0)
        axes.set_xticks(places, [label for label, keep in zip(labels, kept, strict=True) if keep])
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("tokens between query and value" if by == "offset" else "tenth of the value nodes, near to far")
        axes.set_ylabel("change of weight, points")
        axes.locator_params(axis="y", nbins=5)
        axes.legend(loc="best", frameon=False, fontsize=9.5)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Numbers at the ends of two axes beside each other must not read as one.
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.08))


def _edge(palette: Palette) -> dict[str, Any]:
    return {"markeredgecolor": palette.surface, "markeredgewidth": 0.6}


def _key(marker: str, paint: str, label: str, size: float) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], marker=marker, color=paint, linestyle="none", label=label, markersize=size, markeredgewidth=1.4
    )


def _layers_on(axes: Axes, labels: Sequence[str], palette: Palette) -> None:
    """Layers from top to bottom on the vertical axis."""
    axes.set_yticks(range(len(labels)), labels, color=palette.ink)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    for each in axes.figure.axes:
        each.grid(axis="y", visible=False)
        each.spines["left"].set_visible(False)


def _after(layer: Layer, kind: str) -> tuple[State, Weights] | None:
    state: State | None = layer.after
    weights = None if state is None else getattr(state, kind)
    return None if state is None or weights is None else (state, weights)


def _there(layer: Layer, by: str) -> Any:
    """Groups that any weight has been in: (groups,)."""
    found: list[Array] = []
    for state in (layer.before, layer.after):
        for weights in () if state is None else (state.plain, state.effective):
            statistic = getattr(weights, f"by_{by}")
            if statistic is not None:
                found.append(statistic.overall)
    return np.max(found, axis=0) > 0
