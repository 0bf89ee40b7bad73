"""Many rows in little memory: one list per field instead of one dict per row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

from padapter.data.readers import RawRow


class ColumnRows(Sequence[RawRow]):
    """Rows kept as columns; a :class:`RawRow` is made when it is asked for.

    Half a million questions with ten answers each take about a fifth of what as many dicts would.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._files: dict[str, int] = {}
        self._names: list[str] = []
        self._file = array("I")
        self._number = array("L")
        self._errors: dict[int, str] = {}

    def add(self, file: str, number: int, **values: Any) -> None:
        """Take a row; values that are None are no fields of it.

        Args:
            file: Name of its file for messages.
            number: Its place in the file.
            **values: Its fields.
        """
        for name in values.keys() - self._columns.keys():
            self._columns[name] = [None] * len(self)
        for name, column in self._columns.items():
            column.append(values.get(name))
        self._place(file, number)

    def add_bad(self, file: str, number: int, error: str) -> None:
        """Take a row that cannot be used.

        Args:
            file: Name of its file for messages.
            number: Its place in the file.
            error: Why.
        """
        for column in self._columns.values():
            column.append(None)
        self._errors[len(self)] = error
        self._place(file, number)

    def _place(self, file: str, number: int) -> None:
        if file not in self._files:
            self._files[file] = len(self._names)
            self._names.append(file)
        self._file.append(self._files[file])
        self._number.append(number)

    @property
    def names(self) -> set[str]:
        """The fields that some row has."""
        return set(self._columns)

    def __len__(self) -> int:
        return len(self._number)

    @overload
    def __getitem__(self, index: int) -> RawRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[RawRow]: ...
    def __getitem__(self, index: int | slice) -> RawRow | list[RawRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        file, number = self._names[self._file[place]], self._number[place]
        if place in self._errors:
            return RawRow(file, number, None, self._errors[place])
        columns = self._columns.items()
        return RawRow(file, number, {name: column[place] for name, column in columns if column[place] is not None})

    def __iter__(self) -> Iterator[RawRow]:
        return (self[place] for place in range(len(self)))
