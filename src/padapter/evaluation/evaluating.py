"""Score an adapted model on data, or only let it answer."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from padapter.data import LoadedData, overlap
from padapter.evaluation.answers import answer_rows
from padapter.evaluation.asking import Asking
from padapter.evaluation.beforehand import Questions, data_to_score, rows_to_answer
from padapter.evaluation.files import output_problems, read_json
from padapter.evaluation.journal import remove_partials
from padapter.evaluation.predict import without_images
from padapter.evaluation.processes import join_processes
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
        seconds: wall time of predicting and scoring; answers kept from an interrupted evaluation took none of it.
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
    overwrite: bool = False,
    deliver: Callable[[Evaluation, Iterable[dict[str, Any]]], None] | None = None,
    title: str = "scoring",
    quiet: bool = False,
) -> Evaluation:
    """Answer every row and score the answers: ``padapter eval``, and every score of ``padapter train``.

    A benchmark's own rule counts where the task names none.

    Where several processes work together (see :func:`padapter.evaluation.processes.join_processes`) all of them make
    the call and get the same evaluation; the first one scores and writes.

    Args:
        backbone: the model that answers.
        task: asks and scores.
        data: the rows with their references.
        asking: how answers are obtained.
        candidates: the closed set of answers, for ranking.
        output: JSONL file for the answers. They are written to ``<output>.partial`` as they come and, when all are
            there, to ``output`` in the rows' order together with the references, the score of each and its rule.
            What an interrupted call has left there is gone on from.
        overwrite: drop what is there if another model, other data or other options gave it.
        deliver: writes ``output``, whose lines it is given, and what else belongs to it; called in the main process.
            The answers on their way are deleted only when it returns: whatever ends it in the middle, the same call
            again asks for nothing. ``None`` writes ``output`` alone.
        title: stands beside the progress bar.
        quiet: no progress bar.

    Raises:
        UserError: see :func:`padapter.evaluation.answers.answer_rows`; or the answers cannot be scored.
    """
    start = time.perf_counter()
    if task.rule is None and data.rule is not None:
        task = replace(task, rule=data.rule)  # type: ignore[type-var]
    processes = join_processes()
    predictions = answer_rows(
        backbone,
        task,
        data.dataset,
        asking,
        fingerprint=data.fingerprint,
        processes=processes,
        candidates=candidates,
        output=output,
        overwrite=overwrite,
        title=title,
        quiet=quiet,
    )

    def evaluation(scores: Scores, seconds: float) -> Evaluation:
        return Evaluation(
            metrics=dict(scores.metrics),
            rule=scores.rule,
            rows=len(predictions),
            seconds=seconds,
            predictions=predictions,
            per_item=dict(scores.per_item),
            details=dict(scores.details),
        )

    def score() -> tuple[Scores, float]:
        scores = task.score(predictions, data.dataset)
        seconds = time.perf_counter() - start
        if output is not None:
            lines = _full_lines(predictions, data.dataset, scores)
            if deliver is None:
                write_jsonl(output, lines)
            else:
                deliver(evaluation(scores, seconds), lines)
            remove_partials(output)
        return scores, seconds

    return evaluation(*processes.on_main(score))


def evaluate_source(options: EvalOptions, data: LoadedData | None = None) -> dict[str, Any]:
    """``padapter eval``: load a run or a model, score it, and write the results if ``output`` is given.

    Args:
        options: what is scored, and on what.
        data: what :func:`padapter.evaluation.beforehand.data_to_score` has found; by default it is asked.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: for anything wrong with the options, the run, the model or the data.
    """
    data = data_to_score(options) if data is None else data
    folder = Path(options.output) if options.output is not None else None
    with output_problems(folder):
        return _evaluate_into(folder, options, data)


def _evaluate_into(folder: Path | None, options: EvalOptions, data: LoadedData) -> dict[str, Any]:
    source = load_source(options, load_model=False)
    if options.run is not None:
        _warn_of_overlap(Path(options.run), data)
    source.load_model()
    answers = folder / "predictions.jsonl" if folder is not None else None
    candidates = source.candidates
    if source.asking.inference == "rank" and candidates is None and source.task.default_inference == "rank":
        # Such a task has a closed set of labels. The answers of an open task would be given away by the same line.
        candidates = source.task.candidates(data.dataset)

    reports: list[dict[str, Any]] = []  # the one that was written

    def report(result: Evaluation) -> dict[str, Any]:
        return {
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

    def deliver(result: Evaluation, lines: Iterable[dict[str, Any]]) -> None:
        if folder is not None and answers is not None:
            # Scores never stand beside answers that they do not belong to.
            (folder / "metrics.json").unlink(missing_ok=True)
            write_jsonl(answers, lines)
            reports.append(report(result))
            write_json(folder / "metrics.json", reports[0])

    result = evaluate(
        source.backbone,
        source.task,
        data,
        source.asking,
        candidates=candidates,
        output=answers,
        overwrite=options.overwrite,
        deliver=deliver,
        quiet=options.quiet,
    )
    return reports[0] if reports else report(result)


def _warn_of_overlap(run: Path, data: LoadedData) -> None:
    """Say so where a benchmark's split shares pictures with the one that the run was trained on."""
    path = run / "metrics.json"
    metrics = read_json(path, "delete it to score the run all the same") if path.exists() else {}
    trained = (metrics.get("data") or {}).get("train") or {}
    found = overlap((trained.get("name", ""), trained.get("split", "")), (data.name, data.split))
    if found is not None:
        warnings.warn(found, stacklevel=2)


def predict_source(
    options: PredictOptions, stream: TextIO | None = None, questions: Questions | None = None
) -> list[Prediction]:
    """``padapter predict``: answer one picture, or the rows of a data set.

    Args:
        options: what answers, and what is asked.
        stream: where answers go when ``options.output`` is not given; standard output by default.
        questions: what :func:`padapter.evaluation.beforehand.rows_to_answer` has found; by default it is asked.

    Returns:
        The predictions, in the rows' order.

    Raises:
        UserError: for anything wrong with the options, the run, the model or the data.
    """
    questions = rows_to_answer(options) if questions is None else questions
    output = Path(options.output) if options.output is not None else None
    with output_problems(output):
        return _predict_into(output, options, questions, stream)


def _predict_into(
    output: Path | None, options: PredictOptions, questions: Questions, stream: TextIO | None
) -> list[Prediction]:
    source = load_source(options)
    processes = join_processes()
    predictions = answer_rows(
        source.backbone,
        source.task,
        questions.rows,
        source.asking,
        fingerprint=questions.fingerprint,
        processes=processes,
        candidates=source.candidates,
        output=output,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    if processes.main:
        _deliver(predictions, output, stream or sys.stdout)
    return predictions


def _deliver(predictions: Sequence[Prediction], output: Path | None, stream: TextIO) -> None:
    lines = [as_line(prediction) for prediction in predictions]
    if output is not None:
        write_jsonl(output, lines)
        remove_partials(output)
        return
    for line in lines:
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    stream.flush()


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


def _full_lines(predictions: Sequence[Prediction], rows: Dataset, scores: Scores) -> Iterable[dict[str, Any]]:
    for prediction, row in zip(predictions, without_images(rows), strict=True):
        fields = {name: value for name, value in row.items() if name not in ("id", "text") and value is not None}
        score = scores.per_item.get(prediction.id)
        scored = {} if score is None else {"score": score, "rule": scores.rule}
        yield {**as_line(prediction), **scored, **fields}
