"""What every importer is made of. Nothing heavy is imported here: the command line reads the options for its help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padapter.errors import UserError
from padapter.options.fields import check_at_least, check_choices, option, refuse

if TYPE_CHECKING:
    from padapter.data import Report
    from padapter.importers.pictures import Pictures

SPLITS = ("train", "validation", "test")
#: Share of the pictures that validation and test get, unless the options say otherwise.
SHARE = 0.1
_EXAMPLES = 3


@dataclass(kw_only=True)
class ImportOptions:
    """Options of every importer."""

    source: str = option(metavar="SRC", positional=True, help="File or folder to read; it stays as it is.")
    destination: str = option(
        metavar="DST", positional=True, help="Folder to write; pictures that lie in it stay where they are."
    )
    overwrite: bool = option(False, in_yaml=False, help="Replace what an earlier conversion left in DST.")

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(kw_only=True)
class SplitOptions(ImportOptions):
    """Options of importers whose source does not come in splits of its own."""

    images: str | None = option(None, metavar="DIR", help="Folder of the pictures. (default: the folder of SRC)")
    validation: float | None = option(None, help=f"Share of the pictures for validation. (default: {SHARE})")
    test: float | None = option(None, help=f"Share of the pictures for test. (default: {SHARE})")
    split: str | None = option(
        None,
        choices=SPLITS,
        metavar="|".join(SPLITS),
        help="Everything is of this split. (default: told from SRC, else by shares)",
    )
    seed: int = option(0, help="Which pictures go where.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "validation", "test", "seed")
        if self.split is not None and (self.validation, self.test) != (None, None):
            raise refuse("--split", "contradicts --validation and --test; give one or the other")
        if sum(self.shares.values()) >= 1:
            raise refuse("--validation", "with --test it must leave a share for training: both together below 1")

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the pictures by split."""
        given = {"validation": self.validation, "test": self.test}
        return {split: SHARE if share is None else share for split, share in given.items()}

    @property
    def may_guess_split(self) -> bool:
        """Whether no option says anything about splits."""
        return self.split is None and self.validation is None and self.test is None


class Tally:
    """Counts by reason, and where the first few of each were."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, where: str = "") -> None:
        """Count one."""
        self.counts[reason] += 1
        seen = self.examples.setdefault(reason, [])
        if where and len(seen) < _EXAMPLES:
            seen.append(where)

    def lines(self, title: str) -> list[str]:
        """One line per reason."""
        return [
            f"  {title}: {count} ({reason})" + "".join(f"\n    {where}" for where in self.examples[reason])
            for reason, count in self.counts.most_common()
        ]


@dataclass
class FoundRow:
    """One row of a source, as its importer found it.

    Attributes:
        where: File and line or record, for messages.
        image: What names the picture; :meth:`padapter.importers.pictures.Pictures.find` makes a path of it.
        values: ``id`` and the fields of the task, not yet checked.
        split: Its split, if the source says so.
        group: Rows with equal groups go to the same split, besides rows that show the same picture.
        extra: Fields that are written as they are.
    """

    where: str
    image: Any
    values: dict[str, Any]
    split: str | None = None
    group: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reading:
    """What an importer read.

    Attributes:
        task: The task that the rows are for.
        pictures: Finds the picture of a row.
        rows: The rows.
        source: What was read, for the report.
        split: The one split that everything belongs to, if so; the other split files of a destination are left alone.
        notes: What was guessed and what else is worth knowing.
        left_out: Records that did not even become rows.
        fixed: What was put right on the way.
    """

    task: str
    pictures: Pictures
    rows: list[FoundRow]
    source: str
    split: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: Tally = field(default_factory=Tally)
    fixed: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Imported:
    """What an importer did.

    Attributes:
        task: The task that the result is for.
        destination: Where it lies.
        source: What was read.
        rows: Rows written per split.
        pictures: Pictures per split.
        left_out: Rows left out, by reason.
        fixed: Rows put right, by what was done.
        notes: What was guessed, and what else is worth knowing.
        report: What ``padapter data check`` says of the result.
    """

    task: str
    destination: Path
    source: str
    rows: dict[str, int]
    pictures: dict[str, int]
    left_out: Tally
    fixed: Tally
    notes: list[str]
    report: Report

    def format(self) -> str:
        """The report as text."""
        lines = [f"{self.destination}: data for the task {self.task}", f"  read: {self.source}"]
        lines += [f"  {name}: {rows} rows, {self.pictures[name]} pictures" for name, rows in self.rows.items()]
        lines += [*self.left_out.lines("left out"), *self.fixed.lines("fixed")]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Importer:
    """One format.

    Attributes:
        name: The command is ``padapter data from-NAME``.
        options: Its options.
        read: Turns a source into rows; its docstring is the help of the command.
    """

    name: str
    options: type[ImportOptions]
    read: Callable[[Any], Reading]

    def __call__(self, source: str | Path, destination: str | Path, **options: Any) -> Imported:
        """Convert.

        Args:
            source: What to read.
            destination: The folder to write.
            **options: Fields of :attr:`options`.

        Raises:
            UserError: Nothing to read, not this format, nothing usable in it, or results that are there already.
        """
        return self.run(self.options(source=str(source), destination=str(destination), **options))

    def run(self, options: ImportOptions) -> Imported:
        """The same, from an options object."""
        from padapter.importers.writing import check_destination, write

        reading = self.read(options)
        check_destination(reading, options)
        return write(reading, options)


def one_key(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first value that is not None under one of these names."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def expect(condition: bool, where: str, message: str) -> None:
    """Refuse a source whose structure is wrong.

    Raises:
        UserError: if the condition does not hold.
    """
    if not condition:
        raise UserError(f"{where}: {message}")
