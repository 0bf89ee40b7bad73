"""How does what people have become rows? One file per format, one line per format below.

Light: formats import what they need when they read.
"""

from __future__ import annotations

from padapter.importers import coco, csv_table, folder, nlvr, vqa, vqa_rad
from padapter.importers.base import Imported, Importer, ImportOptions

#: Importers by name; each is the command ``padapter data from-NAME``.
IMPORTERS: dict[str, Importer] = {
    importer.name: importer
    for importer in (
        Importer("csv", csv_table.CsvOptions, csv_table.read),
        Importer("folder", folder.FolderOptions, folder.read),
        Importer("coco", coco.CocoOptions, coco.read),
        Importer("vqa", vqa.VqaOptions, vqa.read),
        Importer("vqa-rad", ImportOptions, vqa_rad.read),
        Importer("nlvr", ImportOptions, nlvr.read),
    )
}

__all__ = ["IMPORTERS", "ImportOptions", "Imported", "Importer"]
