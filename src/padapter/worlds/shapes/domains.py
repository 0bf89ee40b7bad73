"""The three domains: a look (what pictures are like) and a dialect (how one speaks about them)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from padapter.worlds.shapes.dialects import FANCY, PLAIN, Dialect
from padapter.worlds.shapes.scenes import Look


@dataclass(frozen=True)
class Domain:
    """A distribution of pictures and texts.

    Attributes:
        index: part of every random seed, so that domains never share a scene. Never reuse one.
        kinds: the question kinds asked, from :data:`padapter.worlds.shapes.facts.ASK`.
    """

    name: str
    index: int
    summary: str
    look: Look
    dialect: Dialect
    kinds: tuple[str, ...]


_LOOK = Look(
    shapes=("circle", "square", "triangle", "diamond", "cross"),
    colors=("red", "green", "blue", "yellow", "purple", "orange"),
    textures=("solid", "striped", "hollow"),
    count=(1, 4),
)
_KINDS = ("color", "shape", "size", "texture", "place", "at place", "count", "exists", "relation")

DOMAINS: dict[str, Domain] = {
    d.name: d
    for d in (
        Domain("source", 0, "what shapes-blip was pre-trained on", _LOOK, PLAIN, _KINDS),
        Domain(
            "new-questions",
            1,
            "the same pictures; new words, new question kinds, new answers",
            _LOOK,
            FANCY,
            (
                "color",
                "shape",
                "place",
                "count",
                "exists",
                "relation",
                "total",
                "more",
                "same",
                "half",
                "extreme",
            ),
        ),
        Domain(
            "new-pictures",
            2,
            "the same language; new shapes, colors, backgrounds, noise and crowding",
            replace(
                _LOOK,
                shapes=(*_LOOK.shapes[:2], "star", "heart", "arrow", "moon"),
                colors=("red", "blue", "black", "brown", "pink", "teal"),
                count=(3, 6),
                background="cluttered",
                noise=0.05,
            ),
            PLAIN,
            _KINDS,
        ),
    )
}
