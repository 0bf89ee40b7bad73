"""VQA-RAD (https://osf.io/89kps)."""

from __future__ import annotations

from typing import Any

from padapter.importers.base import FoundRow, ImportOptions, Reading


def read(options: ImportOptions) -> Reading:
    """VQA-RAD: questions of clinicians on radiology images, one answer each.

    SRC is the release folder, or the JSON file in it. Test rows are those whose phrase_type begins with test; all
    others are training rows: there is no validation split, and many images occur in both. NULL counts as no value.
    """
    from padapter.importers.files import only_file, rows_of
    from padapter.importers.pictures import Pictures

    file = only_file(options.source, "*VQA*RAD*.json")
    reading = Reading("vqa", Pictures([file.parent]), [], "")
    for where, row in rows_of(file):
        fields = {name: _no_null(value) for name, value in row.items()}
        values = {
            "id": fields.get("qid"),
            "question": fields.get("question"),
            "answers": fields.get("answer"),
            "question_type": fields.get("question_type"),
            "answer_type": fields.get("answer_type"),
        }
        split = "test" if str(fields.get("phrase_type") or "").startswith("test") else "train"
        reading.rows.append(FoundRow(where, fields.get("image_name"), values, split))
    reading.source = f"{len(reading.rows)} rows of {file}"
    return reading


def _no_null(value: Any) -> Any:
    """Strip texts; the text NULL is no value."""
    if not isinstance(value, str):
        return value
    stripped = value.strip()
    return None if stripped in {"", "NULL"} else stripped
