"""One comparison from recipe to report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.comparison.plan import Job, choose_rates, test_jobs, tuning_jobs
from padapter.comparison.recipe import Recipe, read_recipe
from padapter.comparison.records import BenchmarkEntry, MethodEntry, Results, RunRecord
from padapter.comparison.report import write_report
from padapter.comparison.runner import Outcome, Runner
from padapter.comparison.sizes import ModelSizes, Sizes, match_sizes
from padapter.comparison.watching import watching
from padapter.errors import UserError
from padapter.evaluation.files import output_problems
from padapter.evaluation.results import write_json, write_text
from padapter.options import CompareOptions
from padapter.worlds.shapes.kept import FOLDER as CACHE

SIZES, RECIPE = "sizes.json", "recipe.yaml"


@dataclass(frozen=True)
class Comparison:
    """What a call of `compare` left behind.

    Attributes:
        folder: of the comparison.
        results: as far as they have come.
        reports: the files of the report.
        failed: run -> why it failed.
    """

    folder: Path
    results: Results
    reports: list[Path]
    failed: dict[str, str]


def compare(options: CompareOptions) -> Comparison:
    """Run what is missing of a comparison and write its report.

    Args:
        options: recipe, folder, and what to do.

    Returns:
        The results, also when some runs failed.

    Raises:
        UserError: for a recipe, data or model that cannot be used, before the first run; for a finished run with
            other options.
        KeyboardInterrupt: after Ctrl-C; the running runs have written checkpoints, the same command continues.
    """
    recipe = read_recipe(options.recipe)
    folder = Path(str(options.output))
    with output_problems(folder):
        return _Comparison(recipe, options, folder).go()


class _Comparison:
    def __init__(self, recipe: Recipe, options: CompareOptions, folder: Path) -> None:
        self.recipe = recipe
        self.options = options
        self.folder = folder
        gpus = count_gpus(options.device)
        environment = {CACHE: str((folder / "cache").absolute())}
        jobs = options.jobs or max(gpus, 1)
        self.runner = Runner(folder, jobs=jobs, gpus=gpus, overwrite=options.overwrite, environment=environment)
        self.failed: dict[str, str] = {}

    def go(self) -> Comparison:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / RECIPE, Path(self.recipe.path).read_text(encoding="utf-8"))
        sizes = self._sizes()
        tuning = tuning_jobs(self.recipe, sizes) if self.options.tune else []
        try:
            tuned = self._execute(tuning, "choosing learning rates")
            missing = [job.name for job in tuning if job.name not in tuned]
            if missing and not self.options.report_only:
                raise UserError(
                    f"--tune: {len(missing)} of {len(tuning)} runs did not finish ({_failures(self.failed)}); "
                    "mend what failed and give the same command again"
                )
            rates = choose_rates(tuning, tuned)
            tested = self._execute(test_jobs(self.recipe, sizes, rates), "comparing")
        except KeyboardInterrupt as stop:
            again = f"padapter compare {self.options.recipe} --output {self.folder}"
            raise KeyboardInterrupt(f"interrupted; the same command continues: {again}") from stop
        results = results_of(self.recipe, [*tuned.values(), *tested.values()])
        return Comparison(self.folder, results, write_report(results, self.folder), self.failed)

    def _sizes(self) -> ModelSizes:
        """What the budget leads to, computed once per comparison."""
        if self.recipe.budget is None:
            return {}
        path = self.folder / SIZES
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if known.get("question") != _size_question(self.recipe):
            sizes: Sizes = match_sizes(self.recipe)
            known = {"question": _size_question(self.recipe), "options": sizes.options, "table": sizes.table}
            write_json(path, known)
        return dict(known["options"])

    def _execute(self, jobs: list[Job], title: str) -> dict[str, RunRecord]:
        if not jobs:
            return {}
        done = self.runner.finished(jobs)
        if self.options.report_only:
            return done
        steps = {job.name: job.plain()["max_steps"] or 0 for job in jobs}
        runs = self.folder / "runs"
        with watching(title, len(jobs), len(done), runs, lambda name: steps[name], self.options.quiet) as watch:
            outcome: Outcome = self.runner.execute(jobs, watch)
        self.failed |= outcome.failed
        # In the order of the jobs, whatever the order in which they ended: the same records make the same report.
        return {job.name: outcome.records[job.name] for job in jobs if job.name in outcome.records}


def results_of(recipe: Recipe, records: list[RunRecord]) -> Results:
    """The records of a recipe's runs as a table to be reported.

    Args:
        recipe: names and order of rows and columns.
        records: of its runs.
    """
    return Results(
        title=recipe.title,
        description=recipe.description,
        methods=tuple(MethodEntry(item.name, item.label, item.apart) for item in recipe.methods),
        benchmarks=tuple(BenchmarkEntry(item.name, item.label) for item in recipe.benchmarks),
        seeds=recipe.seeds,
        baseline=recipe.baseline,
        records=tuple(records),
        base_scores={run.benchmark: run.base_score for run in records if run.base_score is not None},
    )


def count_gpus(device: str) -> int:
    """GPUs to spread runs over; 0 for the CPU.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise UserError("--device: there is no GPU that torch can use; give --device cpu")
    return 0 if device == "cpu" else found


def _size_question(recipe: Recipe) -> dict[str, Any]:
    """All that the sizes depend on, as JSON gives it back."""
    methods: Mapping[str, Any] = {item.name: [item.options, item.sized] for item in recipe.methods}
    models = [benchmark.options.get("model", recipe.base.get("model")) for benchmark in recipe.benchmarks]
    return json.loads(json.dumps({"budget": recipe.budget, "models": models, "methods": methods}))


def _failures(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:3]) or "they were not started"
