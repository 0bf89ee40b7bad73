"""What can be found wrong with a command before a model is loaded, and the data that it is about.

Nothing here imports torch: who has misspelt a name learns it at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from padapter.data import LoadedData, load_data
from padapter.data.schema import asked_fields
from padapter.errors import UserError
from padapter.evaluation.files import check_file, check_folder, output_problems
from padapter.evaluation.scoring import with_scoring
from padapter.options import EvalOptions, PredictOptions, SourceOptions, TrainOptions, options_from, refuse
from padapter.tasks import Task, get_task
from padapter.tasks.unanswered import unanswered

if TYPE_CHECKING:
    from datasets import Dataset

FULL = "full"


@dataclass(frozen=True)
class Questions:
    """Rows to answer.

    Attributes:
        rows: with ``id``, ``image`` and the fields that the task asks about.
        fingerprint: of the rows and their pictures.
    """

    rows: Dataset
    fingerprint: str


def data_to_score(options: EvalOptions) -> LoadedData:
    """Look at everything that ``padapter eval`` is given but the model's weights, and load the data.

    Raises:
        UserError: the output exists or cannot be written, the run or the adapter is not there, options contradict the
            run, scoring needs something that is not installed, or the data cannot be used.
    """
    folder = Path(options.output) if options.output is not None else None
    with output_problems(folder):
        if folder is not None:
            if (folder / "metrics.json").exists() and not options.overwrite:
                raise UserError(f"--output: {folder} already holds results; choose another folder or give --overwrite")
            check_folder(folder)
        task = check_source(options)
        return load_data(
            options.data, task, split=options.split, skip_bad_rows=options.skip_bad_rows, limit=options.limit
        )


def rows_to_answer(options: PredictOptions) -> Questions:
    """The same for ``padapter predict``; the rows need no answers.

    Raises:
        UserError: see :func:`data_to_score`; or the picture or the text that belongs to it is not there.
    """
    output = Path(options.output) if options.output is not None else None
    with output_problems(output):
        if output is not None:
            if output.exists() and not options.overwrite:
                raise UserError(f"--output: {output} exists; choose another file or give --overwrite")
            check_file(output)
        task = check_source(options)
        if options.data is None:
            image = str(options.image)
            row = one_row(task, image, options.text)
            digest = hashlib.sha256(json.dumps([image, options.text]).encode())
            digest.update(Path(image).read_bytes())
            return Questions(row, digest.hexdigest()[:16])
        data = load_data(
            options.data,
            unanswered(task),
            split=options.split,
            skip_bad_rows=options.skip_bad_rows,
            limit=options.limit,
        )
        return Questions(data.dataset, data.fingerprint)


def check_source(options: SourceOptions) -> Task:
    """Look at what answers, without loading it.

    Returns:
        The task.

    Raises:
        UserError: for a run or an adapter that is not there or not complete, a model folder that is not there, a list
            of candidates that cannot be read, and options that the task does not have.
    """
    trained = trained_options(options, Path(options.run)) if options.run is not None else None
    task = with_scoring(get_task(trained.task if trained is not None else str(options.task)), options, trained)
    listed_candidates(options.candidates)
    adapter_folder(options)
    if options.model is not None:
        check_model(options.model)
    return task


def check_model(model: str) -> None:
    """Refuse a model that can only be a folder, and is none.

    Raises:
        UserError: naming ``--model``.
    """
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().exists():
        raise refuse("--model", f"there is no such folder: {model}")


def trained_options(options: SourceOptions, run: Path) -> TrainOptions:
    """What a run was made with.

    Raises:
        UserError: for a folder that is no run, a run without weights, or another task than the run's.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"--run: {run} is not a folder written by `padapter train` (it has no config.yaml)")
    trained = options_from(TrainOptions, config)
    if options.task is not None and options.task != trained.task:
        raise UserError(f"--task: {run} was trained for {trained.task!r}, not {options.task!r}; leave --task out")
    weights = weights_name(trained.method)
    if not (run / weights).is_dir():
        command = f"padapter train --resume --output {run}"
        raise UserError(f"--run: {run} holds no {weights}; its training did not finish. Continue with: {command}")
    return trained


def weights_name(method: str) -> str:
    """The folder of a run with what it learned: ``adapter``, or ``model`` for full fine-tuning."""
    return "model" if method == FULL else "adapter"


def adapter_folder(options: SourceOptions) -> Path | None:
    """The folder that ``--adapter`` names.

    Raises:
        UserError: if there is none.
    """
    if options.adapter is None:
        return None
    folder = Path(options.adapter)
    if not folder.is_dir():
        raise UserError(f"--adapter: {folder} is not a folder")
    return folder


def listed_candidates(path: str | None) -> list[str] | None:
    """Candidates from a text file with one per line.

    Raises:
        UserError: when the file cannot be read or names fewer than two.
    """
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"--candidates: cannot read {path} ({problem})") from problem
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(found) < 2:
        raise UserError(f"--candidates: {path} names {len(found)} candidates; ranking needs at least two, one per line")
    return found


def one_row(task: Task, image: str, text: str | None) -> Dataset:
    """A data set of one row made from a picture and the text that belongs to it.

    Raises:
        UserError: when the picture is not there, or the task needs a text and none was given, or takes none.
    """
    from datasets import Dataset

    if not Path(image).is_file():
        raise UserError(f"--image: {image} is not a file")
    asked = asked_fields(task.fields)
    if not asked and text is not None:
        raise UserError(f"--text: task {task.name!r} takes no text")
    if asked and (text is None or not text.strip()):
        raise UserError(f"--text: task {task.name!r} needs the {asked[0].name}")
    texts = {field.name: text for field in asked}
    return Dataset.from_list([{"id": image, "image": {"path": image, "bytes": None}, **texts}])
