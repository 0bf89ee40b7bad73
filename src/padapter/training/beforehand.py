"""What can be found wrong with a training before a model is loaded, and the data that it is about. Needs no torch."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from padapter.data import LoadedData, load_data, overlap
from padapter.evaluation.asking import resolve_asking, with_prompt
from padapter.evaluation.beforehand import check_model
from padapter.evaluation.files import output_problems
from padapter.evaluation.scoring import with_scoring
from padapter.methods import get_method
from padapter.options import TrainOptions
from padapter.tasks import Task, get_task
from padapter.training.defaults import resolve
from padapter.training.may_begin import check_run_folder


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training.

    Attributes:
        train: rows to learn.
        eval: rows to score on, if there are any.
    """

    train: LoadedData
    eval: LoadedData | None


def data_to_train(options: TrainOptions) -> TrainingData | None:
    """Look at everything that ``padapter train`` is given but the model's weights, and load the data.

    Returns:
        The data; ``None`` for a run that is to be resumed and has finished.

    Raises:
        UserError: for an unknown task or method, options that these do not have, a RUN that exists or was made
            otherwise, a model folder that is not there, or data that cannot be used.
    """
    folder = Path(options.output)
    with output_problems(folder):
        task = task_of(options)
        resolve_asking(task, options)
        resolved, _ = resolve(options, get_method(options.method))
        check_run_folder(folder, resolved)
        check_model(options.model)
        if options.resume and _has_finished(folder):
            return None
        return load_training_data(options, task)


def task_of(options: TrainOptions) -> Task:
    """The task of a run, with its prompt and the way it is scored."""
    return with_scoring(with_prompt(get_task(options.task), options.prompt), options)


def load_training_data(options: TrainOptions, task: Task) -> TrainingData:
    """Load the rows of a training; warns where they share pictures with those it is scored on."""
    # The seed of training does not choose the data: runs with other seeds see the same rows.
    train = load_data(
        options.train,
        task,
        split=options.train_split,
        skip_bad_rows=options.skip_bad_rows,
        limit=options.limit_train,
        for_training=True,
    )
    if options.eval is None:
        return TrainingData(train, None)
    scored = load_data(
        options.eval,
        task,
        split=options.eval_split,
        skip_bad_rows=options.skip_bad_rows,
        limit=options.limit_eval,
    )
    found = overlap((train.name, train.split), (scored.name, scored.split))
    if found is not None:
        warnings.warn(found, stacklevel=3)
    return TrainingData(train, scored)


def _has_finished(run: Path) -> bool:
    try:
        return bool(json.loads((run / "metrics.json").read_text(encoding="utf-8")).get("status") == "finished")
    except (OSError, ValueError, AttributeError):  # none yet; a damaged one is refused where it is needed
        return False
