"""One function per command. What is heavy is imported inside, so that help stays quick."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import typer

from padapter.options import (
    DataCheckOptions,
    DataShardOptions,
    EvalOptions,
    PredictOptions,
    SubmitOptions,
    TrainOptions,
)

if TYPE_CHECKING:
    from padapter.data import Report

BAD_DATA = 1

PEFT_PARAGRAPH = """Further fields of peft.LoraConfig are options of lora too, e.g. --set use_dora=true.
Other tuners of PEFT, by name: {names}.
Their options are part and target_modules, as of lora, and the fields of their PEFT configuration,
e.g. --method oft:oft_block_size=32. They need --learning-rate."""


def train_command(options: TrainOptions) -> None:
    """Adapt a model to a task and score it before and after."""
    from padapter.training.beforehand import data_to_train

    prepare(torch_too=False)
    data = data_to_train(options)
    prepare()
    from padapter.evaluation.processes import join_processes
    from padapter.training import train

    report = train(options, data)
    if not join_processes().main:
        return
    scores = report.metrics.get("scores") or {}
    _print_scores(report.metrics, scores.get("after"), scores.get("before"), compare=True)
    _print_notes(report.metrics)
    kept = report.metrics["training"].get("kept") or {}
    if kept.get("weights") == "best":
        print(
            f"kept the weights of step {kept['step']} of {report.metrics['training']['steps']}, "
            f"with the best {kept['metric']} during training ({kept['score']:.4f})"
        )
    parameters = report.metrics["training"]["parameters"]
    share = 100 * parameters["trainable"] / parameters["total"]
    idle = sum((report.metrics["training"].get("without_gradient") or {}).values())
    beside = f", {idle:,} of them without a gradient" if idle else ""
    print(f"trained {parameters['trainable']:,} of {parameters['total']:,} parameters ({share:.2f} %){beside}")
    print(f"results in {report.output}; score it on other data with: padapter eval --run {report.output} --data DATA")


def eval_command(options: EvalOptions) -> None:
    """Score a run, or a model with or without an adapter, on data."""
    from padapter.evaluation.beforehand import data_to_score

    prepare(torch_too=False)
    data = data_to_score(options)
    prepare()
    from padapter.evaluation import evaluate_source, join_processes

    report = evaluate_source(options, data)
    if not join_processes().main:
        return
    _print_scores(report, report["scores"], None, compare=False)
    if options.output is not None:
        print(f"results in {options.output}")


def predict_command(options: PredictOptions) -> None:
    """Answer one picture, or the rows of a data set; one JSON object per line."""
    from padapter.evaluation.beforehand import rows_to_answer

    prepare(torch_too=False)
    questions = rows_to_answer(options)
    prepare()
    from padapter.evaluation import join_processes, predict_source

    answers = predict_source(options, questions=questions)
    if options.output is not None and join_processes().main:
        print(f"{options.output}: {len(answers)} answers, one per line")


def submit_command(options: SubmitOptions) -> None:
    """Write the file that a benchmark's evaluation server accepts, if the predictions answer each row once."""
    from padapter.evaluation.submit.convert import submit

    prepare(torch_too=False)
    done = submit(options)
    print(f"{done.path}: {done.entries} entries for {done.form.name} ({done.form.summary})")
    for note in done.notes:
        print(f"note: {note}")


def check_command(options: DataCheckOptions) -> None:
    """Report every problem of a data set at once: file, line, field and what is wrong. Exit code 1 if there is any."""
    from padapter.data import check_data, infer_task
    from padapter.tasks import TASKS, get_task

    prepare(torch_too=False)
    if options.task is None:
        task = infer_task(options.data, TASKS.values(), split=options.split)
        print(f"task: {task.name} (told from the field {task.fields[0].title})")
    else:
        task = get_task(options.task)
    report: Report = check_data(options.data, task, split=options.split)
    print(report.format(limit=options.show))
    if not report.ok:
        raise typer.Exit(BAD_DATA)


