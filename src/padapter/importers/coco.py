"""Captions in the COCO layout: ``images`` and ``annotations`` in one JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from padapter.importers.base import FoundRow, Reading, SplitOptions, expect, one_key

if TYPE_CHECKING:
    from pathlib import Path

#: Names under which tools export the text of a caption, in the annotation or among its ``attributes``.
_TEXT = ("caption", "captions", "text", "description", "sentence")
_NO_LAYOUT = "not in the COCO layout: expected one object with 'images' and 'annotations'."


@dataclass(kw_only=True)
class CocoOptions(SplitOptions):
    """Options of ``padapter data from-coco``."""


def read(options: CocoOptions) -> Reading:
    """Captions in the COCO layout, as COCO itself and labelling tools write it: one row per picture.

    The text may stand in an annotation, among its attributes, or in the record of the image. A file whose name speaks
    of train, val or test is that split, unless an option says otherwise.
    """
    from padapter.importers.files import json_of, only_file, pictures_of, records, split_in_name

    file = only_file(options.source, "*.json", _has_layout)
    content = json_of(file)
    expect(_is_layout(content), str(file), _NO_LAYOUT)
    reading = Reading("caption", pictures_of(options, file.parent), [], "", split=options.split)
    if options.may_guess_split and (guess := split_in_name(file.stem)):
        reading.split = guess
        reading.notes.append(f"everything is {guess}, told from the file name; --split or --test say otherwise")
    images: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, image in records(file, content, "images"):
        expect(image.get("id") is not None, where, "id: is missing.")
        key = str(image["id"])
        if key in images:
            same = images[key][1].get("file_name") == image.get("file_name")
            expect(same, where, f"id: {key} was used before for {images[key][1].get('file_name')!r}.")
        images[key] = (where, image)
    captions = _captions(reading, file, content, images)
    for key, (where, image) in images.items():
        texts = [*captions.get(key, []), *_texts(image)]
        if not texts:
            reading.left_out.add("the picture has no caption", f"{where}: {image.get('file_name')}")
            continue
        extra = {"source": image["flickr_url"]} if image.get("flickr_url") else {}
        reading.rows.append(FoundRow(where, image.get("file_name"), {"id": key, "captions": texts}, extra=extra))
    reading.source = f"{len(images)} images and {len(content['annotations'])} annotations of {file}"
    return reading


def _captions(
    reading: Reading, file: Path, content: dict[str, Any], images: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, list[Any]]:
    """Captions by image id; annotations without a text (boxes, classes) or without an image are counted."""
    from padapter.importers.files import records

    found: dict[str, list[Any]] = {}
    for where, annotation in records(file, content, "annotations"):
        key = str(annotation.get("image_id"))
        texts = _texts(annotation)
        if key not in images:
            reading.left_out.add("an annotation of an image that is not listed", f"{where}: image_id: {key}")
        elif not texts:
            reading.left_out.add("an annotation without a text", where)
        else:
            found.setdefault(key, []).extend(texts)
    return found


def _texts(record: dict[str, Any]) -> list[Any]:
    attributes = record.get("attributes")
    value = one_key(record, _TEXT)
    if value is None and isinstance(attributes, dict):
        value = one_key(attributes, _TEXT)
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_layout(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _has_layout(file: Path) -> bool:
    from padapter.errors import UserError
    from padapter.importers.files import json_of

    try:
        return _is_layout(json_of(file))
    except UserError:
        return False
