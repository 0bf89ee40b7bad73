"""Operations that change values and leave pixels where they are."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps

from padapter.data.augment.base import Chance, Operation


@dataclass(frozen=True, kw_only=True)
class Identity(Operation):
    """Nothing; RandAugment may draw it."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return image


@dataclass(frozen=True, kw_only=True)
class AutoContrast(Operation):
    """Each channel stretched so that it goes from 0 to 255."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return ImageOps.autocontrast(image)


@dataclass(frozen=True, kw_only=True)
class Equalize(Operation):
    """Each channel's histogram made as even as it can be."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return ImageOps.equalize(image)


@dataclass(frozen=True, kw_only=True)
class Brightness(Operation):
    """Values times ``factor``; 0 is black, 1 changes nothing."""

    factor: float = 1.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("factor", 0, 10)

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return image if self.factor == 1 else ImageEnhance.Brightness(image).enhance(self.factor)

    @classmethod
    def at_level(cls, level: float) -> Operation:
        """Factors 0.1 .. 1.9; exactly 1 at level 5, so that published RandAugment(2, 5) leaves brightness alone."""
        return cls(factor=1.0 + 0.18 * (level - 5.0), p=1.0)


@dataclass(frozen=True, kw_only=True)
class Sharpness(Brightness):
    """Between a smoothed picture (``factor`` 0), itself (1) and a sharpened one (above 1)."""

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        return image if self.factor == 1 else ImageEnhance.Sharpness(image).enhance(self.factor)
