"""What a comparison would do and what it lacks, found out before the first run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from padapter.backbones.loading import family_of
from padapter.backbones.square_pictures import SquarePictures, check_side
from padapter.comparison import budget, published
from padapter.comparison.cells import Cell, Key, has_weights, settings_of
from padapter.comparison.counting import SkeletonFactory, skeletons_of
from padapter.comparison.durations import Duration, duration_lines, duration_of
from padapter.comparison.measure import ROWS, Cost, measure
from padapter.comparison.splits import HUB_ID, Split, find_splits
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.models import builtin_path
from padapter.tasks import get_task

GIB = 1 << 30


@dataclass(frozen=True)
class DryRun:
    """The findings.

    Attributes:
        cells: all that was asked about.
        models: model, with the size of its pictures where cells set it -> what was found of it.
        sized: every method of every model with its parameters.
        readings: model -> what the slides' shares may be shares of.
        costs: cost of a training step here, or why there is none.
        durations: one for each cell; empty if nothing was measured.
        splits: all data that are read.
        notes: what should be known and keeps nothing from running.
        missing: one sentence for each thing that keeps the comparison from running.
    """

    cells: tuple[Cell, ...]
    models: dict[str, str]
    sized: dict[Key, budget.Sized]
    readings: dict[str, list[published.Denominator]]
    costs: dict[Key, Cost | str]
    durations: tuple[Duration, ...]
    splits: tuple[Split, ...]
    notes: tuple[str, ...] = field(default=())
    missing: tuple[str, ...] = field(default=())

    @property
    def ready(self) -> bool:
        """Whether nothing was found that keeps the comparison from running."""
        return not self.missing

    def lines(self) -> list[str]:
        """The report as lines of text."""
        runs, tuning = (sum(cell.runs for cell in self.cells if cell.tuning is kind) for kind in (False, True))
        cells = sum(not cell.tuning for cell in self.cells)
        told = [f"{_counted(cells, 'cell')}, {_counted(runs, 'run')}"]
        told[0] += f"; {_counted(tuning, 'run')} to choose learning rates" if tuning else ""
        told.append("")
        for name, found in self.models.items():
            rows = _distinct({key: row for key, row in self.sized.items() if key.model == name})
            told.append(f"model {name}: {found}")
            told += [f"  {line}" for line in budget.lines([*rows.values()])] if rows else []
            if self.readings.get(name):
                told += [f"  {line}" for line in published.lines(self.readings[name])]
            if any(key in self.costs for key in rows):
                told.append(
                    f"  a training step of {ROWS} rows on this machine's CPU (random weights, one text per row):"
                )
                told += [f"    {row.label}: {_cost(self.costs[key])}" for key, row in rows.items()]
        if self.durations:
            told += ["", *duration_lines(self.durations)]
        told += ["", "data:", *(f"  {item.line()}" for item in self.splits)]
        told += ["", "notes:", *(f"  {note}" for note in self.notes)] if self.notes else []
        verdict = ["nothing is missing"] if self.ready else [f"missing ({len(self.missing)}):"]
        return [*told, "", *verdict, *(f"  {sentence}" for sentence in self.missing)]


def dry_run(
    cells: Sequence[Cell],
    *,
    configs: Mapping[str, PretrainedConfig] | None = None,
    notes: Sequence[str] = (),
    measured: bool = True,
) -> DryRun:
    """Look at everything a comparison needs, and train nothing.

    Models are counted from their configuration, without weights or network; those of `recipes/paper` that are not
    there with their published sizes. Every method is counted at exactly the size that its cells have.

    Args:
        cells: of the comparison, tuning included where its data are to be looked at.
        configs: model -> configuration, for models that are not there; wins over what is found.
        notes: what the report shall say besides.
        measured: whether to time and weigh training steps (seconds to minutes per method, BLIP and mPLUG only).

    Raises:
        UserError: for options that cannot be: those are mistakes of the recipe, not things that are missing.
    """
    models: dict[str, str] = {}
    missing: list[str] = []
    sized: dict[Key, budget.Sized] = {}
    readings: dict[str, list[published.Denominator]] = {}
    costs: dict[Key, Cost | str] = {}
    names = dict.fromkeys(cell.train_options.model for cell in cells)
    found = {name: _model(name, (configs or {}).get(name)) for name in names}
    cells = [_arranged(cell, found[cell.train_options.model][0]) for cell in cells]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(settings_of(cell).model, []).append(cell)
    for label, mine in groups.items():
        first = mine[0].train_options
        config, models[label], lack = found[first.model]
        missing += [lack] if lack and lack not in missing else []
        if config is None:
            continue
        config = _seeing(config, first.image_size)
        skeletons = skeletons_of(config, first.model, asks=mine[0].asks)
        rows = _sized(mine, skeletons)
        sized |= rows
        readings[label] = _readings([*_distinct(rows).values()], skeletons)
        if measured:
            costs |= _costs(config, rows, asks=mine[0].asks)
    splits = find_splits(cells)
    missing += [item.line() for item in splits.values() if item.problem]
    durations = tuple(duration_of(cell, sized, costs, splits) for cell in cells) if measured else ()
    return DryRun(
        tuple(cells), models, sized, readings, costs, durations, tuple(splits.values()), tuple(notes), tuple(missing)
    )


def _model(name: str, given: PretrainedConfig | None) -> tuple[PretrainedConfig | None, str, str]:
    """Configuration of a model, what to say of it, and what is missing (empty if nothing is)."""
    if given is not None:
        return given, f"configuration of type '{given.model_type}'", ""
    folder = builtin_path(name) or Path(name).expanduser()
    if (folder / "config.json").is_file():
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            return None, "cannot be read", f"model {name}: {str(error).splitlines()[0]}"
        lack = "" if has_weights(folder) else f"model {name}: the folder holds no weights (*.safetensors)"
        return config, f"folder with a model of type '{config.model_type}'", lack
    if HUB_ID.fullmatch(name) and not folder.exists():
        return *_hub_model(name), ""
    lack = f"model {name}: there is no such folder with a config.json here"
    if name in published.CONFIGS:
        what, make = published.CONFIGS[name]
        return make(), f"not here; counted with the published sizes of {what}", lack
    return None, "not here, and its sizes are not known; nothing is counted", lack


def _arranged(cell: Cell, config: PretrainedConfig | None) -> Cell:
    """The cell with the arrangement of its model that its task needs."""
    apart = config is not None and family_of(config, cell.train_options.model).captions_apart
    return replace(cell, asks=False) if apart and not get_task(cell.train_options.task).asks else cell


def _seeing(config: PretrainedConfig, side: int | None) -> PretrainedConfig:
    """The configuration for pictures of another size.

    Raises:
        UserError: if models of this type, or these patches, cannot; a mistake of the recipe.
    """
    if side is None:
        return config
    if not issubclass(family_of(config, config.model_type), SquarePictures):
        raise UserError(f"--image-size: not for models of type '{config.model_type}' yet; leave it out")
    changed = copy.deepcopy(config)
    check_side(side, changed.vision_config.patch_size)
    changed.vision_config.image_size = side
    return changed


def _hub_model(name: str) -> tuple[PretrainedConfig | None, str]:
    """Configuration of a model of the hub as far as the local cache has it; nothing is fetched."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None, "a hub id; not in the local cache, so nothing is counted"
    return config, f"a hub id; counted from the local cache, a model of type '{config.model_type}'"


