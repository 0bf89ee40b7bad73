"""Hypotheses for entailment and captions: sentences about a scene that are not questions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from padapter.worlds.shapes.dialects import Dialect, with_article
from padapter.worlds.shapes.facts import Meaning, other_place, unique_description
from padapter.worlds.shapes.scenes import SIZES, Look, Scene, Thing

LABELS = ("entailment", "neutral", "contradiction")
_KINDS = ("color", "shape", "size", "texture", "place", "exists", "count", "relation")


def hypothesis(scene: Scene, look: Look, dialect: Dialect, label: str, rng: np.random.Generator) -> str:
    """A sentence that the scene makes true (entailment), makes false (contradiction) or leaves open (neutral)."""
    while True:
        kind = "hidden" if label == "neutral" else _KINDS[int(rng.integers(len(_KINDS)))]
        slots = _slots(kind, scene, look, dialect, label == "entailment", rng)
        if slots is not None:
            return dialect.state(kind, slots, rng)


def _slots(
    kind: str, scene: Scene, look: Look, dialect: Dialect, true: bool, rng: np.random.Generator
) -> Mapping[str, Meaning] | None:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if kind == "relation":
        return _relation_slots(scene, true, rng)
    if kind == "count":
        number = len(scene.matching(shape=thing.shape))
        said = number if true else number + (1 if number < 2 or rng.random() < 0.5 else -1)
        return {"x": ("things", {"shape": thing.shape}), "number": ("number", str(said))}
    if kind == "exists":
        described = {"color": thing.color, "shape": thing.shape}
        if not true:
            swap = "color" if rng.random() < 0.5 else "shape"
            described[swap] = _other(described[swap], _values(swap, look), rng)
        return {"x": ("thing", described)} if bool(scene.matching(**described)) == true else None
    known = unique_description(scene, thing, rng, without=kind)
    if known is None:
        return None
    if kind == "hidden":
        return {
            "x": ("thing", known),
            "value": ("hidden", dialect.hidden[int(rng.integers(len(dialect.hidden)))]),
        }
    value = thing.attribute(kind)
    if not true:
        value = other_place(value, rng) if kind == "place" else _other(value, _values(kind, look), rng)
    return {"x": ("thing", known), "value": (kind, value)}


def _relation_slots(scene: Scene, true: bool, rng: np.random.Generator) -> Mapping[str, Meaning] | None:
    pair = relation(scene, rng)
    if pair is None:
        return None
    first, name, second = pair
    x, y = unique_description(scene, first, rng), unique_description(scene, second, rng)
    if x is None or y is None:
        return None
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    return {"x": ("thing", x), "y": ("thing", y), "relation": ("relation", name if true else opposite[name])}


def relation(scene: Scene, rng: np.random.Generator) -> tuple[Thing, str, Thing] | None:
    """Two things and how the first lies to the second, or ``None`` where there is no such pair."""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[int(i)] for i in rng.choice(len(scene.things), size=2, replace=False))
    if first.column != second.column and (first.row == second.row or rng.random() < 0.5):
        return first, "left of" if first.column < second.column else "right of", second
    return first, "above" if first.row < second.row else "below", second


def captions(scene: Scene, dialect: Dialect, rng: np.random.Generator) -> list[str]:
    """Five captions: everything with its place (twice, in two degrees of detail), everything, counts, a relation."""
    patterns = dialect.captions

    def placed(attributes: tuple[str, ...]) -> str:
        return " and ".join(
            patterns["placed"].format(thing=dialect.full_phrase(t, attributes), place=dialect.word("place", t.place))
            for t in scene.things
        )

    everything = " and ".join(dialect.full_phrase(t) for t in scene.things)
    result = [
        placed(("size", "color", "texture")),
        placed(("color",)),
        patterns["there"].format(things=everything),
        patterns["count"].format(counts=_counts(scene, dialect)),
    ]
    pair = relation(scene, rng)
    if pair is None:
        result.append(patterns["there"].format(things=dialect.full_phrase(scene.things[0], ("color",))))
    else:
        first, name, second = pair
        result.append(
            patterns["relation"].format(
                first=dialect.full_phrase(first, ("color",)),
                relation=dialect.word("relation", name),
                second=dialect.full_phrase(second, ("color",)),
            )
        )
    return result


def _counts(scene: Scene, dialect: Dialect) -> str:
    numbers: dict[str, int] = {}
    for thing in scene.things:
        numbers[thing.shape] = numbers.get(thing.shape, 0) + 1
    return " and ".join(
        with_article(dialect.phrase({"shape": shape}))
        if n == 1
        else f"{dialect.word('number', str(n))} {dialect.phrase({'shape': shape}, plural=True)}"
        for shape, n in numbers.items()
    )


def _values(attribute: str, look: Look) -> tuple[str, ...]:
    return {"color": look.colors, "shape": look.shapes, "size": SIZES, "texture": look.textures}[attribute]


def _other(value: str, values: tuple[str, ...], rng: np.random.Generator) -> str:
    others = [v for v in values if v != value]
    return others[int(rng.integers(len(others)))]
