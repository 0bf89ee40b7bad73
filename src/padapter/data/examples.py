"""The rows that can be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(frozen=True)
class Example:
    """One usable row: clean values and the key of its picture."""

    id: str
    image: str
    values: dict[str, Any]


@dataclass
class Examples(Sequence[Example]):
    """The usable rows, as columns: half a million objects would take more memory than what they hold.

    Attributes:
        ids: The id of each row.
        images: The key of its picture.
        values: Its clean values, by field.
    """

    ids: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        values = {name: column[index] for name, column in self.values.items()}
        return Example(self.ids[index], self.images[index], values)

    def add(self, key: str, image: str, values: dict[str, Any]) -> None:
        """Take one row; all rows have the same fields."""
        self.ids.append(key)
        self.images.append(image)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def select(self, places: Sequence[int]) -> Examples:
        """Some of the rows."""
        return Examples(
            [self.ids[place] for place in places],
            [self.images[place] for place in places],
            {name: [column[place] for place in places] for name, column in self.values.items()},
        )

    def records(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Id, key of the picture and values of each row."""
        for place, (key, image) in enumerate(zip(self.ids, self.images, strict=True)):
            yield key, image, {name: column[place] for name, column in self.values.items()}