def _sized(cells: Sequence[Cell], skeletons: SkeletonFactory) -> dict[Key, budget.Sized]:
    """Parameters of every method on one model, as its cells have it.

    Options that change no number (p, mu) make no row of their own: their key leads to the row that is there. A size
    that only some benchmark has makes one, and its label says where.
    """
    found: dict[Key, budget.Sized] = {}
    for cell in cells:
        key, options = settings_of(cell), cell.train_options
        if key in found:
            continue
        label = cell.label or cell.method
        if any(known.method != cell.method and row.label == label for known, row in found.items()):
            label = f"{label} ({cell.method})"
        (row,) = budget.table({label: (options.method, options.method_options)}, skeletons)
        alike = [other for known, other in found.items() if known.method == cell.method]
        same = next((other for other in alike if (other.method, other.count) == (row.method, row.count)), None)
        if alike:
            row = replace(row, label=f"{label} on {cell.benchmark}")
        found[key] = same or _with_size(row)
    return found


def _distinct(rows: Mapping[Key, budget.Sized]) -> dict[Key, budget.Sized]:
    """One key of each row."""
    firsts = {id(row): key for key, row in reversed([*rows.items()])}
    return {key: row for key, row in rows.items() if firsts[id(row)] == key}


def _with_size(row: budget.Sized) -> budget.Sized:
    """A row that says which option sets its size, where one was given."""
    size = get_method(row.method).size
    given = {str(name).replace("-", "_"): value for name, value in row.options.items()}
    for name in (size.name, *size.replaces) if size else ():
        if given.get(name) is not None:
            return replace(row, knob=name, size=int(given[name]))
    return row


def _readings(rows: Sequence[budget.Sized], skeletons: SkeletonFactory) -> list[published.Denominator]:
    trainable = {row.label: row.count.trainable for row in rows if row.count.trainable < row.count.base}
    return published.denominators(skeletons, trainable) if trainable else []


def _costs(config: PretrainedConfig, rows: Mapping[Key, budget.Sized], *, asks: bool) -> dict[Key, Cost | str]:
    """What a step costs, measured once for every row of the table."""
    found: dict[int, Cost | str] = {}
    for row in _distinct(rows).values():
        try:
            found[id(row)] = measure(config, row.method, row.options, asks)
        except UserError as error:
            found[id(row)] = str(error)
    return {key: found[id(row)] for key, row in rows.items()}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _cost(cost: Cost | str) -> str:
    if isinstance(cost, str):
        return cost
    peak = f"{cost.peak_bytes / GIB:.2f} GiB"
    if not cost.own_peak:
        peak = f"at most {peak} (this system may count the process that measured)"
    return f"{cost.seconds:.2f} s, peak memory {peak}"
