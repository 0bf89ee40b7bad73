"""What a comparison would do and what it lacks, found out before the first run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PretrainedConfig

from padapter.comparison import budget, published
from padapter.comparison.counting import SkeletonFactory, skeletons_of
from padapter.comparison.measure import ROWS, Cost, extrapolate, measure
from padapter.data.readers import ANNOTATION_SUFFIXES, RawRow
from padapter.data.schema import Field, parse_row
from padapter.data.sources import WORLDS, open_source
from padapter.data.stores import ImageStore
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.models import builtin_path
from padapter.options import TrainOptions
from padapter.tasks import get_task

GIB = 1 << 30
HOUR = 3600
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Cell:
    """One cell of a comparison.

    Attributes:
        benchmark: what people call the column.
        method: the row's name, which no other row has.
        options: of ``padapter train`` as they are used for this cell, sizes included, without ``output``.
        label: what people call the row; default its name.
        runs: how many trainings it takes: seeds, or learning rates to be tried.
        tuning: whether it only chooses a learning rate.
    """

    benchmark: str
    method: str
    options: Mapping[str, Any]
    label: str = ""
    runs: int = 1
    tuning: bool = False

    @property
    def train_options(self) -> TrainOptions:
        """The options, checked.

        Raises:
            UserError: for options that cannot be.
        """
        return TrainOptions(**{**self.options, "output": "unused"})


class Key(NamedTuple):
    """What has one number of parameters and one cost: a method on a model, with its options as plain text."""

    model: str
    method: str
    options: str


@dataclass(frozen=True)
class Split:
    """A split of a data set that some cell reads.

    Attributes:
        spec: the data.
        name: of the split.
        rows: number of rows that can be read; 0 if it is missing.
        problem: what is wrong, empty if nothing is.
        sequences: mean number of training sequences of a row (distinct answers or captions); 0 if unknown.
        unseen: why it was not looked at although nothing is wrong, empty if it was.
    """

    spec: str
    name: str
    rows: int
    problem: str = ""
    sequences: float = 0.0
    unseen: str = ""

    def line(self) -> str:
        """What was found, as text."""
        return f"{self.spec} [{self.name}]: {self.problem or self.unseen or f'{self.rows:,} rows'}"


@dataclass(frozen=True)
class Duration:
    """How long all runs of a cell may take on the machine that measured a step.

    Attributes:
        cell: the cell.
        seconds: of all its runs; ``None`` if unknown.
        found: what the number was made of, or why there is none.
    """

    cell: Cell
    seconds: float | None
    found: str

    def line(self) -> str:
        """What was found, as text."""
        name = f"{self.cell.benchmark}, {self.cell.label or self.cell.method}{' (tuning)' * self.cell.tuning}"
        return f"{name}: {'unknown' if self.seconds is None else _hours(self.seconds)}: {self.found}"


@dataclass(frozen=True)
class DryRun:
    """The findings.

    Attributes:
        cells: all that was asked about.
        models: model -> what was found of it.
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
        told = [f"{cells} cells, {runs} runs" + (f"; {tuning} runs to choose learning rates" if tuning else ""), ""]
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
            told += ["", *_duration_lines(self.durations)]
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
        measured: whether to time and weigh training steps (seconds to minutes per method, BLIP only).

    Raises:
        UserError: for options that cannot be: those are mistakes of the recipe, not things that are missing.
    """
    models: dict[str, str] = {}
    missing: list[str] = []
    sized: dict[Key, budget.Sized] = {}
    readings: dict[str, list[published.Denominator]] = {}
    costs: dict[Key, Cost | str] = {}
    for name in dict.fromkeys(str(cell.options["model"]) for cell in cells):
        mine = [cell for cell in cells if str(cell.options["model"]) == name]
        for cell in mine:
            _settings(cell)
        config, models[name], lack = _model(name, (configs or {}).get(name))
        missing += [lack] if lack else []
        if config is None:
            continue
        skeletons = skeletons_of(config, name)
        rows = _sized(mine, skeletons)
        sized |= rows
        readings[name] = _readings([*_distinct(rows).values()], skeletons)
        if measured:
            costs |= _costs(config, rows)
    splits = _splits(cells)
    missing += [item.line() for item in splits.values() if item.problem]
    durations = tuple(_duration(cell, sized, costs, splits) for cell in cells) if measured else ()
    return DryRun(
        tuple(cells), models, sized, readings, costs, durations, tuple(splits.values()), tuple(notes), tuple(missing)
    )


def is_here(model: str) -> bool:
    """Whether a model is built in or a folder with weights, so that it can be loaded without a connection."""
    folder = builtin_path(model) or Path(model).expanduser()
    return (folder / "config.json").is_file() and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


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
        lack = "" if _has_weights(folder) else f"model {name}: the folder holds no weights (*.safetensors)"
        return config, f"folder with a model of type '{config.model_type}'", lack
    if _HUB_ID.fullmatch(name) and not folder.exists():
        return *_hub_model(name), ""
    lack = f"model {name}: there is no such folder with a config.json here"
    if name in published.CONFIGS:
        what, make = published.CONFIGS[name]
        return make(), f"not here; counted with the published sizes of {what}", lack
    lack += f", and {published.UNREADABLE[name]}" if name in published.UNREADABLE else ""
    return None, "not here, and its sizes are not known; nothing is counted", lack


def _hub_model(name: str) -> tuple[PretrainedConfig | None, str]:
    """Configuration of a model of the hub as far as the local cache has it; nothing is fetched."""
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None, "a hub id; not in the local cache, so nothing is counted"
    return config, f"a hub id; counted from the local cache, a model of type '{config.model_type}'"


def _settings(cell: Cell) -> Key:
    """The cell's method on its model; refuses options the method does not have."""
    options = cell.train_options
    parsed = get_method(options.method).parse(options.method_options)
    return Key(options.model, cell.method, f"{options.method} {sorted(asdict(parsed).items(), key=str)}")


