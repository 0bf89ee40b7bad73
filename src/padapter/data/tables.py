"""Rows of a ``datasets`` table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padapter.data.readers import RawRow
from padapter.data.source import Source
from padapter.data.stores import ColumnImages, FolderImages
from padapter.errors import UserError

if TYPE_CHECKING:
    import datasets


def in_memory(columns: Mapping[str, Sequence[Any]], features: datasets.Features, fingerprint: str) -> datasets.Dataset:
    """A table of these columns; ``Dataset.from_dict`` would copy them twice, once to make a fingerprint of them."""
    import datasets
    import pyarrow as pa

    schema = features.arrow_schema
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
    table = pa.Table.from_arrays(arrays, schema=schema)
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info=info, fingerprint=fingerprint)


def from_table(table: Any, name: str, split: str, file: str, *, root: Path | None, trusted: bool = False) -> Source:
    """Rows of a ``datasets.Dataset``; the pictures are an ``Image`` column or, in a directory, relative paths.

    Args:
        table: The ``datasets.Dataset``.
        name: A short name.
        split: The split.
        file: What messages call it.
        root: The folder that paths are relative to; None where pictures must be a column of images.
        trusted: Pictures need no checking.

    Raises:
        UserError: The column ``image`` holds no images and there is no root.
    """
    import datasets

    is_image = isinstance(table.features.get("image"), datasets.Image)
    texts = table.remove_columns("image") if is_image else table
    rows = [RawRow(file, number, dict(values)) for number, values in enumerate(texts, 1)]
    if not is_image:
        if root is None and "image" in table.column_names:
            raise UserError(
                f"{file}: the column 'image' must hold images (datasets.Image), not {table.features['image']}."
            )
        return Source(name, split, file, rows, FolderImages(root or Path()), trusted)
    for number, row in enumerate(rows):
        if row.values is not None:
            row.values["image"] = number
    images = table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return Source(name, split, file, rows, ColumnImages(images), trusted)
