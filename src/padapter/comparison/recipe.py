"""The recipe of a comparison: which methods meet which benchmarks, how often, and what all runs share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from padapter.errors import UserError
from padapter.options import TrainOptions, split_method
from padapter.values import convert, names_close_to, read_yaml

KEYS = ("title", "description", "base", "seeds", "benchmarks", "methods", "baseline", "budget", "tune")
METHOD_KEYS = ("label", "apart", "grid", "size", "benchmarks")
BENCHMARK_KEYS = ("label", "tune_split", "tune_eval")
TUNE_KEYS = ("learning_rate", "seed", "benchmarks")
# The comparison sets these for every run. The best weights would be chosen by the rows that the table scores.
NOT_IN_RECIPES = ("output", "seed", "config", "resume", "overwrite", "quiet", "score_base", "keep")
# What a benchmark is made of: methods and tuning may not change it, or scores would not be of the same rows and rule.
BENCHMARKS_OWN = ("task", "train", "eval", "train_split", "eval_split", "limit_eval", "skip_bad_rows", "rule", "meteor")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.=,+\[\]]|-(?!-))*")  # two dashes stand between the parts of a run's name


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A column of the table.

    Attributes:
        name: key in the recipe.
        label: what people read.
        options: of ``padapter train``: task, data and what else is special here.
        tune_split: split that learning rates are chosen on.
        tune_eval: data that they are chosen on, where not ``eval``.
    """

    name: str
    label: str
    options: dict[str, Any]
    tune_split: str = "validation"
    tune_eval: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table.

    Attributes:
        name: key in the recipe, with the values of its grid where it has one.
        label: what people read.
        options: of ``padapter train``, ``method`` among them.
        apart: stands apart in the table.
        sized: whether a budget sets its size.
        per_benchmark: benchmark -> options that win over ``options`` there.
    """

    name: str
    label: str
    options: dict[str, Any]
    apart: bool = False
    sized: bool = True
    per_benchmark: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How learning rates are chosen.

    Attributes:
        rates: method -> the grid of rates.
        seed: of the tuning runs.
        options: of ``padapter train`` that differ while tuning.
        per_benchmark: benchmark -> method -> the grid that takes the place of ``rates`` there.
    """

    rates: dict[str, tuple[float, ...]]
    seed: int
    options: dict[str, Any]
    per_benchmark: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)

    def grid(self, benchmark: str, method: str) -> tuple[float, ...]:
        """The rates that are tried for a cell; empty if its rate is not chosen."""
        return self.per_benchmark.get(benchmark, {}).get(method, self.rates.get(method, ()))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A comparison as it was asked for.

    Attributes:
        path: the file.
        title: of the report.
        description: a paragraph for the report.
        base: options of ``padapter train`` that all runs share.
        seeds: one run of every cell for each.
        benchmarks: columns.
        methods: rows.
        baseline: the row that differences are taken against.
        budget: target share of trainable parameters, or None.
        tuning: None where no grid is given.
    """

    path: str
    title: str
    description: str
    base: dict[str, Any]
    seeds: tuple[int, ...]
    benchmarks: tuple[Benchmark, ...]
    methods: tuple[Contender, ...]
    baseline: str | None
    budget: float | None
    tuning: Tuning | None

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark of that name."""
        return next(item for item in self.benchmarks if item.name == name)

    def method(self, name: str) -> Contender:
        """The method of that name."""
        return next(item for item in self.methods if item.name == name)


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file; ``docs/comparing.md`` describes its keys.

    Returns:
        The recipe; every option in it exists and has the right type.

    Raises:
        UserError: naming the file and the key.
    """
    values = read_yaml(path)
    _known(values, KEYS, str(path))
    base = _train_options(values.get("base", {}), f"{path}: base")
    benchmarks = tuple(
        _benchmark(name, body, f"{path}: benchmarks: {name}")
        for name, body in _mapping(values, "benchmarks", path).items()
    )
    names = [item.name for item in benchmarks]
    methods = tuple(
        itertools.chain.from_iterable(
            _contenders(name, body, names, f"{path}: methods: {name}")
            for name, body in _mapping(values, "methods", path).items()
        )
    )
    for items, key in ((methods, "methods"), (benchmarks, "benchmarks")):
        _once([item.name for item in items], f"{path}: {key}")
        _once([item.label for item in items], f"{path}: {key}: label")
        for item in items:
            _file_name(item.name, f"{path}: {key}")
    recipe = Recipe(
        path=str(path),
        title=convert(values.get("title", Path(path).stem), str, f"{path}: title"),
        description=convert(values.get("description", ""), str, f"{path}: description").strip(),
        base=base,
        seeds=_seeds(values.get("seeds", [42]), f"{path}: seeds"),
        benchmarks=benchmarks,
        methods=methods,
        baseline=_baseline(values.get("baseline"), methods, path),
        budget=_budget(values.get("budget"), path),
        tuning=_tuning(values.get("tune"), methods, names, f"{path}: tune"),
    )
    _whole(recipe)
    return recipe


def _mapping(values: Mapping[str, Any], key: str, path: str | Path) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path}: {key}: expected at least one 'name: ...' entry, got {found!r}")
    return {str(name): body for name, body in found.items()}


def _file_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} cannot be a file's name; use letters, digits, single '-', '_', '.', '='")


def _known(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in values:
        if name not in known:
            raise UserError(f"{where}: unknown key {name!r}{names_close_to(str(name), list(known))}")


def _train_options(values: Any, where: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Options of ``padapter train`` in their own types; the method's shorthand is taken apart."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected 'option: value' lines, got {values!r}")
    hints = get_type_hints(TrainOptions)
    known = [item.name for item in fields(TrainOptions) if item.name not in NOT_IN_RECIPES]
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name in extra:
            continue
        if name in NOT_IN_RECIPES:
            raise UserError(f"{where}: {name!r} is set by the comparison and cannot stand in a recipe")
        if name not in known:
            raise UserError(f"{where}: unknown key {name!r}{names_close_to(str(name), [*known, *extra])}")
        chosen[name] = convert(value, hints[name], f"{where}: {name}")
    if "method" in chosen:
        chosen["method"], inline = split_method(chosen["method"])
        chosen["method_options"] = {**inline, **chosen.get("method_options", {})}
    return chosen


def _benchmark(name: str, body: Any, where: str) -> Benchmark:
    options = _train_options(body, where, BENCHMARK_KEYS)
    for needed in ("task", "train", "eval"):
        if needed not in options:
            raise UserError(f"{where}: {needed!r} is needed")
    options.setdefault("eval_split", "test")
    return Benchmark(
        name=name,
        label=convert(body.get("label", name), str, f"{where}: label"),
        options=options,
        tune_split=convert(body.get("tune_split", "validation"), str, f"{where}: tune_split"),
        tune_eval=None if "tune_eval" not in body else convert(body["tune_eval"], str, f"{where}: tune_eval"),
    )


def _contenders(name: str, body: Any, benchmarks: list[str], where: str) -> list[Contender]:
    if isinstance(body, str):
        body = {"method": body}
    options = _train_options({} if body is None else body, where, METHOD_KEYS)
    body = body or {}
    options.setdefault("method", name)
    _not_the_benchmarks(options, where)
    per_benchmark = {
        _one_of(key, benchmarks, f"{where}: benchmarks"): _train_options(value, f"{where}: benchmarks: {key}")
        for key, value in (body.get("benchmarks") or {}).items()
    }
    for key, changes in per_benchmark.items():
        _not_the_benchmarks(changes, f"{where}: benchmarks: {key}")
    label = convert(body.get("label", name), str, f"{where}: label")
    common = {
        "apart": convert(body.get("apart", False), bool, f"{where}: apart"),
        "sized": convert(body.get("size", True), bool, f"{where}: size"),
        "per_benchmark": per_benchmark,
    }
    if "grid" not in body:
        return [Contender(name=name, label=label, options=options, **common)]
    return [
        Contender(
            name=f"{name}[{_spell(point)}]",
            label=f"{label} ({_spell(point, ', ')})",
            options={**options, "method_options": {**options.get("method_options", {}), **point}},
            **common,
        )
        for point in _points(body["grid"], f"{where}: grid")
    ]


def _not_the_benchmarks(options: Mapping[str, Any], where: str, allowed: tuple[str, ...] = ()) -> None:
    for name in options:
        if name in BENCHMARKS_OWN and name not in allowed:
            raise UserError(f"{where}: {name!r} belongs to the benchmark; all methods are scored on the same rows")


def _points(grid: Any, where: str) -> list[dict[str, Any]]:
    """Every combination of the values of a grid, the last option running fastest."""
    if not isinstance(grid, Mapping) or not grid or not all(isinstance(v, list) and v for v in grid.values()):
        raise UserError(f"{where}: expected 'option: [value, ...]' lines, got {grid!r}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _spell(point: Mapping[str, Any], between: str = ",") -> str:
    return between.join(f"{key}={value}" for key, value in point.items())


def _seeds(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: expected a list of whole numbers, got {values!r}")
    seeds = [convert(value, int, where) for value in values]
    if min(seeds) < 0:
        raise UserError(f"{where}: a seed is at least 0, got {min(seeds)}")
    _once([str(seed) for seed in seeds], where)
    return tuple(seeds)


def _baseline(value: Any, methods: tuple[Contender, ...], path: str | Path) -> str | None:
    return None if value is None else _one_of(str(value), [item.name for item in methods], f"{path}: baseline")


def _budget(value: Any, path: str | Path) -> float | None:
    if value is None:
        return None
    share = float(convert(value, float, f"{path}: budget"))
    if not 0 < share < 1:
        raise UserError(f"{path}: budget: is a share of all parameters between 0 and 1, got {share:g}")
    return share


def _tuning(values: Any, methods: tuple[Contender, ...], benchmarks: list[str], where: str) -> Tuning | None:
    if values is None:
        return None
    options = _train_options(values, where, TUNE_KEYS)
    _not_the_benchmarks(options, where, allowed=("limit_eval",))
    names = [item.name for item in methods]
    special = values.get("benchmarks", {})
    if not isinstance(special, Mapping):
        raise UserError(f"{where}: benchmarks: expected 'benchmark: rates' lines, got {special!r}")
    return Tuning(
        rates=_rates(values.get("learning_rate"), names, f"{where}: learning_rate"),
        seed=convert(values.get("seed", 0), int, f"{where}: seed"),
        options=options,
        per_benchmark={
            _one_of(str(name), benchmarks, f"{where}: benchmarks"): _rates(grid, names, f"{where}: benchmarks: {name}")
            for name, grid in special.items()
        },
    )


def _rates(grid: Any, methods: list[str], where: str) -> dict[str, tuple[float, ...]]:
    """A grid of learning rates: a list for all methods, or one list for each of some."""
    if isinstance(grid, list):
        grid = dict.fromkeys(methods, grid)
    if not isinstance(grid, Mapping) or not grid:
        raise UserError(f"{where}: expected a list of rates, or 'method: [rate, ...]' lines")
    rates: dict[str, tuple[float, ...]] = {}
    for name, listed in grid.items():
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{where}: {name}: expected a list of rates, got {listed!r}")
        found = sorted(convert(rate, float, f"{where}: {name}") for rate in listed)
        if found[0] <= 0:
            raise UserError(f"{where}: {name}: a rate is above 0, got {found[0]:g}")
        rates[_one_of(str(name), methods, where)] = tuple(dict.fromkeys(found))
    return rates


def _one_of(name: str, known: list[str], where: str) -> str:
    if name not in known:
        raise UserError(f"{where}: unknown name {name!r}{names_close_to(name, known)}")
    return name


def _once(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: {', '.join(twice)}: given twice")


def _whole(recipe: Recipe) -> None:
    """Build the options of every cell once, so that what is wrong shows before the first run."""
    for benchmark, method in itertools.product(recipe.benchmarks, recipe.methods):
        where = f"{recipe.path}: {method.name} on {benchmark.name}"
        values = cell_options(recipe, benchmark, method)
        if "model" not in values:
            raise UserError(f"{recipe.path}: base: 'model' is needed")
        try:
            TrainOptions(**values, output="unused")
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from problem


def cell_options(recipe: Recipe, benchmark: Benchmark, method: Contender) -> dict[str, Any]:
    """The options of one cell: base, then benchmark, then method, then the method's for this benchmark."""
    merged: dict[str, Any] = {}
    for layer in (recipe.base, benchmark.options, method.options, method.per_benchmark.get(benchmark.name, {})):
        settings = {**merged.get("method_options", {}), **layer.get("method_options", {})}
        merged = {**merged, **layer}
        if settings:
            merged["method_options"] = settings
    return merged
