"""The table of operations. A new one is a class and a line here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from padapter.data.augment.base import Chance, Operation
from padapter.data.augment.colour import AutoContrast, Brightness, Equalize, Identity, Sharpness
from padapter.data.augment.geometry import Crop, Flip, FlipAll, Rotate, ShearX, ShearY, ShiftX, ShiftY

#: What RandAugment draws from in BLIP's fine-tuning.
RANDAUGMENT = (
    "identity",
    "autocontrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear-x",
    "shear-y",
    "shift-x",
    "shift-y",
    "rotate",
)


@dataclass(frozen=True, kw_only=True)
class RandAugment(Operation):
    """``n`` operations drawn with replacement (arXiv 1909.13719), each applied with probability ``p``.

    Attributes:
        n: How many are drawn.
        m: Their strength, 0 .. 10.
        p: Probability of each.
    """

    n: int = 2
    m: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("n", 1, 20)
        self.check("m", 0, 10)

    def __call__(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.__call__`; chance is taken for each drawn operation."""
        return self.change(image, chance)

    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """See :meth:`Operation.change`."""
        for drawn in [chance.below(len(self._drawn_from)) for _ in range(self.n)]:
            if chance.uniform() < self.p:
                image = self._drawn_from[drawn](image, chance)
        return image

    @cached_property
    def _drawn_from(self) -> tuple[Operation, ...]:
        return tuple(OPERATIONS[name].at_level(self.m) for name in RANDAUGMENT)


#: Operations by the name that ``--augment`` gives them.
OPERATIONS: dict[str, type[Operation]] = {
    "crop": Crop,
    "flip": Flip,
    "flip-all": FlipAll,
    "randaugment": RandAugment,
    "identity": Identity,
    "autocontrast": AutoContrast,
    "equalize": Equalize,
    "brightness": Brightness,
    "sharpness": Sharpness,
    "shear-x": ShearX,
    "shear-y": ShearY,
    "shift-x": ShiftX,
    "shift-y": ShiftY,
    "rotate": Rotate,
}

NONE = "none"
#: The p-adapter authors' training pictures, the same for all their tasks. Their flips spare no row.
PUBLISHED = "crop:scale=0.5,flip-all,randaugment:n=2:m=5"
#: Words that stand for a list of operations.
NAMED = {"published": PUBLISHED}
