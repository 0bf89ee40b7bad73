"""Score an adapted model on data, or only let it answer."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from padapter.data import Field, LoadedData, load_data, overlap
from padapter.errors import UserError
from padapter.evaluation.files import check_file, check_folder, output_problems, read_json
from padapter.evaluation.predict import Asking, predict_rows, without_images
from padapter.evaluation.results import peak_memory, provenance, write_json, write_jsonl
from padapter.evaluation.source import load_source
from padapter.options import EvalOptions, PredictOptions
from padapter.tasks import Prediction, Scores, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from padapter.backbones import Backbone


@dataclass(frozen=True)
class Evaluation:
    """Scores on one data set, and the answers they come from.

    Attributes:
        metrics: metric name to value.
        rule: the rule by which answers were compared; stands beside every number.
        rows: how many rows were scored.
        seconds: wall time of predicting and scoring.
        predictions: one answer per row, in the rows' order.
        per_item: row id to its own score, where the metric has one.
        details: counts that are no scores, such as a confusion matrix; empty for most tasks.
    """

    metrics: dict[str, float]
    rule: str
    rows: int
    seconds: float
    predictions: list[Prediction]
    per_item: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What goes into ``metrics.json``."""
        return {
            "metrics": self.metrics,
            "rule": self.rule,
            "details": self.details,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    backbone: Backbone,
    task: Task,
    data: LoadedData,
    asking: Asking,
    *,
    candidates: Sequence[str] | None = None,
    output: Path | None = None,
    title: str = "scoring",
    quiet: bool = False,
) -> Evaluation:
    """Answer every row and score the answers.

    Args:
        backbone: the model that answers.
        task: asks and scores.
        data: the rows with their references.
        asking: how answers are obtained.
        candidates: the closed set of answers, for ranking.
        output: JSONL file for the answers. They are written to ``<output>.partial`` as they come and, when all are
            there, to ``output`` in the rows' order together with the references, the score of each and its rule.
        title: stands beside the progress bar.
        quiet: no progress bar.
    """
    start = time.perf_counter()
    with _as_they_come(output) as stream:
        predictions = predict_rows(
            backbone,
            task,
            data.dataset,
            asking,
            candidates=candidates,
            record=(lambda prediction: write_line(stream, as_line(prediction))) if stream else None,
            title=title,
            quiet=quiet,
        )
    scores = task.score(predictions, data.dataset)
    if output is not None:
        write_jsonl(output, _full_lines(predictions, data.dataset, scores))
        partial_path(output).unlink()
    return Evaluation(
        metrics=dict(scores.metrics),
        rule=scores.rule,
        rows=len(predictions),
        seconds=time.perf_counter() - start,
        predictions=predictions,
        per_item=dict(scores.per_item),
        details=dict(scores.details),
    )


def evaluate_source(options: EvalOptions) -> dict[str, Any]:
    """``padapter eval``: load a run or a model, score it, and write the results if ``output`` is given.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: for anything wrong with the options, the run, the model or the data.
    """
    folder = Path(options.output) if options.output is not None else None
    with output_problems(folder):
        return _evaluate_into(folder, options)


def _evaluate_into(folder: Path | None, options: EvalOptions) -> dict[str, Any]:
    if folder is not None:
        if (folder / "metrics.json").exists() and not options.overwrite:
            raise UserError(f"--output: {folder} already holds results; choose another folder or give --overwrite")
        check_folder(folder)
    source = load_source(options, load_model=False)
    data = load_data(
        options.data, source.task, split=options.split, skip_bad_rows=options.skip_bad_rows, limit=options.limit
    )
    if options.run is not None:
        _warn_of_overlap(Path(options.run), data)
    source.load_model()
    answers = folder / "predictions.jsonl" if folder is not None else None
    candidates = source.candidates
    if source.asking.inference == "rank" and candidates is None and source.task.default_inference == "rank":
        # Such a task has a closed set of labels. The answers of an open task would be given away by the same line.
        candidates = source.task.candidates(data.dataset)
    result = evaluate(
        source.backbone,
        source.task,
        data,
        source.asking,
        candidates=candidates,
        output=answers,
        quiet=options.quiet,
    )
    report = {
        "task": source.task.name,
        "primary_metric": source.task.primary_metric,
        "scores": result.summary(),
        "source": source.describe(),
        "asking": asdict(source.asking),
        "preprocessing": source.backbone.preprocessing(),
        "data": describe_data(data),
        "memory": peak_memory(),
        "provenance": provenance(),
    }
    if folder is not None:
        write_json(folder / "metrics.json", report)
    return report


def _warn_of_overlap(run: Path, data: LoadedData) -> None:
    """Say so where a benchmark's split shares pictures with the one that the run was trained on."""
    path = run / "metrics.json"
    metrics = read_json(path, "delete it to score the run all the same") if path.exists() else {}
    trained = (metrics.get("data") or {}).get("train") or {}
    found = overlap((trained.get("name", ""), trained.get("split", "")), (data.name, data.split))
    if found is not None:
        warnings.warn(found, stacklevel=2)


