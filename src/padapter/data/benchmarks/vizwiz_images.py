"""Pictures of VizWiz, which VizWiz-VQA and VizWiz-Captions share, under both of their names."""

from __future__ import annotations

import re

from padapter.data.benchmarks.base import Pictures

_NAME = re.compile(r"VizWiz_(\w+?)_(\d+)\.jpe?g", re.IGNORECASE)


def vizwiz_key(name: str) -> tuple[str, int] | None:
    """Split and number in ``VizWiz_val_00000042.jpg``; old releases write twelve digits instead of eight."""
    found = _NAME.fullmatch(name)
    return (found[1].lower(), int(found[2])) if found else None


def vizwiz_pictures(split: str, page: str) -> Pictures:
    """Pictures of one split in a folder of its name, in ``images/`` or in the root itself."""
    return Pictures((split, f"images/{split}", f"Images/{split}", "images", "Images", ""), page, vizwiz_key)


#: Folders of annotation files. Their names say little, so that not every folder will do.
ANNOTATIONS = ("Annotations", "annotations", "")
