"""Scenes to pixels: a small deterministic renderer on Pillow."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from padapter.worlds.shapes.scenes import Scene, Thing

IMAGE_SIZE = 64
_OVERSAMPLING = 4

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 30),
    "purple": (140, 60, 170),
    "orange": (245, 130, 25),
    "black": (25, 25, 25),
    "brown": (120, 75, 40),
    "pink": (250, 150, 190),
    "teal": (30, 165, 165),
}

Points = list[tuple[float, float]]


def _polygon(corners: int, inner: float | None = None, turn: float = -math.pi / 2) -> Points:
    """A regular polygon, or with ``inner`` a star, on the unit circle."""
    steps = corners if inner is None else 2 * corners
    radii = [1.0 if inner is None or k % 2 == 0 else inner for k in range(steps)]
    angles = [turn + 2 * math.pi * k / steps for k in range(steps)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> Points:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = np.sin(angles) ** 3
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16
    return list(zip(x.tolist(), y.tolist(), strict=True))


_CROSS: Points = [(-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36)]
_CROSS = _CROSS + [(-x, -y) for x, y in _CROSS]
_ARROW: Points = [(0, -1), (0.9, 0), (0.35, 0), (0.35, 1), (-0.35, 1), (-0.35, 0), (-0.9, 0)]

#: shape -> corners on the unit square, y down
OUTLINES: dict[str, Points] = {
    "circle": _polygon(48),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "diamond": [(0, -1.05), (0.7, 0), (0, 1.05), (-0.7, 0)],
    "cross": _CROSS,
    "star": _polygon(5, inner=0.42),
    "heart": _heart(),
    "arrow": _ARROW,
    "moon": _polygon(48),
}


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """Draw a scene as an RGB image of ``size`` x ``size`` pixels. The same scene always gives the same pixels."""
    rng = np.random.default_rng(scene.paint_seed)
    side = size * _OVERSAMPLING
    canvas = _background(scene.background, side, rng)
    for thing in scene.things:
        _draw(canvas, thing)
    image = canvas.resize((size, size), Image.Resampling.BOX)
    if scene.noise:
        pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, 255 * scene.noise, (size, size, 3))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


def _background(kind: str, side: int, rng: np.random.Generator) -> Image.Image:
    base = rng.integers(205, 246, size=3)
    if kind == "plain":
        return Image.new("RGB", (side, side), tuple(int(v) for v in base))
    ramp = np.linspace(0, 1, side)[:, None, None] * (rng.integers(90, 170, size=3) - base) + base
    canvas = Image.fromarray(np.broadcast_to(ramp, (side, side, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(10):  # clutter: thin lines that are nobody's outline
        ends = [int(v) for v in rng.integers(0, side, size=4)]
        pen.line(ends, fill=tuple(int(v) for v in rng.integers(90, 220, size=3)), width=side // 80)
    return canvas


def _draw(canvas: Image.Image, thing: Thing) -> None:
    cell = canvas.width / 3
    radius = cell * (0.44 if thing.size == "large" else 0.25)
    slack = cell / 2 - radius
    x = cell * (thing.column + 0.5) + 0.6 * slack * thing.dx
    y = cell * (thing.row + 0.5) + 0.6 * slack * thing.dy
    color = tuple(int(np.clip(c + 18 * thing.shade, 0, 255)) for c in PALETTE[thing.color])
    left, top = int(x - 1.1 * radius), int(y - 1.1 * radius)
    side = int(2.2 * radius) + 2
    mask = _mask(thing, side, x - left, y - top, radius)
    if thing.texture == "hollow":
        mask = ImageChops.subtract(mask, _mask(thing, side, x - left, y - top, 0.58 * radius))
    canvas.paste(color, (left, top), mask)
    if thing.texture == "striped":
        dark = tuple(int(0.35 * c) for c in color)
        canvas.paste(dark, (left, top), ImageChops.multiply(mask, _stripes(side, top)))


def _mask(thing: Thing, side: int, x: float, y: float, radius: float) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    pen.polygon([(x + radius * u, y + radius * v) for u, v in OUTLINES[thing.shape]], fill=255)
    if thing.shape == "moon":  # a disc with a disc bitten out
        r, shift = 0.85 * radius, 0.5 * radius
        pen.ellipse((x + shift - r, y - r, x + shift + r, y + r), fill=0)
    return mask


def _stripes(side: int, top: int) -> Image.Image:
    rows = ((np.arange(side) + top) // (3 * _OVERSAMPLING // 2)) % 2
    return Image.fromarray(np.broadcast_to(rows[:, None] * 255, (side, side)).astype(np.uint8))
