"""What can be found wrong with a comparison before anything is run. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from padapter.comparison.recipe import Recipe, cell_options, read_recipe
from padapter.data.sources import check_there
from padapter.errors import UserError
from padapter.evaluation.asking import resolve_asking, with_prompt
from padapter.evaluation.beforehand import check_model
from padapter.evaluation.files import check_folder, output_problems
from padapter.evaluation.scoring import with_scoring
from padapter.methods import get_method
from padapter.options import CompareOptions, TrainOptions
from padapter.tasks import get_task


class Placed(Protocol):
    """What belongs to a column and a row of the table, such as a run."""

    @property
    def benchmark(self) -> str:
        """Key of the column in the recipe."""

    @property
    def method(self) -> str:
        """Key of the row in the recipe."""


class Cell(NamedTuple):
    """A column and a row by their keys."""

    benchmark: str
    method: str


def check_comparison(options: CompareOptions) -> Recipe:
    """Look at everything that ``padapter compare`` is given but rows and weights.

    Returns:
        The recipe.

    Raises:
        UserError: for a recipe that cannot be used, an output that cannot be written, a name that ``--only`` does not
            find, and, in cells that are to be run, tasks, methods and options that do not exist, or models and data
            that are not there.
    """
    recipe = read_recipe(options.recipe)
    chosen = selection(recipe, options.only)
    if options.output is not None:
        with output_problems(Path(options.output)):
            check_folder(Path(options.output))
    if not (options.report_only or options.dry_run or options.match):
        for benchmark, method in itertools.product(recipe.benchmarks, recipe.methods):
            if chosen(Cell(benchmark.name, method.name)):
                try:
                    _check_cell(cell_options(recipe, benchmark, method))
                except UserError as problem:
                    raise UserError(f"{recipe.path}: {method.name} on {benchmark.name}: {problem}") from problem
    return recipe


def _check_cell(values: dict[str, Any]) -> None:
    options = TrainOptions(**values, output="unused")
    task = with_scoring(with_prompt(get_task(options.task), options.prompt), options)
    resolve_asking(task, options)
    get_method(options.method).parse(options.method_options)
    check_model(options.model)
    for data in (options.train, options.eval):
        if data is not None:
            check_there(data)


def selection(recipe: Recipe, only: str | None) -> Callable[[Placed], bool]:
    """Which runs ``--only`` leaves: those of the benchmarks it names (or of all), by the methods it names (or by all).

    Args:
        recipe: what there is to name.
        only: names with commas between them; ``None`` leaves everything.

    Raises:
        UserError: for a name that is neither a benchmark nor a method.
    """
    names = {name.strip() for name in (only or "").split(",")} - {""}
    benchmarks = [item.name for item in recipe.benchmarks]
    methods = [item.name for item in recipe.methods]
    unknown = sorted(names - {*benchmarks, *methods})
    if unknown:
        known = f"benchmarks: {', '.join(benchmarks)}; methods: {', '.join(methods)}"
        raise UserError(f"--only: {unknown[0]!r} is neither a benchmark nor a method of {recipe.path} ({known})")
    columns, rows = names & {*benchmarks} or {*benchmarks}, names & {*methods} or {*methods}
    return lambda cell: cell.benchmark in columns and cell.method in rows
