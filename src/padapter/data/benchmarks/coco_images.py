"""Pictures of MS COCO, which VQA v2 and COCO Captions share, under both of their names; and the Karpathy split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from padapter.data.benchmarks.base import Needed, Pictures, whole_number
from padapter.data.records import members
from padapter.errors import UserError

IMAGES_PAGE = "https://cocodataset.org/#download"
KARPATHY_PAGE = "https://cs.stanford.edu/people/karpathy/deepimagesent/"

_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpe?g", re.IGNORECASE)

#: The file of the Karpathy split.
KARPATHY = Needed("dataset_coco.json", KARPATHY_PAGE)

#: Parts of the Karpathy split by the names of ours. ``restval`` are the pictures of val2014 that are trained on.
KARPATHY_PARTS = {
    "karpathy-train": frozenset({"train", "restval"}),
    "karpathy-val": frozenset({"val"}),
    "karpathy-test": frozenset({"test"}),
}


def _cells(*parts: str, within: tuple[str, ...] = ("train2017", "val2017")) -> frozenset[str]:
    """Cells of labelled COCO, divided both by Karpathy and in 2017; val2017 has no picture of train2014."""
    pairs = ((part, year) for part in parts for year in within)
    return frozenset(f"{part}, {year}" for part, year in pairs if (part, year) != ("train", "val2017"))


#: What splits are made of. train2014 is the Karpathy ``train``, val2014 all else; val2017 is 5,000 pictures of val2014,
#: some of each of its Karpathy parts, and train2017 all others.
TRAIN_2014 = _cells("train")
VAL_2014 = _cells("restval", "val", "test")
TRAIN_2017 = _cells("train", "restval", "val", "test", within=("train2017",))
VAL_2017 = _cells("restval", "val", "test", within=("val2017",))
KARPATHY_CELLS = {name: _cells(*sorted(parts)) for name, parts in KARPATHY_PARTS.items()}


def coco_id(name: str) -> int | None:
    """The id in ``COCO_val2014_000000000042.jpg`` or ``000000000042.jpg``; None for other names."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def coco_pictures(*folders: str) -> Pictures:
    """Pictures of COCO in the named folders, in ``images/`` or in the root itself; ids are unique over all of them."""
    places = [f"{above}{folder}" for above in ("", "images/", "coco/", "coco/images/") for folder in folders]
    return Pictures((*places, "images", ""), IMAGES_PAGE, coco_id)


#: Folders of pictures with captions; train2017 and val2017 divide those of train2014 and val2014 anew.
LABELLED_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
LABELLED = coco_pictures(*LABELLED_FOLDERS)


def read_karpathy(path: Path, split: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The pictures of one part of the Karpathy split, in the file's order.

    Args:
        path: ``dataset_coco.json``.
        split: ``karpathy-train``, ``karpathy-val`` or ``karpathy-test``.

    Yields:
        Number of the record, COCO id, and record.

    Raises:
        UserError: Not that file; or a record lacks its id or split.
    """
    wanted = KARPATHY_PARTS[split]
    for _, number, image in members(path, "images"):
        key = whole_number(image.get("cocoid"))
        if key is None or not isinstance(image.get("split"), str):
            raise UserError(
                f"{path}, record {number} of 'images': has no 'cocoid' or no 'split'; expected the file "
                f"{KARPATHY.name} of {KARPATHY_PAGE}."
            )
        if image["split"] in wanted:
            yield number, key, image
