"""Scenes: what is in a picture, before it is drawn or spoken about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")

#: The nine places of the 3 x 3 grid, in reading order.
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

SIZES = ("small", "large")


@dataclass(frozen=True)
class Thing:
    """One object of a scene. ``row`` and ``column`` are 0, 1, 2; ``dx``, ``dy`` and ``shade`` lie in [-1, 1]."""

    shape: str
    color: str
    size: str
    texture: str
    row: int
    column: int
    dx: float = 0.0
    dy: float = 0.0
    shade: float = 0.0

    @property
    def place(self) -> str:
        """The name of the grid cell, e.g. ``"top left"``."""
        return PLACES[3 * self.row + self.column]

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """What can be said of the thing without its place."""
        return self.shape, self.color, self.size, self.texture

    def attribute(self, name: str) -> str:
        """The value of ``"shape"``, ``"color"``, ``"size"``, ``"texture"`` or ``"place"``."""
        return str(getattr(self, name))


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a background. ``paint_seed`` fixes the noise of the picture."""

    things: tuple[Thing, ...]
    background: str
    noise: float
    paint_seed: int

    def matching(self, **attributes: str) -> tuple[Thing, ...]:
        """The things with all the given attribute values."""
        return tuple(t for t in self.things if all(t.attribute(k) == v for k, v in attributes.items()))


@dataclass(frozen=True)
class Look:
    """The distribution pictures are drawn from."""

    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    textures: tuple[str, ...]
    count: tuple[int, int]
    background: str = "plain"
    noise: float = 0.0

    def sample(self, rng: np.random.Generator) -> Scene:
        """Draw a scene: distinct cells, no two things alike, attributes uniform (half of the things are solid)."""
        number = int(rng.integers(self.count[0], self.count[1] + 1))
        cells = sorted(int(c) for c in rng.choice(9, size=number, replace=False))
        things: list[Thing] = []
        for cell in cells:
            thing = self._thing(rng, cell)
            while any(thing.kind == other.kind for other in things):  # each thing must have a description of its own
                thing = self._thing(rng, cell)
            things.append(thing)
        return Scene(tuple(things), self.background, self.noise, paint_seed=int(rng.integers(2**31)))

    def _thing(self, rng: np.random.Generator, cell: int) -> Thing:
        solid = rng.random() < 0.5
        dx, dy, shade = (float(x) for x in rng.uniform(-1, 1, size=3))
        return Thing(
            shape=_pick(rng, self.shapes),
            color=_pick(rng, self.colors),
            size=_pick(rng, SIZES),
            texture=self.textures[0] if solid else _pick(rng, self.textures[1:]),
            row=cell // 3,
            column=cell % 3,
            dx=dx,
            dy=dy,
            shade=shade,
        )


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]
