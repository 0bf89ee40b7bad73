"""``padapter compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from padapter.cli.handlers import prepare
from padapter.options import CompareOptions

if TYPE_CHECKING:
    from padapter.comparison import Comparison

FAILED = 1


def compare_command(options: CompareOptions) -> None:
    """Compare methods on benchmarks over seeds: train, score, report. The same command continues a comparison."""
    from padapter.comparison.beforehand import check_comparison

    prepare(torch_too=False)
    check_comparison(options)
    prepare()
    from padapter.evaluation.processes import refuse_several

    refuse_several("padapter compare")
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
    from padapter.comparison.cells import cells_of
    from padapter.comparison.dry_run import dry_run

    cells, notes = cells_of(recipe)
    found = dry_run(cells, notes=notes)
    print("\n".join(found.lines()))
    if not found.ready:
        raise typer.Exit(FAILED)


def _print(done: Comparison) -> None:
    from padapter.comparison.report.terminal import print_scores

    print_scores(done.results)
    for name, why in done.failed.items():
        print(f"failed: {name}: {why}")
    if done.failed:
        print("the same command repeats what failed and nothing else")
    print(f"report: {', '.join(str(path) for path in done.reports)}")