def predict_source(options: PredictOptions, stream: TextIO | None = None) -> list[Prediction]:
    """``padapter predict``: answer one picture, or the rows of a data set.

    Args:
        options: what answers, and what is asked.
        stream: where answers go when ``options.output`` is not given; standard output by default.

    Returns:
        The predictions, in the rows' order.

    Raises:
        UserError: for anything wrong with the options, the run, the model or the data.
    """
    output = Path(options.output) if options.output is not None else None
    with output_problems(output):
        return _predict_into(output, options, stream)


def _predict_into(output: Path | None, options: PredictOptions, stream: TextIO | None) -> list[Prediction]:
    if output is not None:
        if output.exists() and not options.overwrite:
            raise UserError(f"--output: {output} exists; choose another file or give --overwrite")
        check_file(output)
    source = load_source(options, load_model=False)
    rows = _rows_to_answer(options, source.task)
    source.load_model()
    arguments: dict[str, Any] = {"candidates": source.candidates, "quiet": options.quiet}
    if output is None:
        predictions = predict_rows(source.backbone, source.task, rows, source.asking, **arguments)
        for prediction in predictions:
            write_line(stream or sys.stdout, as_line(prediction))
        return predictions
    with _as_they_come(output) as partial:
        predictions = predict_rows(
            source.backbone,
            source.task,
            rows,
            source.asking,
            record=lambda prediction: write_line(partial, as_line(prediction)),
            **arguments,
        )
    write_jsonl(output, [as_line(prediction) for prediction in predictions])
    partial_path(output).unlink()
    return predictions


def describe_data(data: LoadedData) -> dict[str, Any]:
    """Name, split, fingerprint and row counts of a data set, for a result file."""
    return {
        "name": data.name,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "rows": len(data.dataset),
        "skipped": data.report.bad,
        "left_out": data.report.dropped,
    }


def as_line(prediction: Prediction) -> dict[str, Any]:
    """A prediction as one JSON object."""
    line: dict[str, Any] = {"id": prediction.id, "text": prediction.text}
    if prediction.scores:
        line["candidates"] = {word: round(score, 6) for word, score in prediction.scores.items()}
    return line


def write_line(stream: TextIO | None, line: Mapping[str, Any]) -> None:
    """Write one JSON line and flush it, so that a crash keeps what was answered."""
    if stream is not None:
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        stream.flush()


def partial_path(output: Path) -> Path:
    """Where answers stand while they come."""
    return output.with_name(output.name + ".partial")


@contextmanager
def _as_they_come(output: Path | None) -> Any:
    if output is None:
        yield None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with partial_path(output).open("w", encoding="utf-8") as stream:
        yield stream


def _full_lines(predictions: Sequence[Prediction], rows: Dataset, scores: Scores) -> Iterable[dict[str, Any]]:
    for prediction, row in zip(predictions, without_images(rows), strict=True):
        fields = {name: value for name, value in row.items() if name not in ("id", "text") and value is not None}
        score = scores.per_item.get(prediction.id)
        scored = {} if score is None else {"score": score, "rule": scores.rule}
        yield {**as_line(prediction), **scored, **fields}


@dataclass(frozen=True)
class _Unanswered:
    """The task as the data reader sees it, without the fields that hold answers."""

    name: str
    fields: tuple[Field, ...]


def _rows_to_answer(options: PredictOptions, task: Task) -> Dataset:
    asked = asked_fields(task)
    if options.data is not None:
        kind = _Unanswered(task.name, asked)
        return load_data(
            options.data, kind, split=options.split, skip_bad_rows=options.skip_bad_rows, limit=options.limit
        ).dataset
    return one_row(task, str(options.image), options.text)


def asked_fields(task: Task) -> tuple[Field, ...]:
    """The fields that the model is given: the question or the hypothesis; none for captions."""
    return tuple(field for field in task.fields if field.kind == "text" and field.required)


def one_row(task: Task, image: str, text: str | None) -> Dataset:
    """A data set of one row made from a picture and the text that belongs to it.

    Raises:
        UserError: when the picture is not there, or the task needs a text and none was given, or takes none.
    """
    from datasets import Dataset

    if not Path(image).is_file():
        raise UserError(f"--image: {image} is not a file")
    asked = asked_fields(task)
    if not asked and text is not None:
        raise UserError(f"--text: task {task.name!r} takes no text")
    if asked and (text is None or not text.strip()):
        raise UserError(f"--text: task {task.name!r} needs the {asked[0].name}")
    texts = {field.name: text for field in asked}
    return Dataset.from_list([{"id": image, "image": {"path": image, "bytes": None}, **texts}])
