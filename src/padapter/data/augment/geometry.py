"""Operations that move pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image, ImageOps

from padapter.data.augment.base import Chance, Operation

#: What appears at the edges of a moved picture; the published code's grey.
GREY = (128, 128, 128)
#: The side, in pixels, at which a shift is counted; the authors' image size.
PUBLISHED_SIDE = 224

_ATTEMPTS = 10
_TALLEST, _WIDEST = 3 / 4, 4 / 3


@dataclass(frozen=True, kw_only=True)
class Crop(Operation):
    """A random region (Inception's "random resized crop"); it is resized as every picture of the run is.

    Attributes:
        scale: Least share of the picture's area.
        p: Probability; otherwise the whole picture is taken.
    """

    scale: float = 0.5
    p: float = 1.0

    before_resizing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("scale", 0.01, 1)

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return image.crop(self.region(image.size, chance))

    def region(self, size: tuple[int, int], chance: Chance) -> tuple[int, int, int, int]:
        """A region with ``scale`` .. 1 of the area and a width of 3/4 .. 4/3 of its height.

        Where ten attempts give none that fits, the largest one in the middle of such a shape.

        Args:
            size: (width, height) of the picture.
            chance: of this picture.

        Returns:
            (left, upper, right, lower), at least one pixel wide and high.
        """
        width, height = size
        for _ in range(_ATTEMPTS):
            area = width * height * chance.uniform(self.scale, 1.0)
            ratio = math.exp(chance.uniform(math.log(_TALLEST), math.log(_WIDEST)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, upper = chance.below(width - w + 1), chance.below(height - h + 1)
                return left, upper, left + w, upper + h
        ratio = min(max(width / height, _TALLEST), _WIDEST)
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h


@dataclass(frozen=True, kw_only=True)
class FlipAll(Operation):
    """Left and right exchanged, whatever is said about the picture."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return ImageOps.mirror(image)


@dataclass(frozen=True, kw_only=True)
class Flip(FlipAll):
    """Left and right exchanged, except where a text of the row would no longer be true."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return super().change(image, chance) if chance.may_mirror else image


def _affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    """Output (x, y) shows input (a x + b y + c, d x + e y + f); bilinear, grey outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


@dataclass(frozen=True, kw_only=True)
class ShearX(Operation):
    """Rows pushed sideways, the more the lower: by ``amount`` times their distance from the top, to either side."""

    amount: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("amount", 0, 1)

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return _affine(image, (1, self.amount * chance.sign(), 0, 0, 1, 0))

    @classmethod
    def at_level(cls, level: float) -> Operation:
        """Amounts 0 .. 0.3."""
        return cls(amount=0.03 * level, p=1.0)


@dataclass(frozen=True, kw_only=True)
class ShearY(ShearX):
    """Columns pushed up or down, the more the farther right: by ``amount`` times their distance from the left."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return _affine(image, (1, 0, 0, self.amount * chance.sign(), 1, 0))


@dataclass(frozen=True, kw_only=True)
class ShiftX(Operation):
    """The picture moved sideways by ``pixels``, counted as if it were 224 px wide."""

    pixels: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("pixels", 0, PUBLISHED_SIDE)

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return _affine(image, (1, 0, chance.sign() * self.pixels * image.width / PUBLISHED_SIDE, 0, 1, 0))

    @classmethod
    def at_level(cls, level: float) -> Operation:
        """0 .. 10 pixels."""
        return cls(pixels=level, p=1.0)


@dataclass(frozen=True, kw_only=True)
class ShiftY(ShiftX):
    """The picture moved up or down by ``pixels``, counted as if it were 224 px high."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return _affine(image, (1, 0, 0, 0, 1, chance.sign() * self.pixels * image.height / PUBLISHED_SIDE))


@dataclass(frozen=True, kw_only=True)
class Rotate(Operation):
    """The picture turned around its middle by ``degrees``, either way."""

    degrees: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("degrees", 0, 180)

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return image.rotate(chance.sign() * self.degrees, resample=Image.Resampling.BILINEAR, fillcolor=GREY)

    @classmethod
    def at_level(cls, level: float) -> Operation:
        """0 .. 30 degrees."""
        return cls(degrees=3.0 * level, p=1.0)
