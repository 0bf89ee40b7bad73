"""What a comparison keeps of every run: one JSON file each, all that a report needs and nothing of a machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from padapter.errors import UserError

VERSION = 1
REPEAT = "delete it to make it anew from the run's folder, and that folder under runs/ too to repeat the run."


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished training run and its score.

    Attributes:
        benchmark: key of the benchmark in the recipe.
        method: key of the method in the recipe.
        seed: of initialisation, order and dropout.
        stage: "test" for a run of the table, "tune" for one that chose a learning rate on validation rows.
        key: digest of everything that determines the run; a run with the same key is never repeated.
        task: "vqa", "entailment" or "caption".
        metric: name of the primary metric.
        rule: the rule by which it was scored.
        score: its value; every primary metric is better when higher.
        metrics: all metrics.
        items: score of every row in the rows' order, whose mean is ``score`` if the metric is a mean; else empty.
        rows_digest: digest of the rows' ids; only runs with the same one can be paired.
        learning_rate: the peak.
        steps: optimizer steps.
        parameters: "trainable" and "total" numbers of parameters.
        adapter_bytes: size of what was saved.
        seconds_per_step: mean over the training steps.
        seconds: of training, without scoring.
        peak_memory_bytes: of the process, scoring included (CPU: resident, GPU: allocated).
        curve: (step, training loss) as logged.
        scores: (step, validation score) where scored during training.
        options: all options of the training run.
        provenance: versions and hardware.
        base_score: of the unadapted model on the same rows, where this run measured it.
        train_fingerprint: of the training data.
        diverged: a tuning run whose loss was no number; its score means nothing.
    """

    benchmark: str
    method: str
    seed: int
    stage: str
    key: str
    task: str
    metric: str
    rule: str
    score: float
    metrics: dict[str, float]
    items: list[float]
    rows_digest: str
    learning_rate: float
    steps: int
    parameters: dict[str, int]
    adapter_bytes: int
    seconds_per_step: float
    seconds: float
    peak_memory_bytes: int
    curve: list[list[float]]
    scores: list[list[float]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    base_score: float | None = None
    train_fingerprint: str = ""
    diverged: bool = False

    @property
    def fraction(self) -> float:
        """Trainable parameters as a share of all parameters, adapters included."""
        return self.parameters["trainable"] / self.parameters["total"]


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table.

    Attributes:
        name: key in the recipe.
        label: what people read.
        apart: stands apart from the others and takes no part in "best", as full fine-tuning.
    """

    name: str
    label: str
    apart: bool = False


@dataclass(frozen=True)
class BenchmarkEntry:
    """A column of the table.

    Attributes:
        name: key in the recipe.
        label: what people read.
    """

    name: str
    label: str


@dataclass(frozen=True)
class Results:
    """A comparison as far as it has come.

    Attributes:
        title: of the comparison.
        description: a paragraph, may be empty.
        methods: rows in the order of the recipe.
        benchmarks: columns in the order of the recipe.
        seeds: that every cell should have.
        baseline: the method that paired differences are taken against.
        records: of finished runs, both stages.
        base_scores: benchmark -> score of the unadapted model, where known.
    """

    title: str
    description: str
    methods: tuple[MethodEntry, ...]
    benchmarks: tuple[BenchmarkEntry, ...]
    seeds: tuple[int, ...]
    baseline: str | None
    records: tuple[RunRecord, ...]
    base_scores: dict[str, float] = field(default_factory=dict)

    def cell(self, method: str, benchmark: str) -> list[RunRecord]:
        """The runs of one cell of the table, by seed."""
        found = (run for run in self.records if (run.method, run.benchmark, run.stage) == (method, benchmark, "test"))
        return sorted(found, key=lambda run: run.seed)


def write_record(record: RunRecord, path: Path) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"version": VERSION, **asdict(record)}) + "\n", encoding="utf-8")
    partial.replace(path)


def read_record(path: Path) -> RunRecord:
    """Read what `write_record` wrote.

    Raises:
        UserError: if the file is no record of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a record ({error}); {REPEAT}") from error
    known = {item.name for item in fields(RunRecord)}
    if not isinstance(content, dict) or content.pop("version", None) != VERSION or not set(content) <= known:
        raise UserError(f"{path}: is no record of version {VERSION}; {REPEAT}")
    try:
        return RunRecord(**content)
    except TypeError as error:
        raise UserError(f"{path}: is no complete record ({error}); {REPEAT}") from error


def read_records(folder: Path) -> tuple[RunRecord, ...]:
    """All records of a folder, in the order of their file names."""
    return tuple(read_record(path) for path in sorted(folder.glob("*.json")))
