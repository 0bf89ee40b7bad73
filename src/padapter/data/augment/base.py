"""What an operation on training pictures is, and the chance it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from random import Random
from typing import ClassVar

from PIL import Image

from padapter.data.augment.mirror import mirror_word
from padapter.errors import UserError


class Chance:
    """Random numbers of one picture in one epoch, and what may be done to it.

    Only ``Random.random()`` is used, whose sequence Python promises to keep from version to version.

    Args:
        seed: of the run.
        epoch: counted from 0.
        row: place of the row in the training data.
        texts: all that is said about the picture, see :meth:`padapter.tasks.Task.texts`.
    """

    def __init__(self, seed: int, epoch: int, row: int, *, texts: Sequence[str] = ()) -> None:
        self._random = Random(f"{seed}/{epoch}/{row}")
        self._texts = texts

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random.random()

    def below(self, count: int) -> int:
        """A whole number in 0 .. count - 1."""
        return int(self._random.random() * count)

    def sign(self) -> int:
        """1 or -1."""
        return 1 if self._random.random() < 0.5 else -1

    @cached_property
    def may_mirror(self) -> bool:
        """Whether what is said about the picture stays true of its mirror image."""
        return mirror_word(self._texts) is None


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """A random change of a picture. The fields are what ``--augment NAME:FIELD=VALUE`` sets.

    Attributes:
        p: Probability of the change; otherwise the picture stays as it is.
    """

    p: float = 0.5

    #: Whether it works on the picture in its own size, before it is resized to what the model sees.
    before_resizing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check("p", 0, 1)

    def __call__(self, image: Image.Image, chance: Chance) -> Image.Image:
        """Change the picture, or not.

        Args:
            image: RGB.
            chance: of this picture.

        Returns:
            RGB; of the same size unless :attr:`before_resizing`.
        """
        return self.change(image, chance) if chance.uniform() < self.p else image

    @abstractmethod
    def change(self, image: Image.Image, chance: Chance) -> Image.Image:
        """Change the picture in any case."""

    @classmethod
    def at_level(cls, level: float) -> Operation:
        """The operation as RandAugment applies it.

        Args:
            level: 0 .. 10, RandAugment's magnitude.
        """
        return cls(p=1.0)

    def check(self, name: str, low: float, high: float) -> None:
        """Refuse a field outside [low, high].

        Raises:
            UserError: naming field and bounds.
        """
        value = getattr(self, name)
        if not low <= value <= high:  # False for NaN too
            raise UserError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")

    def settings(self) -> dict[str, float]:
        """All fields by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
