"""From a recipe to runs: every cell of the table, what it is called and what determines its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from padapter.comparison.recipe import Benchmark, Recipe, cell_options
from padapter.comparison.records import RunRecord
from padapter.comparison.sizes import CellSizes, sized
from padapter.data.sources import canonical_split, names_its_split
from padapter.errors import UserError
from padapter.options import TrainOptions, to_plain

# These change how a run is watched, checkpointed or placed, not what it computes. Fused attention rounds otherwise, and
# cached features are rounded to half precision; the report names them among the options in which methods differ.
FREE = (
    "output",
    "quiet",
    "num_workers",
    "save_every",
    "keep_checkpoints",
    "log_every",
    "device",
    "score_base",
    "attention",
    "cache_features",
)


@dataclass(frozen=True)
class Job:
    """One training run to be.

    Attributes:
        stage: "tune" or "test".
        benchmark: key in the recipe.
        method: key in the recipe.
        seed: of the run.
        options: everything `padapter train` needs but the output folder.
    """

    stage: str
    benchmark: str
    method: str
    seed: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique in a comparison, and fit for a file."""
        parts = [self.stage, self.benchmark, self.method]
        if self.stage == "tune":
            parts.append(f"lr-{self.options['learning_rate']!r}")
        return "--".join([*parts, f"seed-{self.seed}"])

    @property
    def key(self) -> str:
        """Digest of the options that determine the result."""
        return digest({name: value for name, value in self.plain().items() if name not in FREE})

    def plain(self) -> dict[str, Any]:
        """The options as a recipe of ``padapter train``, with defaults filled in."""
        return to_plain(TrainOptions(**self.options, output="unused"))


def tuning_jobs(recipe: Recipe, sizes: CellSizes) -> list[Job]:
    """The runs that choose learning rates, on validation rows only.

    Args:
        recipe: with a grid.
        sizes: what a budget has chosen, see `padapter.comparison.sizes.match_sizes`; may be empty.

    Raises:
        UserError: if the recipe has no grid, or a benchmark would tune on its test split.
    """
    if recipe.tuning is None:
        raise UserError(f"{recipe.path}: tune: a grid of learning rates is needed for --tune")
    tuning, jobs = recipe.tuning, []
    for benchmark in recipe.benchmarks:
        rows = _tuning_rows(recipe, benchmark)
        for method in recipe.methods:
            options = sized(cell_options(recipe, benchmark, method), benchmark.name, method.name, sizes)
            options |= {**tuning.options, **rows, "seed": tuning.seed, "score_base": False}
            jobs += [
                Job("tune", benchmark.name, method.name, tuning.seed, {**options, "learning_rate": rate})
                for rate in tuning.grid(benchmark.name, method.name)
            ]
    return jobs


def _tuning_rows(recipe: Recipe, benchmark: Benchmark) -> dict[str, Any]:
    """The data that learning rates are chosen on.

    Raises:
        UserError: if they could be those of the table.
    """
    where = f"{recipe.path}: benchmarks: {benchmark.name}"
    data = benchmark.options["eval"]
    split, tuned = canonical_split(data, benchmark.options["eval_split"]), benchmark.tune_split
    if benchmark.tune_eval is not None:
        same = canonical_split(benchmark.tune_eval, tuned) == split
        if benchmark.tune_eval == data and (same or names_its_split(data)):
            raise UserError(f"{where}: tune_eval and eval are the same rows; learning rates must not be chosen on them")
        return {"eval": benchmark.tune_eval, "eval_split": benchmark.tune_split}
    if names_its_split(data):
        raise UserError(
            f"{where}: eval {data!r} is one split, whatever tune_split says; name other data for learning rates to be "
            "chosen on: tune_eval"
        )
    if canonical_split(data, tuned) == split:
        raise UserError(
            f"{where}: tune_split and eval_split are both {tuned!r}; learning rates must not be chosen on the rows of "
            "the table"
        )
    return {"eval_split": benchmark.tune_split}


def test_jobs(recipe: Recipe, sizes: CellSizes, rates: Mapping[tuple[str, str], float]) -> list[Job]:
    """The runs of the table, one seed after the other, so that an unfinished table is a table of fewer seeds.

    Args:
        recipe: what is compared.
        sizes: what a budget has chosen, see `padapter.comparison.sizes.match_sizes`; may be empty.
        rates: (benchmark, method) -> the chosen learning rate; what is not in it keeps the recipe's.
    """
    jobs = []
    for seed in recipe.seeds:
        for benchmark in recipe.benchmarks:
            for method in recipe.methods:
                options = sized(cell_options(recipe, benchmark, method), benchmark.name, method.name, sizes)
                options["seed"] = seed
                # Once per benchmark is enough for the row of the unadapted model.
                options["score_base"] = seed == recipe.seeds[0] and method is recipe.methods[0]
                rate = rates.get((benchmark.name, method.name))
                if rate is not None:
                    options["learning_rate"] = rate
                jobs.append(Job("test", benchmark.name, method.name, seed, options))
    return jobs


def choose_rates(jobs: list[Job], records: Mapping[str, RunRecord]) -> dict[tuple[str, str], float]:
    """The learning rate with the best validation score of every benchmark and method; of equals the smallest.

    Args:
        jobs: of tuning.
        records: job name -> its record; a cell takes part once all of its rates are there.

    Raises:
        UserError: if a cell's loss was no number at every rate.
    """
    cells: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        cells.setdefault((job.benchmark, job.method), []).append(job)
    chosen = {}
    for cell, rivals in cells.items():
        if all(job.name in records for job in rivals):
            usable = [job for job in rivals if not records[job.name].diverged]
            if not usable:
                raise UserError(f"--tune: {cell[1]} on {cell[0]}: the loss was no number at every rate; add lower ones")
            best = max(usable, key=lambda job: (records[job.name].score, -job.options["learning_rate"]))
            chosen[cell] = float(best.options["learning_rate"])
    return chosen


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for a plain value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing(job: Job, record: RunRecord) -> list[str]:
    """What is different between a job and the run that a record tells of, option by option.

    An option that the record does not know is newer than the run, which did what is its default now.
    """
    now, then = job.plain(), {**default_options(), **record.options}
    names = [name for name in now if name not in FREE and then.get(name) != now[name]]
    return [f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in names]


def default_options() -> dict[str, Any]:
    """What options are where nobody gave them: those of older runs that have come to exist since."""
    return {item.name: item.default for item in fields(TrainOptions) if item.default is not MISSING}
