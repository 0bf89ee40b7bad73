"""The figures of the page, in sections: each says what it answers and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from padapter.architectures import UNIONS
from padapter.diagnose import figures
from padapter.diagnose.embedding import LEAST
from padapter.diagnose.head_maps import nodes_each
from padapter.diagnose.results import Diagnosis, Layer
from padapter.pages.svg import PAGE, style, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = Callable[[], None]


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
        folded: more figures, by what stands on the fold that hides them.
    """

    name: str
    title: str
    question: str
    reading: str
    drawings: list[Drawing]
    wide: bool = False
    folded: dict[str, list[Drawing]] = field(default_factory=dict)


def sections(found: Diagnosis, heads: Collection[str], drawn: Drawn) -> list[Section]:
    """All sections that have something to show.

    Args:
        found: what they show.
        heads: names of the layers that get a map of each head too.
        drawn: called after each map.
    """
    made = [_exponents(found), _heterophily(found), _calibration(found), _distance(found), _offset(found)]
    made.append(_maps(found, heads, drawn))
    return [section for section in made if section.drawings]


def _exponents(found: Diagnosis) -> Section:
    learnt = any(layer.exponents for layer in found.layers)
    return Section(
        "exponents",
        "What was learnt about attention",
        "p below 2 lets a query listen more to near nodes, p above 2 to distant ones, p = 2 leaves attention as it is; "
        "mu is the weight of the query's own features.",
        "A dot is the trained value, the grey tick where it started; the dashed line is p = 2.",
        [_draw("p-mu", "p and mu", partial(figures.figure_p_mu, found, palette=PAGE))] if learnt else [],
        wide=True,
    )


def _heterophily(found: Diagnosis) -> Section:
    return Section(
        "heterophily",
        "Does attention join unlike nodes?",
        "Heterophily is one minus the cosine between query and value node, weighted by attention.",
        "Right of the line, attention prefers value nodes less like the query than chance would; left of it, more "
        "alike ones; a whisker is two standard errors over texts.",
        [_draw("unlike", "Heterophily against chance", partial(figures.figure_heterophily, found, palette=PAGE))],
        wide=True,
    )


def _calibration(found: Diagnosis) -> Section:
    calibrated = any(layer.after is not None and layer.after.calibrated is not None for layer in found.layers)
    make = partial(figures.figure_calibration, found, palette=PAGE)
    return Section(
        "calibration",
        "How much does calibration change the weights?",
        "The Kullback-Leibler divergence compares calibrated with plain weights of the same query in the adapted "
        "model; the query's own share is left out of both.",
        "A longer bar is a greater change; a diamond right of its square means that calibration spreads the weight "
        "over more nodes.",
        [_draw("kl", "Change and spread", make)] if calibrated else [],
        wide=True,
    )


def _distance(found: Diagnosis) -> Section:
    return Section(
        "distance",
        "Which distances gained weight?",
        "For every query the value nodes are sorted by distance into ten groups of equal size. Calibration: calibrated "
        "minus plain weights of the adapted model. Adaptation: the weights it uses minus those before.",
        "A bar above the line means that nodes at this distance are listened to more, in percentage points of the "
        "query's weight. Scales differ from figure to figure.",
        [
            _draw(f"near-{number}", layer.label, partial(figures.figure_gain, layer, palette=PAGE))
            for number, layer in enumerate(_adapted(found))
        ],
    )


def _offset(found: Diagnosis) -> Section:
    return Section(
        "offset",
        "Which places in the text gained weight?",
        "The same changes by the number of tokens between query and value, in self-attention.",
        "A bar at 1 is about the neighbouring token, a bar at 0 about the token itself.",
        [
            _draw(f"offset-{number}", layer.label, partial(figures.figure_gain, layer, by="offset", palette=PAGE))
            for number, layer in enumerate(_adapted(found))
            if layer.part in UNIONS["language"] and any(change is not None for change in layer.gain("offset"))
        ],
    )


def _maps(found: Diagnosis, heads: Collection[str], drawn: Drawn) -> Section:
    def draw(name: str, layer: Layer, label: str, head: int | None = None, most: int | None = None) -> Drawing:
        make = partial(figures.figure_tsne, layer, head=head, most=most, seed=found.seed, palette=PAGE)
        made = _draw(name, label, make, label if head is None else f"{layer.label}, {label}")
        drawn()
        return made

    mapped = [(number, layer) for number, layer in enumerate(found.layers) if has_map(layer)]
    chosen = [(number, layer) for number, layer in mapped if layer.name in heads]
    most = nodes_each([layer for _, layer in chosen])
    return Section(
        "maps",
        "Where do query and value nodes lie?",
        "t-SNE puts tokens with near features close together. Before and after share one map, with the same tokens."
        + " Maps of single heads are below those of all heads together." * bool(chosen),
        "Two separate clouds are query and value nodes in different regions; how far apart clouds lie, and how big "
        "they are, means little.",
        [draw(f"map-{number}", layer, layer.label) for number, layer in mapped],
        wide=True,
        folded={
            f"{layer.label}, head by head": [
                draw(f"map-{number}-{head}", layer, f"head {head}", head, most) for head in range(layer.heads)
            ]
            for number, layer in chosen
        },
    )


def has_map(layer: Layer) -> bool:
    """Whether enough nodes of a layer were sampled."""
    points = layer.before.points
    return points is not None and len(points.query) + len(points.value) >= LEAST


def _adapted(found: Diagnosis) -> list[Layer]:
    return [layer for layer in found.layers if layer.after is not None]


def _draw(name: str, label: str, make: Callable[[], Figure], title: str | None = None) -> Drawing:
    figure = make()
    with style(PAGE):
        return Drawing(label, to_svg(figure, name, title or label, title or label))
