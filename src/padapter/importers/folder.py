"""A folder of pictures: with texts beside them, in folders per class, or with a metadata table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from padapter.errors import UserError
from padapter.importers.base import FoundRow, Reading, SplitOptions
from padapter.importers.tables import ColumnOptions, read_table
from padapter.options.fields import option

if TYPE_CHECKING:
    from padapter.importers.pictures import Pictures

_TEXTS = (".txt", ".caption")
_TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(kw_only=True)
class FolderOptions(SplitOptions):
    """Options of ``padapter data from-folder``."""

    question: str | None = option(
        None, metavar="TEXT", help="What is asked of every picture; the answer is the name of its folder."
    )


def read(options: FolderOptions) -> Reading:
    """A folder of pictures with texts: three layouts are told apart.

    (1) A metadata.csv or metadata.jsonl with file_name and texts, here or in folders train, validation and test.
    (2) cat.jpg with cat.txt beside it (or cat.caption): captions, one per line of the text.
    (3) With --question, one folder per class: the name of the folder is the answer, with _ read as a space.
    Folders called train, validation (val, dev) and test are splits.
    """
    from padapter.importers.files import existing, pictures_of

    folder = existing(options.source)
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; from-folder reads a folder, from-csv and from-vqa read files.")
    pictures = pictures_of(options, folder)
    tables = [] if options.question else _tables(folder)
    if tables:
        return _from_tables(tables, options, pictures, folder)
    found = pictures.all()
    if not found:
        raise UserError(f"{folder}: holds no pictures.")
    captions = {path: text for path in found if (text := _text_beside(path)) is not None}
    if captions and options.question is None:
        return _from_texts(found, captions, options, pictures, folder)
    return _from_classes(found, options, pictures, folder)


def _tables(folder: Path) -> list[Path]:
    """Metadata tables in the folder, else in the folders of its splits."""
    from padapter.importers.files import split_called

    here = [folder / name for name in _TABLES if (folder / name).is_file()]
    below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and split_called(entry.name)]
    return here or [entry / name for entry in below for name in _TABLES if (entry / name).is_file()]


def _from_tables(tables: list[Path], options: FolderOptions, pictures: Pictures, folder: Path) -> Reading:
    from padapter.importers.files import pictures_of, rows_of, split_called

    given = {name: getattr(options, name) for name in vars(options) if name != "question"}
    columns = ColumnOptions(**given)
    if len(tables) == 1 and tables[0].parent == folder:
        return read_table(rows_of(tables[0]), columns, pictures, str(tables[0]))
    parts = [read_table(rows_of(file), columns, pictures_of(options, file.parent), str(file)) for file in tables]
    whole = Reading(parts[0].task, pictures, [], ", ".join(part.source for part in parts), split=options.split)
    for file, part in zip(tables, parts, strict=True):
        if part.task != whole.task:
            raise UserError(f"{file}: its columns are for {part.task}, those of {tables[0]} for {whole.task}.")
        for row in part.rows:
            row.split = split_called(file.parent.name) if options.may_guess_split else row.split
            row.image = _relative(file.parent, folder, row.image)
        whole.rows += part.rows
    whole.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    return whole


def _relative(inner: Path, outer: Path, image: object) -> object:
    return f"{inner.relative_to(outer).as_posix()}/{image}" if isinstance(image, str) and image else image


def _from_texts(
    found: list[Path], captions: dict[Path, Path], options: FolderOptions, pictures: Pictures, folder: Path
) -> Reading:
    reading = Reading("caption", pictures, [], f"{len(found)} pictures in {folder}", split=options.split)
    splits = _split_folders(found, options, folder)
    for path in found:
        if path not in captions:
            reading.left_out.add("the picture has no text beside it", str(path))
            continue
        try:
            text = captions[path].read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{captions[path]}: is not UTF-8; save it as UTF-8.") from error
        lines = [line for line in text.split("\n") if line.strip()]
        reading.rows.append(FoundRow(str(captions[path]), path, {"captions": lines}, split=splits.get(path)))
    return reading


def _from_classes(found: list[Path], options: FolderOptions, pictures: Pictures, folder: Path) -> Reading:
    splits = _split_folders(found, options, folder)
    tops = {path: _parts(path, options, folder)[1 if path in splits else 0 :][:-1] for path in found}
    classes = sorted({parts[0] for parts in tops.values() if parts})
    if not classes:
        raise UserError(
            f"{folder}: holds {len(found)} pictures without a text: put cat.txt beside cat.jpg, sort them into one "
            "folder per class and give --question, or use from-csv with a table."
        )
    if options.question is None:
        raise UserError(
            f"{folder}: its pictures lie in folders ({', '.join(classes[:5])}) and have no texts beside them. If the "
            'folders are classes, say what is asked of a picture: --question "What is it?"'
        )
    reading = Reading("vqa", pictures, [], f"{len(found)} pictures in {folder}", split=options.split)
    reading.notes.append(f"the answers are the names of {len(classes)} folders: {', '.join(classes[:8])}")
    for path in found:
        if not tops[path]:
            reading.left_out.add("the picture lies in no class folder", str(path))
            continue
        answer = tops[path][0].replace("_", " ").strip()
        values = {"question": options.question, "answers": [answer]}
        reading.rows.append(FoundRow(str(path), path, values, split=splits.get(path)))
    return reading


def _split_folders(found: list[Path], options: FolderOptions, folder: Path) -> dict[Path, str]:
    """The split of every picture, where all lie in folders called train, validation, test."""
    from padapter.importers.files import split_called

    splits = {path: split_called(_parts(path, options, folder)[0]) for path in found}
    sure = {path: split for path, split in splits.items() if split is not None}
    return sure if len(sure) == len(found) and len(set(sure.values())) > 1 and options.may_guess_split else {}


def _parts(path: Path, options: FolderOptions, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder if options.images is None else Path(options.images).expanduser()).parts


def _text_beside(path: Path) -> Path | None:
    texts = (path.with_suffix(suffix) for suffix in _TEXTS)
    return next((text for text in texts if text.is_file()), None)
