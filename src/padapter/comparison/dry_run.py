"""What a comparison would do and what it lacks, found out before the first run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, BlipConfig, PretrainedConfig

from padapter.comparison import budget, published
from padapter.comparison.counting import SkeletonFactory, skeletons_of
from padapter.comparison.measure import ROWS, Cost, measure
from padapter.data.readers import RawRow
from padapter.data.schema import Field, parse_row
from padapter.data.sources import WORLDS, open_source
from padapter.data.stores import ImageStore
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.models import builtin_path
from padapter.options import TrainOptions
from padapter.tasks import get_task

GIB = 1 << 30


@dataclass(frozen=True)
class Cell:
    """One cell of a comparison.

    Attributes:
        benchmark: what people call the column.
        method: what people call the row.
        options: of ``padapter train`` as they are merged for this cell, without ``output``.
    """

    benchmark: str
    method: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """A split of a data set that some cell reads.

    Attributes:
        spec: the data.
        name: of the split.
        rows: number of rows that can be read; 0 if it is missing.
        problem: what is wrong, empty if nothing is.
    """

    spec: str
    name: str
    rows: int
    problem: str = ""


@dataclass(frozen=True)
class DryRun:
    """The findings.

    Attributes:
        cells: how many cells the comparison has.
        models: model -> what was found of it.
        sized: every method with its parameters; one entry per method and model.
        readings: what the slides' shares may be shares of.
        costs: method -> cost of a training step here, or why there is none.
        batch: rows per step of these.
        splits: all data that are read.
        missing: one sentence for each thing that keeps the comparison from running.
    """

    cells: int
    models: dict[str, str]
    sized: tuple[budget.Sized, ...]
    readings: tuple[published.Denominator, ...]
    costs: dict[str, Cost | str]
    batch: int
    splits: tuple[Split, ...]
    missing: tuple[str, ...] = field(default=())

    @property
    def ready(self) -> bool:
        """Whether the comparison can be run."""
        return not self.missing

    def lines(self) -> list[str]:
        """The report as lines of text."""
        told = [f"{self.cells} cells", "", *(f"model {name}: {found}" for name, found in self.models.items())]
        if self.sized:
            told += ["", *budget.lines(self.sized)]
        if self.readings:
            told += ["", *published.lines(self.readings)]
        if self.costs:
            told += ["", f"a training step of {self.batch} rows on this machine's CPU (random weights):"]
            told += [f"  {name}: {_cost(cost)}" for name, cost in self.costs.items()]
        told += ["", "data:"]
        told += [f"  {item.spec} [{item.name}]: {item.problem or f'{item.rows:,} rows'}" for item in self.splits]
        verdict = ["nothing is missing"] if self.ready else [f"missing ({len(self.missing)}):"]
        return [*told, "", *verdict, *(f"  {sentence}" for sentence in self.missing)]


def dry_run(
    cells: Sequence[Cell],
    *,
    configs: Mapping[str, PretrainedConfig] | None = None,
    target_fraction: float | None = None,
    measured: bool = True,
) -> DryRun:
    """Look at everything a comparison needs, and train nothing.

    Models are counted from their configuration, without weights or network. A BLIP that is not there is counted with
    the published sizes of BLIP base, so that the numbers show before the weights are fetched.

    Args:
        cells: of the comparison.
        configs: model -> configuration, for models that are not there; wins over what is found.
        target_fraction: the comparison's budget, if it has one.
        measured: whether to time and weigh training steps (seconds to minutes per method, BLIP only).

    Raises:
        UserError: for options that cannot be: those are mistakes of the recipe, not things that are missing.
    """
    models: dict[str, str] = {}
    missing: list[str] = []
    sized: list[budget.Sized] = []
    readings: list[published.Denominator] = []
    costs: dict[str, Cost | str] = {}
    for name in dict.fromkeys(str(cell.options["model"]) for cell in cells):
        config, models[name], lack = _model(name, (configs or {}).get(name))
        missing += [lack] if lack else []
        if config is None:
            continue
        methods = _methods(cell for cell in cells if str(cell.options["model"]) == name)
        skeletons = skeletons_of(config, name)
        rows = budget.table(methods, skeletons, target_fraction=target_fraction)
        sized += rows
        readings += _readings(rows, skeletons)
        if measured:
            costs |= _costs(config, rows)
    splits = _splits(cells)
    missing += [f"{item.spec} [{item.name}]: {item.problem}" for item in splits if item.problem]
    return DryRun(len(cells), models, tuple(sized), tuple(readings), costs, ROWS, splits, tuple(missing))


def blip_base_config() -> BlipConfig:
    """BLIP base as published, at 224 px: ViT-B/16 and a BERT-base decoder of 30,524 words."""
    config = BlipConfig()
    config.vision_config.image_size = 224
    config.text_config.num_attention_heads = 12  # transformers' default of 8 is none of the published models'
    return config


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
        weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
        lack = "" if weights else f"model {name}: the folder holds no weights (*.safetensors)"
        return config, f"folder with a model of type '{config.model_type}'", lack
    lack = f"model {name}: there is no such folder with a config.json here"
    if "blip" in name.lower() and "blip2" not in name.lower().replace("-", ""):
        return blip_base_config(), "not here; counted with the published sizes of BLIP base at 224 px", lack
    if "mplug" in name.lower():
        lack += ", and padapter cannot read mPLUG: its class is not in transformers"
    return None, "not here, and its sizes are not known; nothing is counted", lack


def _methods(cells: Iterable[Cell]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> method and options, once each; options that differ between benchmarks are those of the first."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for cell in cells:
        options = TrainOptions(**{**cell.options, "output": "unused"})
        get_method(options.method).parse(options.method_options)
        found.setdefault(cell.method, (options.method, dict(options.method_options)))
    return found


def _readings(rows: Sequence[budget.Sized], skeletons: SkeletonFactory) -> list[published.Denominator]:
    trainable = {row.label: row.count.trainable for row in rows if row.count.trainable < row.count.base}
    return published.denominators(skeletons, trainable) if trainable else []


def _costs(config: PretrainedConfig, rows: Sequence[budget.Sized]) -> dict[str, Cost | str]:
    found: dict[str, Cost | str] = {}
    for row in rows:
        try:
            found[row.label] = measure(config, row.method, row.options)
        except UserError as error:
            found[row.label] = str(error)
    return found


def _cost(cost: Cost | str) -> str:
    if isinstance(cost, str):
        return cost
    peak = f"{cost.peak_bytes / GIB:.2f} GiB"
    if not cost.own_peak:
        peak = f"at most {peak} (this system may count the process that measured)"
    return f"{cost.seconds:.2f} s, peak memory {peak}"


def _splits(cells: Sequence[Cell]) -> tuple[Split, ...]:
    """Every split that some cell reads, looked at once."""
    wanted: dict[tuple[str, str, str], None] = {}
    for cell in cells:
        options = TrainOptions(**{**cell.options, "output": "unused"})
        wanted[(options.train, options.train_split, options.task)] = None
        if options.eval is not None:
            wanted[(options.eval, options.eval_split, options.task)] = None
    return tuple(_split(*item) for item in wanted)


def _split(spec: str, split: str, task: str) -> Split:
    """Count the rows of a split and the files they name; nothing is opened but the annotations."""
    if spec.split(":", 1)[0] not in WORLDS and not Path(spec).expanduser().exists():
        return Split(spec, split, 0, "there is no such file or folder here")
    try:
        source = open_source(spec, task, split=split)
    except UserError as error:
        return Split(spec, split, 0, str(error).splitlines()[0])
    fields, bad = get_task(task).fields, []
    for row in source.rows:
        problem = _row_problem(row, fields, source.images)
        if problem:
            bad.append(f"{source.file}, line {row.line}: {problem}")
    if not source.rows:
        return Split(spec, split, 0, "has no rows")
    if bad:
        return Split(spec, split, len(source.rows), f"{len(bad)} of {len(source.rows):,} rows: {bad[0]}")
    return Split(spec, split, len(source.rows))


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