def shard_command(options: DataShardOptions) -> None:
    """Pack data into tar files that are read in place, with an index: for data on several disks or a network disk."""
    from pathlib import Path

    from padapter.data import infer_task
    from padapter.data.shards.write import write_shards
    from padapter.tasks import TASKS, get_task

    prepare(torch_too=False)
    named = options.task
    task = get_task(named) if named else infer_task(options.data, TASKS.values(), split=options.split)
    for written in write_shards(
        options.data,
        Path(options.destination).expanduser(),
        task,
        split=options.split,
        megabytes=options.size,
        skip_bad_rows=options.skip_bad_rows,
        overwrite=options.overwrite,
    ):
        print(written.format())


def methods_command() -> None:
    """List the methods of adaptation with their options and default learning rates."""
    from padapter.methods import METHODS, peft_methods
    from padapter.training.defaults import LEARNING_RATES

    for name, method in METHODS.items():
        print(f"{name}  {method.summary}  (default learning rate {LEARNING_RATES[name]:g})")
        for item in fields(method.options):
            default = "" if item.default is MISSING else f" (default: {item.default})"
            print(f"    --set {item.name}={_spoken(str(item.type))}  {item.metadata['help']}{default}")
    print(PEFT_PARAGRAPH.format(names=", ".join(name for name, it in peft_methods().items() if not it.special.refused)))


def _spoken(kind: str) -> str:
    """A type as a placeholder: ``Literal["a", "b"] | None`` is ``a|b|none``."""
    plain = re.sub(r"Literal\[|\]|[\"']", "", kind)
    return plain.replace(", ", "|").replace(" | ", "|").replace("None", "none")


def _print_scores(
    report: Mapping[str, Any], after: Mapping[str, Any] | None, before: Mapping[str, Any] | None, *, compare: bool
) -> None:
    if after is None:
        print("not scored: no evaluation data")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"{report['task']}, {after['rows']} rows, inference by {report['asking']['inference']}"
    table = Table(title=Text(title), title_justify="left")
    for column in ("metric", "rule", *(("before", "after", "gain") if compare else ("score",))):
        table.add_column(column, justify="left" if column in ("metric", "rule") else "right", overflow="fold")
    for name, value in after["metrics"].items():
        old = before["metrics"].get(name) if before else None
        # Text, since a name such as accuracy[label=true] would be read as markup.
        table.add_row(Text(_short(name)), Text(after["rule"]), *_cells(value, old, compare))
    Console(soft_wrap=False, highlight=False).print(table)


def _short(metric: str) -> str:
    """A metric as a line of a table: ``accuracy[label=true]`` stands below ``accuracy`` as ``label=true``."""
    part = re.fullmatch(r"[^\[]+\[(.*)\]", metric)
    return metric if part is None else f"  {part[1]}"


def _print_notes(metrics: Mapping[str, Any]) -> None:
    """What happened to rows on the way, where anything did."""
    for role, data in metrics["data"].items():
        if data is not None and data["skipped"]:
            print(f"note: {data['skipped']} bad rows of the {role} data were skipped; `padapter data check` lists them")
    for what, count in (metrics["training"]["cut"] or {}).items():
        if count:
            print(f"note: {count} {what} were longer than the model reads and were cut (see --max-length)")


def _cells(value: float, old: float | None, compare: bool) -> Iterable[str]:
    if not compare:
        return (f"{value:.4f}",)
    if old is None:
        return ("-", f"{value:.4f}", "-")
    return (f"{old:.4f}", f"{value:.4f}", f"{value - old:+.4f}")


def prepare(torch_too: bool = True) -> None:
    """Set the libraries up for one command: fast arithmetic, and our own bars and messages only."""
    if torch_too:
        import torch

        # Before the first operation, because worker threads inherit it only then: backward passes of small numbers
        # otherwise spend most of their time on denormals.
        torch.set_flush_denormal(True)
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
    import datasets

    datasets.disable_progress_bars()


__all__ = [
    "check_command",
    "eval_command",
    "methods_command",
    "predict_command",
    "shard_command",
    "submit_command",
    "train_command",
]
