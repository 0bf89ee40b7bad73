"""How does what people have become rows? One file per format, one line per format below.

Light: formats import what they need when they read.
"""

from __future__ import annotations

from padapter.converters import coco, csv_table, folder, nlvr, vqa, vqa_rad
from padapter.converters.base import Conversion, Converter, ConvertOptions

#: Converters by name; each is the command ``padapter data from-NAME``.
CONVERTERS: dict[str, Converter] = {
    converter.name: converter
    for converter in (
        Converter("csv", csv_table.CsvOptions, csv_table.read),
        Converter("folder", folder.FolderOptions, folder.read),
        Converter("coco", coco.CocoOptions, coco.read),
        Converter("vqa", vqa.VqaOptions, vqa.read),
        Converter("vqa-rad", ConvertOptions, vqa_rad.read),
        Converter("nlvr", ConvertOptions, nlvr.read),
    )
}

__all__ = ["CONVERTERS", "Conversion", "ConvertOptions", "Converter"]
