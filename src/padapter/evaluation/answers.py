"""The one way from rows to answers: in all processes that there are, going on from what was answered before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padapter.backbones.digest import backbone_digest
from padapter.evaluation.asking import Asking
from padapter.evaluation.journal import Journal, take_up
from padapter.evaluation.predict import predict_rows, without_images
from padapter.evaluation.processes import Processes
from padapter.evaluation.results import package_versions
from padapter.tasks import Prediction, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from padapter.backbones import Backbone

PACKAGES = ("padapter", "torch", "transformers", "peft", "tokenizers", "pillow")


def answer_rows(
    backbone: Backbone,
    task: Task,
    rows: Dataset,
    asking: Asking,
    *,
    fingerprint: str,
    processes: Processes,
    candidates: Sequence[str] | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    title: str = "predicting",
    quiet: bool = False,
) -> list[Prediction]:
    """Answer every row once. All processes must make the call, with the same arguments.

    With ``output`` answers are written as they come (see :mod:`padapter.evaluation.journal`), and rows that an
    interrupted call with the same ``output`` has answered are not asked again. Batches are the same for any number of
    processes and after any interruption, so the result is too. When ``output`` itself is
    written, and everything else that is made of the answers, :func:`padapter.evaluation.journal.remove_partials` ends
    it.

    Args:
        backbone: the model that answers.
        task: asks the question.
        rows: a dataset with ``id``, ``image`` and the task's columns.
        asking: how answers are obtained.
        fingerprint: of the rows and their pictures.
        processes: those that share the work.
        candidates: the closed set of answers, for ranking.
        output: the file that the answers are meant for.
        overwrite: drop answers on their way to ``output`` that were given by another model or otherwise.
        title: stands beside the progress bar.
        quiet: no progress bar.

    Returns:
        One prediction per row, in the rows' order, in every process.

    Raises:
        UserError: answers of another origin are there; processes disagree about the model or the rows; one of them
            is gone; there is nothing to rank.
    """
    origin: dict[str, Any] = {}
    known: dict[str, Prediction] = {}
    if output is not None or processes.count > 1:
        origin = origin_of(backbone, task, rows, asking, fingerprint, candidates)
        processes.agree(origin)
    if output is not None:
        known = processes.on_main(lambda: take_up(output, origin, overwrite=overwrite))
    try:
        with Journal(output, origin, processes.index) as journal:
            return predict_rows(
                backbone,
                task,
                rows,
                asking,
                candidates=candidates,
                known=known,
                record=journal.add,
                processes=processes,
                title=title,
                quiet=quiet,
            )
    except KeyboardInterrupt as stop:
        if output is None:
            raise
        message = "interrupted; the same command again goes on from what has been answered"
        raise KeyboardInterrupt(message) from stop


def origin_of(
    backbone: Backbone, task: Task, rows: Dataset, asking: Asking, fingerprint: str, candidates: Sequence[str] | None
) -> dict[str, Any]:
    """All that answers depend on, as plain values: equal origins give equal answers.

    The batch size is not in it: answers do not depend on it. Nor is anything of the task that only scores them.
    """
    prompts = hashlib.sha256()
    for row in without_images(rows):
        prompts.update(json.dumps(task.prompt(row)).encode())
    how = {name: value for name, value in asdict(asking).items() if name != "batch_size"}
    words = None
    if asking.inference == "rank":
        words = hashlib.sha256(json.dumps(list(candidates or ())).encode()).hexdigest()[:16]
    versions = package_versions(PACKAGES)
    origin = {
        "model and adapter": backbone_digest(backbone),
        "data": fingerprint,
        "prompt": task.prompt({field.name: field.name for field in task.fields}),
        "prompts": prompts.hexdigest()[:16],
        **how,
        "candidates": words,
        **{f"version of {name}": version for name, version in versions.items()},
    }
    # As it comes back from a file: lists for tuples.
    return dict(json.loads(json.dumps(origin, default=str)))
