"""The sizes that a recipe's budget leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from padapter.backbones import load_backbone
from padapter.comparison import budget
from padapter.comparison.counting import skeletons_like
from padapter.comparison.recipe import Benchmark, Recipe, cell_options
from padapter.errors import UserError

ModelSizes = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Model -> method -> "set", options that set its size, and "drop", names of options that would contradict them."""


@dataclass(frozen=True)
class Sizes:
    """What was found.

    Attributes:
        options: model -> method -> "set" and "drop", see `ModelSizes`.
        table: every method at its size, as lines of text.
    """

    options: dict[str, dict[str, dict[str, Any]]]
    table: list[str]


def match_sizes(recipe: Recipe) -> Sizes:
    """Find every method's size for the budget, on every model of the recipe.

    Args:
        recipe: without a budget every method is counted as it is.

    Raises:
        UserError: if a model cannot be loaded, or a method has no size; ``size: false`` leaves it out of the budget.
    """
    options: dict[str, dict[str, dict[str, Any]]] = {}
    lines: list[str] = []
    for model, benchmark in _models(recipe).items():
        skeletons = skeletons_like(load_backbone(model))
        rows, options[model] = [], {}
        for method in recipe.methods:
            values = cell_options(recipe, benchmark, method)
            name, settings = values["method"], values.get("method_options", {})
            if recipe.budget is None or not method.sized:
                rows += budget.table({method.label: (name, settings)}, skeletons)
                continue
            try:
                found = budget.find_size(name, settings, skeletons, target_fraction=recipe.budget, label=method.label)
            except UserError as problem:
                raise UserError(f"{recipe.path}: methods: {method.name}: {problem} (`size: false`)") from problem
            rows.append(found)
            changed = {key: value for key, value in found.options.items() if settings.get(key, ...) != value}
            options[model][method.name] = {
                "set": changed,
                "drop": [key for key in settings if key not in found.options],
            }
        lines += [f"{model}:", *budget.lines(rows)]
    return Sizes(options, lines)


def sized(options: Mapping[str, Any], method: str, sizes: ModelSizes) -> dict[str, Any]:
    """The options of a cell with the size that was found for its method on its model.

    Args:
        options: of ``padapter train``.
        method: key in the recipe.
        sizes: what `match_sizes` found; a method or model that is not in it keeps its options.
    """
    found = sizes.get(options["model"], {}).get(method)
    if found is None:
        return dict(options)
    kept = {name: value for name, value in options.get("method_options", {}).items() if name not in found["drop"]}
    return {**options, "method_options": {**kept, **found["set"]}}


def _models(recipe: Recipe) -> dict[str, Benchmark]:
    """Every model of a recipe with the first benchmark that names it."""
    models: dict[str, Benchmark] = {}
    for benchmark in recipe.benchmarks:
        models.setdefault(cell_options(recipe, benchmark, recipe.methods[0])["model"], benchmark)
    return models
