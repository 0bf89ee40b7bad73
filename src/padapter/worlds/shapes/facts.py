"""Questions about a scene as facts: what is asked, of which things, and the true answer. No words yet.

A fact's slots and answer are *meanings* such as ``("color", "red")``; a dialect puts them into words. Every function
returns ``None`` when the scene has nothing to ask in its way, so that the caller can draw another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from padapter.worlds.shapes.scenes import PLACES, SIZES, Look, Scene, Thing

#: ("color", "red"), ("number", "2"), ("truth", "yes"), ("thing", {"color": "red", "shape": "circle"}), ...
Meaning = tuple[str, "str | Mapping[str, str]"]


@dataclass(frozen=True)
class Fact:
    """A question's kind, the meanings in its slots, its true answer and the official answer type."""

    kind: str
    slots: Mapping[str, Meaning]
    answer: Meaning
    answer_type: str


def unique_description(
    scene: Scene, thing: Thing, rng: np.random.Generator, without: str = ""
) -> dict[str, str] | None:
    """The shortest random description that fits only ``thing``, never naming the attribute ``without``."""
    order = [a for a in ("shape", "color", "size", "texture") if a != without]
    rng.shuffle(order)
    for length in range(1, len(order) + 1):
        chosen = {a: thing.attribute(a) for a in order[:length]}
        if len(scene.matching(**chosen)) == 1:
            return chosen
    return None


def _any(rng: np.random.Generator, things: tuple[Thing, ...]) -> Thing:
    return things[int(rng.integers(len(things)))]


def _truth(value: bool) -> Meaning:
    return ("truth", "yes" if value else "no")


def _ask_attribute(attribute: str) -> Callable[[Scene, Look, np.random.Generator], Fact | None]:
    def ask(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
        thing = _any(rng, scene.things)
        known = unique_description(scene, thing, rng, without=attribute)
        if known is None:
            return None
        return Fact(attribute, {"x": ("thing", known)}, (attribute, thing.attribute(attribute)), "other")

    return ask


def ask_place(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Where is the thing?"""
    thing = _any(rng, scene.things)
    known = unique_description(scene, thing, rng)
    return None if known is None else Fact("place", {"x": ("thing", known)}, ("place", thing.place), "other")


def ask_at_place(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """What color or shape has the thing at this place?"""
    thing = _any(rng, scene.things)
    attribute = "color" if rng.random() < 0.5 else "shape"
    answer = (attribute, thing.attribute(attribute))
    return Fact(f"{attribute} at", {"place": ("place", thing.place)}, answer, "other")


def ask_count(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """How many things of a color or shape are there?"""
    attribute = "shape" if rng.random() < 0.5 else "color"
    values = look.shapes if attribute == "shape" else look.colors
    if rng.random() < 0.85:  # mostly something that is there
        values = tuple(t.attribute(attribute) for t in scene.things)
    value = values[int(rng.integers(len(values)))]
    number = len(scene.matching(**{attribute: value}))
    return Fact("count", {"x": ("things", {attribute: value})}, ("number", str(number)), "number")


def ask_exists(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Is there such a thing? Wrong candidates recombine what is in the picture, so binding is needed."""
    thing, other = _any(rng, scene.things), _any(rng, scene.things)
    wanted = rng.random() < 0.5
    described = {"color": thing.color, "shape": thing.shape if wanted else other.shape}
    if not wanted and bool(scene.matching(**described)):
        described["shape"] = look.shapes[int(rng.integers(len(look.shapes)))]
    found = bool(scene.matching(**described))
    return Fact("exists", {"x": ("thing", described)}, _truth(found), "yes/no") if found == wanted else None


def ask_relation(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Is one thing left of, right of, above or below another?"""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[int(i)] for i in rng.choice(len(scene.things), size=2, replace=False))
    x, y = unique_description(scene, first, rng), unique_description(scene, second, rng)
    axis = "column" if rng.random() < 0.5 else "row"
    gap = getattr(first, axis) - getattr(second, axis)
    if gap == 0 or x is None or y is None:
        return None
    names = ("left of", "right of") if axis == "column" else ("above", "below")
    true = names[0] if gap < 0 else names[1]
    said = true if rng.random() < 0.5 else names[1 - names.index(true)]
    slots: dict[str, Meaning] = {"x": ("thing", x), "y": ("thing", y), "relation": ("relation", said)}
    return Fact("relation", slots, _truth(said == true), "yes/no")


def ask_total(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """How many things are there in all?"""
    return Fact("total", {}, ("number", str(len(scene.things))), "number")


def ask_more(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Are there more things of one size than of the other?"""
    said = SIZES[int(rng.integers(2))]
    here, there = (len(scene.matching(size=s)) for s in (said, SIZES[1 - SIZES.index(said)]))
    if here == there:  # never more: asking would make "no" the safe guess
        return None
    return Fact("more", {"size": ("size", said)}, _truth(here > there), "yes/no")


def ask_same(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Do two things share their color?"""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[int(i)] for i in rng.choice(len(scene.things), size=2, replace=False))
    x = unique_description(scene, first, rng, without="color")
    y = unique_description(scene, second, rng, without="color")
    if x is None or y is None:
        return None
    return Fact("same", {"x": ("thing", x), "y": ("thing", y)}, _truth(first.color == second.color), "yes/no")


def ask_half(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Is the thing in the left, right, upper or lower part? Things in the middle are not asked about."""
    thing = _any(rng, scene.things)
    known = unique_description(scene, thing, rng)
    axis = "column" if rng.random() < 0.5 else "row"
    index = getattr(thing, axis)
    if known is None or index == 1:
        return None
    side = ("west", "east")[index // 2] if axis == "column" else ("north", "south")[index // 2]
    return Fact(f"half {axis}", {"x": ("thing", known)}, ("side", side), "other")


def ask_extreme(scene: Scene, look: Look, rng: np.random.Generator) -> Fact | None:
    """Which color has the single uppermost or lowest thing?"""
    if len(scene.things) < 2:
        return None
    top = rng.random() < 0.5
    rows = [t.row for t in scene.things]
    edge = min(rows) if top else max(rows)
    things = [t for t in scene.things if t.row == edge]
    if len(things) != 1:
        return None
    return Fact("highest" if top else "lowest", {}, ("color", things[0].color), "other")


#: kind -> how to find such a fact in a scene
ASK: dict[str, Callable[[Scene, Look, np.random.Generator], Fact | None]] = {
    "color": _ask_attribute("color"),
    "shape": _ask_attribute("shape"),
    "size": _ask_attribute("size"),
    "texture": _ask_attribute("texture"),
    "place": ask_place,
    "at place": ask_at_place,
    "count": ask_count,
    "exists": ask_exists,
    "relation": ask_relation,
    "total": ask_total,
    "more": ask_more,
    "same": ask_same,
    "half": ask_half,
    "extreme": ask_extreme,
}


def other_place(place: str, rng: np.random.Generator) -> str:
    """Another of the nine places."""
    others = [p for p in PLACES if p != place]
    return others[int(rng.integers(len(others)))]
