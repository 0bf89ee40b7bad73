"""Cornell NLVR (https://lil.nlp.cornell.edu/nlvr/)."""

from __future__ import annotations

from pathlib import PurePath

from padapter.importers.base import FoundRow, ImportOptions, Reading, expect


def read(options: ImportOptions) -> Reading:
    """Cornell NLVR: statements that are true or false of an image, with the labels true and false.

    SRC is the folder of one published part, or its JSON file (dev.json, train.json), with images/ beside it.
    Identifiers are n-m; rows of the same n were shown together and share their sentence, so the split goes by n: test
    if n is divisible by 5, validation if n leaves 1, training otherwise. Of the six renderings of an example the first
    is taken.
    """
    from padapter.importers.files import only_file, rows_of
    from padapter.importers.pictures import Pictures

    file = only_file(options.source, "*.json")
    reading = Reading("entailment", Pictures([file.parent]), [], "")
    for where, row in rows_of(file):
        identifier, directory = str(row.get("identifier", "")), str(row.get("directory", ""))
        group = identifier.partition("-")[0]
        expect(group.isdigit(), where, f"identifier: not an NLVR file: {identifier!r} is not of the form n-m.")
        image = f"images/{PurePath(directory).name}/{file.stem}-{identifier}-0.png"
        values = {"id": identifier, "hypothesis": row.get("sentence"), "label": row.get("label")}
        split = {0: "test", 1: "validation"}.get(int(group) % 5, "train")
        reading.rows.append(FoundRow(where, image, values, split))
    reading.source = f"{len(reading.rows)} rows of {file}"
    return reading
