"""The sizes that a recipe's budget leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from padapter.backbones import load_backbone
from padapter.comparison import budget
from padapter.comparison.counting import SkeletonFactory, skeletons_of
from padapter.comparison.recipe import Contender, Recipe, cell_options
from padapter.errors import UserError
from padapter.tasks import get_task

CellSizes = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Benchmark -> method -> "set", options that set its size, and "drop", names of options that would contradict them."""


@dataclass(frozen=True)
class Sizes:
    """What was found.

    Attributes:
        options: benchmark -> method -> "set" and "drop", see `CellSizes`.
        table: every method at its size, as lines of text.
    """

    options: dict[str, dict[str, dict[str, Any]]]
    table: list[str]


def match_sizes(recipe: Recipe) -> Sizes:
    """Find every method's size for the budget, with the model and the options it has on each benchmark.

    Args:
        recipe: without a budget every method is counted as it is.

    Raises:
        UserError: if a model cannot be loaded, or a method has no size; ``size: false`` leaves it out of the budget.
    """
    load = cache(load_backbone)

    @cache
    def skeletons(model: str, asks: bool) -> SkeletonFactory:
        return skeletons_of(load(model).base_model.config, model, asks=asks)

    options: dict[str, dict[str, dict[str, Any]]] = {}
    found: dict[str, dict[str, budget.Sized]] = {}  # model -> digest of what was counted -> count
    for benchmark in recipe.benchmarks:
        options[benchmark.name] = {}
        for method in recipe.methods:
            values = cell_options(recipe, benchmark, method)
            settings = values.get("method_options", {})
            known = found.setdefault(values["model"], {})
            asks = get_task(values["task"]).asks or not load(values["model"]).captions_apart
            key = repr((asks, method.name, values["method"], sorted(settings.items(), key=repr)))
            if key not in known:
                row = _size(recipe, method, values["method"], settings, skeletons(values["model"], asks))
                again = any(row.label == other.label for other in known.values())
                known[key] = replace(row, label=f"{row.label} on {benchmark.label}") if again else row
            if recipe.budget is not None and method.sized:
                chosen = known[key].options
                options[benchmark.name][method.name] = {
                    "set": {name: value for name, value in chosen.items() if settings.get(name, ...) != value},
                    "drop": [name for name in settings if name not in chosen],
                }
    lines = [line for model, rows in found.items() for line in (f"{model}:", *budget.lines(list(rows.values())))]
    return Sizes(options, lines)


def _size(
    recipe: Recipe, method: Contender, name: str, settings: Mapping[str, Any], skeletons: SkeletonFactory
) -> budget.Sized:
    if recipe.budget is None or not method.sized:
        return budget.table({method.label: (name, settings)}, skeletons)[0]
    try:
        return budget.find_size(name, settings, skeletons, target_fraction=recipe.budget, label=method.label)
    except UserError as problem:
        raise UserError(f"{recipe.path}: methods: {method.name}: {problem} (`size: false`)") from problem


def sized(options: Mapping[str, Any], benchmark: str, method: str, sizes: CellSizes) -> dict[str, Any]:
    """The options of a cell with the size that was found for it.

    Args:
        options: of ``padapter train``.
        benchmark: key in the recipe.
        method: key in the recipe.
        sizes: what `match_sizes` found; a cell that is not in it keeps its options.
    """
    found = sizes.get(benchmark, {}).get(method)
    if found is None:
        return dict(options)
    kept = {name: value for name, value in options.get("method_options", {}).items() if name not in found["drop"]}
    return {**options, "method_options": {**kept, **found["set"]}}


def size_question(recipe: Recipe) -> list[Any]:
    """All that the sizes depend on, as plain values: model, task, method and options of every cell, and the budget."""
    cells = []
    for benchmark in recipe.benchmarks:
        for method in recipe.methods:
            values = cell_options(recipe, benchmark, method)
            what = (values["model"], values["task"], values["method"], values.get("method_options", {}), method.sized)
            cells.append([benchmark.name, method.name, *what])
    return [recipe.budget, cells]
