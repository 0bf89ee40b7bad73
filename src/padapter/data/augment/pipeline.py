"""A list of operations: read from text, applied to a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from PIL import Image

from padapter.data.augment.base import Chance, Operation
from padapter.data.augment.geometry import Flip, FlipAll
from padapter.data.augment.mirror import mirror_word
from padapter.data.augment.operations import NAMED, NONE, OPERATIONS
from padapter.errors import UserError
from padapter.values import names_close_to


@dataclass(frozen=True)
class Augmentation:
    """Operations in the order in which they are applied.

    Attributes:
        operations: (name, operation) pairs.
    """

    operations: tuple[tuple[str, Operation], ...]

    def __call__(
        self, image: Image.Image, chance: Chance, fit: Callable[[Image.Image], Image.Image] = lambda image: image
    ) -> Image.Image:
        """A training picture.

        Args:
            image: RGB, of any size.
            chance: of this picture in this epoch.
            fit: gives a picture the size that the model sees.

        Returns:
            RGB, of the size that ``fit`` gives.
        """
        for operation in self._those(before_resizing=True):
            image = operation(image, chance)
        image = fit(image)
        for operation in self._those(before_resizing=False):
            image = operation(image, chance)
        return image

    def _those(self, *, before_resizing: bool) -> list[Operation]:
        return [operation for _, operation in self.operations if operation.before_resizing == before_resizing]

    @property
    def flips(self) -> bool:
        """Whether some pictures are mirrored."""
        return any(isinstance(operation, FlipAll) for _, operation in self.operations)

    @property
    def flips_all(self) -> bool:
        """Whether pictures are mirrored whatever is said about them."""
        return any(
            isinstance(operation, FlipAll) and not isinstance(operation, Flip) for _, operation in self.operations
        )

    def __str__(self) -> str:
        """The list as :func:`parse_augmentation` reads it, with every setting."""
        return ",".join(
            ":".join([name, *(f"{key}={value:g}" for key, value in operation.settings().items())])
            for name, operation in self.operations
        )


def parse_augmentation(text: str) -> Augmentation | None:
    """Read ``none``, ``published``, or a list such as ``crop:scale=0.8,flip,randaugment:n=2:m=5``.

    Args:
        text: operations with commas between them, each with its settings behind colons.

    Returns:
        The operations; ``None`` for ``none``.

    Raises:
        UserError: for an unknown operation or setting, a value out of bounds, or an operation out of its place.
    """
    if text.strip() == NONE:
        return None
    parts = NAMED.get(text.strip(), text).split(",")
    found = tuple(_operation(part.strip()) for part in parts)
    places = [operation.before_resizing for _, operation in found]
    if places != sorted(places, reverse=True):
        late = next(name for index, (name, op) in enumerate(found) if op.before_resizing and not all(places[:index]))
        raise UserError(f"--augment: {late!r} works on the picture before it is resized; put it first")
    return Augmentation(found)


def _operation(text: str) -> tuple[str, Operation]:
    name, *pairs = (part.strip() for part in text.split(":"))
    kind = OPERATIONS.get(name)
    if kind is None:
        words = [NONE, *NAMED, *OPERATIONS]
        if name in (NONE, *NAMED):
            raise UserError(f"--augment: {name!r} stands alone; it takes no settings and no other operations")
        hint = names_close_to(name, words)
        raise UserError(f"--augment: {name!r} is no operation{hint}. There are: {', '.join(OPERATIONS)}")
    types = {item.name: item.type for item in fields(kind)}
    settings: dict[str, float] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key not in types:
            raise UserError(
                f"--augment: {name!r} has no setting {pair!r}; there are: {', '.join(map('{}=NUMBER'.format, types))}"
            )
        if key in settings:
            raise UserError(f"--augment: {name}: {key} is given twice")
        try:
            settings[key] = int(value) if types[key] == "int" else float(value)
        except ValueError:
            kinds = "a whole number" if types[key] == "int" else "a number"
            raise UserError(f"--augment: {name}: {key} is {kinds}, got {value!r}") from None
    try:
        return name, kind(**settings)
    except UserError as problem:
        raise UserError(f"--augment: {name}: {problem}") from None


def count_mirror_words(rows: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many rows say something that is not true of a mirror image.

    Args:
        rows: the texts of each row.

    Returns:
        Counts by kind: ``sides`` and ``reading``.
    """
    counts = Counter(found[0] for texts in rows if (found := mirror_word(texts)) is not None)
    return {kind: counts[kind] for kind in ("sides", "reading")}