def _sized(cells: Sequence[Cell], skeletons: SkeletonFactory) -> dict[Key, budget.Sized]:
    """Parameters of every method on one model, as its cells have it.

    Options that change no number (p, mu) make no row of their own: their key leads to the row that is there. A size
    that only some benchmark has makes one, and its label says where.
    """
    found: dict[Key, budget.Sized] = {}
    for cell in cells:
        key, options = _settings(cell), cell.train_options
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


def _costs(config: PretrainedConfig, rows: Mapping[Key, budget.Sized]) -> dict[Key, Cost | str]:
    """What a step costs, measured once for every row of the table."""
    found: dict[int, Cost | str] = {}
    for row in _distinct(rows).values():
        try:
            found[id(row)] = measure(config, row.method, row.options)
        except UserError as error:
            found[id(row)] = str(error)
    return {key: found[id(row)] for key, row in rows.items()}


def _cost(cost: Cost | str) -> str:
    if isinstance(cost, str):
        return cost
    peak = f"{cost.peak_bytes / GIB:.2f} GiB"
    if not cost.own_peak:
        peak = f"at most {peak} (this system may count the process that measured)"
    return f"{cost.seconds:.2f} s, peak memory {peak}"


_SplitName = tuple[str, str, str]


def _duration(
    cell: Cell, sized: Mapping[Key, Any], costs: Mapping[Key, Cost | str], splits: Mapping[_SplitName, Split]
) -> Duration:
    """The time of all runs of a cell, scoring left out."""
    options, key = cell.train_options, _settings(cell)
    if key not in sized:
        return Duration(cell, None, "the model's sizes are not known")
    cost = costs[key]
    if isinstance(cost, str):
        return Duration(cell, None, "its step was not measured")
    split = splits[(options.train, options.train_split, options.task)]
    estimate = extrapolate(cost, options, split.rows or None, split.sequences or 1.0)
    if estimate is None:
        return Duration(cell, None, f"the rows of {split.spec} [{split.name}] are not known")
    texts = (
        f"{split.sequences:.2f} texts per row" if split.sequences else "1 text per row assumed, the data are not known"
    )
    runs = f"{cell.runs} run{'s' * (cell.runs > 1)}"
    return Duration(cell, cell.runs * estimate[1], f"{runs} of {estimate[0]:,} steps, {texts}")


def _duration_lines(durations: Sequence[Duration]) -> list[str]:
    known = [item.seconds for item in durations if item.seconds is not None]
    left_out = len(durations) - len(known)
    total = f"{_hours(sum(known))} for all" if known else "unknown"
    if left_out:
        total += f"{' that are known' * bool(known)}; {left_out} of {len(durations)} are not known"
    return [
        "training time on this machine's CPU, extrapolated: the measured steps times rows and texts, not a run.",
        "Loading data, scoring and checkpoints are left out; other hardware differs by orders of magnitude.",
        *(f"  {item.line()}" for item in durations),
        f"  in all: {total}",
    ]


def _hours(seconds: float) -> str:
    hours = seconds / HOUR
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _splits(cells: Sequence[Cell]) -> dict[_SplitName, Split]:
    """Every split that some cell reads, looked at once: (data, split, task) -> what was found."""
    wanted: dict[_SplitName, None] = {}
    for cell in cells:
        options = cell.train_options
        wanted[(options.train, options.train_split, options.task)] = None
        if options.eval is not None:
            wanted[(options.eval, options.eval_split, options.task)] = None
    return {item: _split(*item) for item in wanted}


def _split(spec: str, split: str, task_name: str) -> Split:
    """Count the rows of a split and the files they name; nothing is opened but the annotations."""
    if spec.split(":", 1)[0] not in WORLDS and not Path(spec).expanduser().exists():
        if _HUB_ID.fullmatch(spec) and Path(spec).suffix.lower() not in (*ANNOTATION_SUFFIXES, ".ndjson"):
            return Split(spec, split, 0, unseen="a hub id; nothing is fetched here, so nothing is counted")
        return Split(spec, split, 0, "there is no such file or folder here")
    try:
        source = open_source(spec, task_name, split=split)
    except UserError as error:
        return Split(spec, split, 0, str(error).splitlines()[0])
    task, bad, texts = get_task(task_name), [], 0
    for row in source.rows:
        problem = _row_problem(row, task.fields, source.images)
        if problem:
            bad.append(f"{source.file}, line {row.line}: {problem}")
        elif row.values is not None:
            texts += len(task.targets(parse_row(row.values, task.fields).values))
    if not source.rows:
        return Split(spec, split, 0, "has no rows")
    sequences = texts / max(len(source.rows) - len(bad), 1)
    problem = f"{len(bad)} of {len(source.rows):,} rows: {bad[0]}" if bad else ""
    return Split(spec, split, len(source.rows), problem, sequences)


def _row_problem(row: RawRow, fields: Sequence[Field], images: ImageStore) -> str:
    """The first thing that is wrong with a row; empty if nothing is."""
    if row.values is None:
        return row.error or "cannot be read"
    for name, message in parse_row(row.values, fields).problems:
        return f"{name}: {message}"
    try:
        images.locate(row.values.get("image"))
    except UserError as error:
        return f"image: {error}"
    return ""
