"""The cells of a comparison, as a dry run looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from padapter.comparison.plan import Job, test_jobs, tuning_jobs
from padapter.comparison.recipe import Recipe
from padapter.comparison.sizes import CellSizes, match_sizes
from padapter.methods import get_method
from padapter.models import builtin_path
from padapter.options import TrainOptions


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
        asks: whether its model reads questions apart; ``False`` for captions of a family with an arrangement for them.
    """

    benchmark: str
    method: str
    options: Mapping[str, Any]
    label: str = ""
    runs: int = 1
    tuning: bool = False
    asks: bool = True

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


def model_of(cell: Cell) -> str:
    """What stands for a cell's model: its name, with the size of pictures or the arrangement where that matters."""
    options = cell.train_options
    label = options.model if options.image_size is None else f"{options.model} at {options.image_size} px"
    return label if cell.asks else f"{label} for captions"


def settings_of(cell: Cell) -> Key:
    """The cell's method on its model; refuses options the method does not have."""
    options = cell.train_options
    parsed = get_method(options.method).parse(options.method_options)
    return Key(model_of(cell), cell.method, f"{options.method} {sorted(asdict(parsed).items(), key=str)}")


def is_here(model: str) -> bool:
    """Whether a model is built in or a folder with weights, so that it can be loaded without a connection."""
    folder = builtin_path(model) or Path(model).expanduser()
    return (folder / "config.json").is_file() and has_weights(folder)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights that transformers can read."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def cells_of(recipe: Recipe) -> tuple[list[Cell], list[str]]:
    """What the comparison would train, at the sizes it would use, and what is to be said of these sizes.

    A recipe with a grid of learning rates is looked at with its tuning runs, which read splits of their own.
    """
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
