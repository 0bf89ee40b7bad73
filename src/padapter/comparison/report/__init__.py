"""The report of a comparison: Markdown, CSV and one HTML page, from the same tables."""

from __future__ import annotations

from pathlib import Path

from padapter.comparison.records import Results


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and ``report.html``, all of them or none.

    The same results give the same bytes. A comparison may be unfinished: what is missing says so.

    Args:
        results: a comparison as far as it has come.
        folder: made if it is not there.

    Returns:
        The three files.

    Raises:
        UserError: if the records contradict each other (two for one place, rows that disagree with their score).
    """
    from padapter.comparison.report import csv, markdown, page
    from padapter.comparison.report.analysis import Analysis
    from padapter.comparison.report.content import build_content

    analysis = Analysis(results)
    content = build_content(analysis)
    texts = {
        "report.md": markdown.render(content),
        "report.csv": csv.render(content),
        "report.html": page.render(content, analysis),
    }
    return _write(texts, folder)


def _write(texts: dict[str, str], folder: Path) -> list[Path]:
    """Write all files beside their places first, so that a full disk leaves the old report as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    partials = {folder / name: folder / f".{name}.partial" for name in texts}
    try:
        for partial, text in zip(partials.values(), texts.values(), strict=True):
            partial.write_text(text, encoding="utf-8", newline="")
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return list(partials)
