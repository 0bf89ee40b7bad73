"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, and what.

    Attributes:
        file: The annotation file (or the spec of a table).
        line: The line where the row begins (of a table or a list: its number, from 1), or None for the file as a whole.
        field: The field, or None for the row as a whole.
        message: What is wrong.
        fatal: The rows after it could not be read, or no row can be used: not a matter of skipping rows.
        unit: What ``line`` counts.
    """

    file: str
    line: int | None
    field: str | None
    message: str
    fatal: bool = False
    unit: str = "line"

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, {self.unit} {self.line}"
        return f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"


@dataclass
class Report:
    """The outcome of a check.

    Attributes:
        spec: The data that were checked.
        rows: Rows read.
        good: Rows that can be used.
        dropped: Rows left out on purpose (label ``-``, exact repeats); each kind has a note.
        problems: Everything that is wrong.
        notes: What is worth knowing but stops nothing.
        splits: Rows per split, if several were checked.
    """

    spec: str
    rows: int = 0
    good: int = 0
    dropped: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return self.rows - self.good - self.dropped

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return not self.problems

    def format(self, limit: int | None = None) -> str:
        """The report as text.

        Args:
            limit: Show at most this many problems.
        """
        shown = self.problems if limit is None else self.problems[:limit]
        lines = [f"{self.spec}: {self.rows} rows, {self.good} good, {self.bad} bad, {self.dropped} left out"]
        if len(self.splits) > 1:
            lines.append("  splits: " + ", ".join(f"{name} {rows}" for name, rows in self.splits.items()))
        lines += [f"  problem: {problem}" for problem in shown]
        if len(shown) < len(self.problems):
            lines.append(f"  ... and {len(self.problems) - len(shown)} more problems")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
