"""A spreadsheet saved as CSV or TSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from padapter.importers.tables import ColumnOptions, read_table
from padapter.options.fields import option, refuse

if TYPE_CHECKING:
    from padapter.importers.base import Reading

_WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t"}


@dataclass(kw_only=True)
class CsvOptions(ColumnOptions):
    """Options of ``padapter data from-csv``."""

    separator: str | None = option(
        None, metavar="MARK", help="Between columns: comma, semicolon, tab or any one mark. (default: told from line 1)"
    )
    encoding: str = option("utf-8", help="Encoding of the file, e.g. cp1252 or utf-16 from a spreadsheet program.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separator is not None:
            self.separator = _WORDS.get(self.separator, self.separator)
            if len(self.separator) != 1:
                raise refuse("--separator", f"is one mark, or the word comma, semicolon or tab; got {self.separator!r}")


def read(options: CsvOptions) -> Reading:
    """A CSV or TSV table with columns of any name, one row per question, statement or caption.

    Columns that no option names are told from usual names (image, file_name, question, answer, caption, text, ...), and
    the report says which. Pictures are looked up relative to the table, then by their file name.
    """
    from padapter.data.readers import read_csv
    from padapter.importers.files import existing, only_file, pictures_of, readable

    source = existing(options.source)
    file = only_file(options.source, "*.[ct]sv") if source.is_dir() else source
    rows = read_csv(file, separator=options.separator, encoding=options.encoding)
    whole = [row for row in rows if row.values is not None or row.fatal]
    reading = read_table(readable(whole), options, pictures_of(options, file.parent), str(file))
    for row in rows:
        if row.values is None:
            advice = "a cell that holds the separator belongs in quotation marks"
            reading.left_out.add("the line has too many cells", f"{row.file}, line {row.line}: {row.error}; {advice}")
    return reading
