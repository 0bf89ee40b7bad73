"""One comparison from recipe to report."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from padapter.cache import VARIABLE as CACHE
from padapter.comparison.beforehand import check_comparison, selection
from padapter.comparison.plan import Job, choose_rates, test_jobs, tuning_jobs
from padapter.comparison.recipe import Recipe
from padapter.comparison.records import BenchmarkEntry, MethodEntry, Results, RunRecord
from padapter.comparison.report import write_report
from padapter.comparison.runner import Outcome, Runner
from padapter.comparison.sizes import CellSizes, Sizes, match_sizes, size_question
from padapter.comparison.watching import watching
from padapter.errors import UserError
from padapter.evaluation.files import output_problems, read_json
from padapter.evaluation.results import write_json, write_text
from padapter.methods import get_method
from padapter.options import CompareOptions

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
    recipe = check_comparison(options)
    folder = Path(str(options.output))
    with output_problems(folder):
        return _Comparison(recipe, options, folder).go()


class _Comparison:
    def __init__(self, recipe: Recipe, options: CompareOptions, folder: Path) -> None:
        self.recipe = recipe
        self.options = options
        self.folder = folder
        gpus = count_gpus(options.device)
        environment = {CACHE: os.environ.get(CACHE) or str((folder / "cache").absolute())}
        jobs = options.jobs or max(gpus, 1)
        self.runner = Runner(folder, jobs=jobs, gpus=gpus, overwrite=options.overwrite, environment=environment)
        self.chosen = selection(self.recipe, options.only)
        self.failed: dict[str, str] = {}

    def go(self) -> Comparison:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / RECIPE, Path(self.recipe.path).read_text(encoding="utf-8"))
        sizes = self._sizes()
        tuning = self._placed(tuning_jobs(self.recipe, sizes)) if self._is_tuned() else []
        check_methods([*tuning, *test_jobs(self.recipe, sizes, {})])
        try:
            tuned = self._execute(tuning, "choosing learning rates")
            missing = [job.name for job in tuning if job.name not in tuned and self.chosen(job)]
            if missing and not self.options.report_only:
                raise UserError(
                    f"--tune: {len(missing)} of {len(tuning)} runs did not finish ({_failures(self.failed)}); "
                    "mend what failed and give the same command again"
                )
            rates = choose_rates(tuning, tuned)
            tested = self._execute(self._placed(test_jobs(self.recipe, sizes, rates)), "comparing")
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; the same command continues: {self._command()}") from stop
        check_rows(tuned.values(), tested.values())
        results = results_of(self.recipe, [*tuned.values(), *tested.values()])
        return Comparison(self.folder, results, write_report(results, self.folder), self.failed)

    def _is_tuned(self) -> bool:
        """A folder in which rates were chosen stays tuned: its runs must not be mixed with untuned ones."""
        return self.options.tune or any((self.folder / "records").glob("tune--*.json"))

    def _placed(self, jobs: list[Job]) -> list[Job]:
        return [replace(job, options={**job.options, "device": self.options.device}) for job in jobs]

    def _command(self) -> str:
        words = ["padapter", "compare", self.options.recipe, "--output", str(self.folder)]
        words += ["--tune"] if self.options.tune else []
        words += ["--only", self.options.only] if self.options.only else []
        words += ["--jobs", str(self.options.jobs)] if self.options.jobs else []
        words += ["--device", self.options.device] if self.options.device != "auto" else []
        return shlex.join(words)

    def _sizes(self) -> CellSizes:
        """What the budget leads to, computed once per comparison."""
        if self.recipe.budget is None:
            return {}
        path = self.folder / SIZES
        known = read_json(path, "delete it to have the sizes found again") if path.is_file() else {}
        question = json.loads(json.dumps(size_question(self.recipe), default=str))
        if known.get("question") != question:
            sizes: Sizes = match_sizes(self.recipe)
            known = {"question": question, "options": sizes.options, "table": sizes.table}
            write_json(path, known)
        return dict(known["options"])

    def _execute(self, jobs: list[Job], title: str) -> dict[str, RunRecord]:
        if not jobs:
            return {}
        done = self.runner.finished(jobs)
        if self.options.report_only:
            return done
        jobs = [job for job in jobs if job.name in done or self.chosen(job)]
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


def check_methods(jobs: Iterable[Job]) -> None:
    """Refuse options that a method does not take, before the first run.

    Raises:
        UserError: naming the run.
    """
    for job in jobs:
        try:
            get_method(job.options["method"]).parse(job.options.get("method_options", {}))
        except UserError as problem:
            raise UserError(f"{job.name}: {problem}") from problem


def check_rows(tuned: Iterable[RunRecord], tested: Iterable[RunRecord]) -> None:
    """Refuse to report scores on rows that learning rates were chosen on.

    Raises:
        UserError: naming the benchmark.
    """
    chosen_on = {(run.benchmark, run.rows_digest) for run in tuned if run.rows_digest}
    for run in tested:
        if (run.benchmark, run.rows_digest) in chosen_on:
            raise UserError(
                f"benchmarks: {run.benchmark}: learning rates were chosen on the very rows of the table; "
                "give other data as tune_split or tune_eval, and another --output"
            )


def _failures(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:3]) or "they were not started"
