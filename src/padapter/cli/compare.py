"""``padapter compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from padapter.cli.handlers import prepare
from padapter.options import CompareOptions

if TYPE_CHECKING:
    from padapter.comparison import Comparison
    from padapter.comparison.dry_run import Cell
    from padapter.comparison.recipe import Recipe

FAILED = 1


def compare_command(options: CompareOptions) -> None:
    """Compare methods on benchmarks over seeds: train, score, report. The same command continues a comparison."""
    prepare()
    if options.match or options.dry_run:
        _print_plan(options)
        return
    from padapter.comparison import compare

    done = compare(options)
    _print(done)
    if done.failed:
        raise typer.Exit(FAILED)


def _print_plan(options: CompareOptions) -> None:
    from padapter.comparison import read_recipe

    recipe = read_recipe(options.recipe)
    if options.match:
        from padapter.comparison.sizes import match_sizes

        print("\n".join(match_sizes(recipe).table))
        return
    from padapter.comparison.dry_run import dry_run

    cells, notes = _cells(recipe)
    found = dry_run(cells, notes=notes)
    print("\n".join(found.lines()))
    if not found.ready:
        raise typer.Exit(FAILED)


def _cells(recipe: Recipe) -> tuple[list[Cell], list[str]]:
    """What the comparison would train, at the sizes it would use, and what is to be said of these sizes.

    A recipe with a grid of learning rates is looked at with its tuning runs, which read splits of their own.
    """
    from padapter.comparison.dry_run import Cell, is_here
    from padapter.comparison.plan import Job, test_jobs, tuning_jobs
    from padapter.comparison.sizes import CellSizes, match_sizes

    sizes: CellSizes = {}
    notes = []
    if recipe.budget is not None:
        models = [str(job.options["model"]) for job in test_jobs(recipe, {}, {})]
        absent = [name for name in dict.fromkeys(models) if not is_here(name)]
        if absent:
            notes.append(
                f"the sizes for the budget of {100 * recipe.budget:g} % need the models and are not shown, everything "
                f"is counted as the recipe has it: no weights in {', '.join(absent)}"
            )
        else:
            sizes = match_sizes(recipe).options
    jobs = test_jobs(recipe, sizes, {})
    if recipe.tuning is not None:
        jobs += tuning_jobs(recipe, sizes)
    alike: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.stage, job.benchmark, job.method), []).append(job)
    cells = [
        Cell(
            benchmark=recipe.benchmark(benchmark).label,
            method=method,
            options=group[0].options,
            label=recipe.method(method).label,
            runs=len(group),
            tuning=stage == "tune",
        )
        for (stage, benchmark, method), group in alike.items()
    ]
    return cells, notes


def _print(done: Comparison) -> None:
    from padapter.comparison.report.terminal import print_scores

    print_scores(done.results)
    for name, why in done.failed.items():
        print(f"failed: {name}: {why}")
    if done.failed:
        print("the same command repeats what failed and nothing else")
    print(f"report: {', '.join(str(path) for path in done.reports)}")
