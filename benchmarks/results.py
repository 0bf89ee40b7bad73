"""What comparisons have found, as files of the repository: records, reports, and the tables of ``docs/results.md``.

    python -m benchmarks.results runs/compare-shapes runs/compare-layers runs/compare-p-and-mu

takes the records over from folders of ``padapter compare``; without folders it only writes reports and page anew.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from padapter.comparison import Results, compare, read_recipe, read_records
from padapter.comparison.orchestrate import results_of
from padapter.comparison.records import write_record
from padapter.comparison.report import markdown, write_report
from padapter.comparison.report.analysis import Analysis, record_file
from padapter.comparison.report.content import build_content
from padapter.options import CompareOptions

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "results.md"
#: Folder under ``results`` -> its recipe.
RECIPES = {
    "compare-shapes": "recipes/compare/shapes.yaml",
    "compare-layers": "recipes/compare/layers.yaml",
    "compare-p-and-mu": "recipes/compare/p_and_mu.yaml",
    "compare-where": "recipes/compare/where_p_matters.yaml",
}
_BLOCK = re.compile(r"(<!-- (?P<file>\S+): (?P<section>[^>]+?) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)
_CELL = re.compile(r"(?P<kind>[\w-]+)\[p=(?P<p>[\d.]+),mu=(?P<mu>[\d.]+)\]")


def found() -> list[str]:
    """The comparisons that have records."""
    return [name for name in RECIPES if any((FOLDER / name / "records").glob("*.json"))]


def results(name: str) -> Results:
    """A comparison, from its records in the repository."""
    return results_of(read_recipe(ROOT / RECIPES[name]), list(read_records(FOLDER / name / "records")))


def report(name: str, baseline: str | None = None) -> str:
    """The Markdown report of a comparison, with differences to another row than the recipe's if one is named."""
    found = results(name)
    return markdown.render(build_content(Analysis(replace(found, baseline=baseline or found.baseline))))


def take(run: Path) -> None:
    """Copy what a comparison reports of its folder; what it does not use any more stays behind."""
    records = FOLDER / run.name / "records"
    recipe = str(ROOT / RECIPES[run.name])
    done = compare(CompareOptions(recipe=recipe, output=str(run), report_only=True, quiet=True))
    shutil.rmtree(records, ignore_errors=True)
    for record in done.results.records:
        write_record(record, FOLDER / run.name / record_file(record))
    table = learned(run)
    if table.count("\n") > 2:
        (FOLDER / run.name / "learned.md").write_text(
            f"# p and mu at the end\n\n## Learned\n\n{table}", encoding="utf-8"
        )


def learned(run: Path) -> str:
    """Where learned p and mu have ended, over heads, layers and seeds: mean, least and greatest, as a table."""
    ends: dict[tuple[str, str], dict[str, list[Tensor]]] = {}
    for folder in sorted((run / "runs").glob("test--*--seed-*")):
        file = folder / "adapter" / "adapter_model.safetensors"
        _, benchmark, method, _ = folder.name.split("--")
        weights = load_file(file) if file.is_file() else {}
        for name, value in weights.items():
            kind = {"p_adapter_p": "p", "p_adapter_mu": "mu"}.get(name.rsplit(".", 1)[-1])
            if kind is not None:  # what is out of range acts as the end of its range
                used = value.float().flatten().clamp(min=1.0 if kind == "p" else 0.0)
                ends.setdefault((method, benchmark), {}).setdefault(kind, []).append(used)
    lines = ["| Method | Benchmark | p | least | greatest | mu | least | greatest |", "| :-- | :-- |" + " --: |" * 6]
    for (method, benchmark), found in sorted(ends.items()):
        numbers = []
        for kind in ("p", "mu"):
            values = torch.cat(found[kind]) if kind in found else None
            numbers += ["-"] * 3 if values is None else [f"{float(v):.2f}" for v in (values.mean(), *values.aminmax())]
        lines.append(f"| {method} | {benchmark} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def sweep(found: Results) -> str:
    """Scores of a sweep over p and mu, in per cent: one row per p, one column per mu, one table per kind of method."""
    scores = {run.method: 100 * run.score for run in found.records}
    cells = {name: match for name in scores if (match := _CELL.fullmatch(name))}
    parts = []
    for kind in dict.fromkeys(match["kind"] for match in cells.values()):
        mine = {(float(m["p"]), float(m["mu"])): scores[name] for name, m in cells.items() if m["kind"] == kind}
        columns = sorted({mu for _, mu in mine})
        lines = [f"| {kind}: p | " + " | ".join(f"mu = {mu:g}" for mu in columns) + " |"]
        lines.append("| --: |" + " --: |" * len(columns))
        for p in sorted({p for p, _ in mine}):
            values = [f"{mine[p, mu]:.2f}" if (p, mu) in mine else "-" for mu in columns]
            lines.append(f"| {p:g} | " + " | ".join(values) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def section(file: str, heading: str) -> str:
    """A part of a report: what stands below a heading, up to the next one."""
    text = (ROOT / file).read_text(encoding="utf-8")
    match = re.search(rf"^#+ {re.escape(heading)}\n\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    if match is None:
        raise ValueError(f"{file} has no section {heading!r}")
    return match[1].strip() + "\n"


def filled(page: str) -> str:
    """A page with its blocks ``<!-- FILE: SECTION --> ... <!-- end -->`` taken from the files they name."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{section(block['file'], block['section'])}\n{block[5]}", page)


def outside_blocks(page: str) -> str:
    """What people have written themselves."""
    return _BLOCK.sub("", page)


def inside_blocks(page: str) -> str:
    """What was taken from files."""
    return "\n".join(block["text"] for block in _BLOCK.finditer(page))


def main() -> None:
    """See the module."""
    for run in sys.argv[1:]:
        take(Path(run))
    for name in found():
        again = results(name)
        write_report(again, FOLDER / name)
        if name == "compare-shapes":
            (FOLDER / name / "against-p-adapter.md").write_text(report(name, "p-adapter"), encoding="utf-8")
        if name == "compare-p-and-mu":
            (FOLDER / name / "sweep.md").write_text(f"# p and mu\n\n## Scores\n\n{sweep(again)}", encoding="utf-8")
        print(f"{name}: {len(again.records)} runs")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
