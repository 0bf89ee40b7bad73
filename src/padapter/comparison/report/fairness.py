"""What differs between the runs of one benchmark beside the method: options, training data, versions."""

from __future__ import annotations

from collections import Counter

from padapter.comparison.records import RunRecord
from padapter.comparison.report.analysis import Analysis
from padapter.comparison.report.numbers import MISSING
from padapter.comparison.report.settings import flat

# What makes the methods, what the comparison sets for every run, and what changes only how a run is watched, stored
# or placed.
_EXPECTED = {"method", "learning_rate", "seed", "score_base"}
_OUTPUT_LIKE = {
    *("output", "config", "resume", "overwrite", "quiet", "num_workers", "save_every", "keep_checkpoints"),
    *("log_every", "device"),
}
_PACKAGES = ("padapter", "torch", "transformers", "peft")


def differing_options(analysis: Analysis) -> list[str]:
    """Options that differ between methods on one benchmark, each with who has what.

    Returns:
        As ``max_steps (p-adapter: 900, others: 400)``; followed by the benchmark where it is not so on all of them.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for entry in analysis.results.benchmarks:
        for name, values in _by_method(analysis, entry.name).items():
            if len(set(values.values())) > 1:
                found.setdefault(name, {}).setdefault(_who_has_what(values), []).append(entry.label)
    parts = []
    for name, phrases in sorted(found.items()):
        for phrase, labels in phrases.items():
            everywhere = len(labels) == len(analysis.benchmarks)
            parts.append(f"{name} ({phrase}{'' if everywhere else '; on ' + ', '.join(labels)})")
    return parts


def differing_versions(analysis: Analysis) -> list[str]:
    """Packages whose versions differ between runs of one benchmark, as ``torch (2.12.0, 2.13.0)``."""
    found: dict[str, set[str]] = {}
    for benchmark in analysis.benchmarks:
        runs = [run for run in analysis.runs if run.benchmark == benchmark]
        for package in _PACKAGES:
            versions = {_version(run, package) for run in runs}
            if len(versions) > 1:
                found.setdefault(package, set()).update(versions)
    return [f"{package} ({', '.join(sorted(found[package]))})" for package in _PACKAGES if package in found]


def _by_method(analysis: Analysis, benchmark: str) -> dict[str, dict[str, str]]:
    """Option -> label of a method -> its value in the runs on a benchmark, several if its seeds differ."""
    runs = {m.label: analysis.cells[m.name, benchmark] for m in analysis.results.methods}
    options = {label: [_told(run) for run in cell] for label, cell in runs.items() if cell}
    names = {name for cell in options.values() for told in cell for name in told}
    return {
        name: {
            label: " or ".join(sorted({told.get(name, MISSING) for told in cell})) for label, cell in options.items()
        }
        for name in names
    }


def _told(run: RunRecord) -> dict[str, str]:
    hidden = _EXPECTED | _OUTPUT_LIKE | {"method_options"}
    told = flat({name: value for name, value in run.options.items() if name not in hidden})
    return {name: "not set" if value == "null" else value for name, value in told.items()}


def _who_has_what(values: dict[str, str]) -> str:
    """``p-adapter: 900, others: 400``: the others are those with the value that most have, if more than one."""
    usual, count = Counter(values.values()).most_common(1)[0]
    if count == 1:
        return ", ".join(f"{label}: {value}" for label, value in values.items())
    special = [f"{label}: {value}" for label, value in values.items() if value != usual]
    return ", ".join([*special, f"others: {usual}"])


def _version(run: RunRecord, package: str) -> str:
    versions = run.provenance.get("versions")
    return str(versions.get(package, MISSING)) if isinstance(versions, dict) else MISSING
