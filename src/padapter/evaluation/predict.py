"""Rows in, answers out: in batches that share pictures and length, complete and in the rows' own order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from padapter.backbones.base import evaluating
from padapter.errors import UserError
from padapter.evaluation.asking import Asking
from padapter.evaluation.processes import ALONE, Processes
from padapter.evaluation.progress import Advance, progress
from padapter.tasks import Prediction, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from padapter.backbones import Backbone

KEPT_SCORES = 10


def predict_rows(
    backbone: Backbone,
    task: Task,
    rows: Dataset,
    asking: Asking,
    *,
    candidates: Sequence[str] | None = None,
    known: Mapping[str, Prediction] | None = None,
    record: Callable[[Sequence[Prediction]], None] | None = None,
    processes: Processes = ALONE,
    title: str = "predicting",
    quiet: bool = False,
) -> list[Prediction]:
    """Answer every row.

    Rows about the same picture follow each other, so that a batch encodes it once. Apart from that batches hold
    prompts of similar length, longest first, so that padding is small and a batch that does not fit into memory fails
    at once. The returned list is in the order of ``rows``.

    Several processes deal the batches out among themselves: the batches are those of one process, so that scores are
    the same to the last digit, and none is filled up with rows that another process answers too.

    Args:
        backbone: the model that answers; put into eval mode for the time being.
        task: asks the question.
        rows: a dataset with ``id``, ``image`` and the task's columns.
        asking: how answers are obtained.
        candidates: the closed set of answers; needed when ``asking.inference`` is ``rank``.
        known: answers that are there already, by row id; these rows are not asked.
        record: called with the predictions of every batch of this process as soon as they are there.
        processes: those that share the work; all of them make the call.
        title: stands beside the progress bar of the main process.
        quiet: no progress bar.

    Returns:
        One prediction per row, in every process.

    Raises:
        UserError: when ranking is asked for and there is nothing to rank, or another process is gone.
    """
    if asking.inference == "rank" and not candidates:
        raise UserError(
            f"--inference: 'rank' needs candidates, and task {task.name!r} has none here; use 'generate', "
            "name them with --candidates FILE, or give a --run that was trained with --inference rank"
        )
    ids, prompts, pictures = rows["id"][:], [task.prompt(row) for row in without_images(rows)], _pictures(rows)
    known = known or {}
    answers = {index: known[key] for index, key in enumerate(ids) if key in known}
    mine = _unanswered(prompts, pictures, asking.batch_size, answers)[processes.index :: processes.count]
    fresh: dict[int, Prediction] = {}
    with (
        _bar(title, mine, processes, quiet) as advance,
        evaluating(backbone.model),
        _autocast(backbone, asking.precision),
    ):
        for batch in mine:
            texts = [prompts[index] for index in batch]
            shown = {pictures[index]: rows[index]["image"] for index in batch}
            ready = {key: backbone.picture(source) for key, source in shown.items()}
            images = [ready[pictures[index]] for index in batch]
            chosen = list(_answer(backbone, [ids[index] for index in batch], images, texts, asking, candidates))
            fresh.update(zip(batch, chosen, strict=True))
            if record is not None:
                record(chosen)
            advance(len(batch))
    for share in processes.gather(fresh):
        answers.update(share)
    return [answers[index] for index in range(len(ids))]


def without_images(rows: Dataset) -> Dataset:
    """The same rows without the image column, so that reading texts does not read pictures."""
    return rows.select_columns([name for name in rows.column_names if name != "image"])


def _pictures(rows: Dataset) -> list[int]:
    """The first row that shows the same picture as each row: the same bytes, or the same file."""
    first: dict[Any, int] = {}
    found = []
    for index, row in enumerate(rows.select_columns(["image"])):
        content = row["image"]["bytes"]
        key = row["image"]["path"] if content is None else hashlib.sha256(content).digest()
        found.append(first.setdefault(key, index))
    return found


def _order(prompts: Sequence[str], pictures: Sequence[int]) -> list[int]:
    """Rows about one picture side by side; pictures by their longest prompt, rows by their own, longest first."""
    longest: dict[int, int] = {}
    for prompt, picture in zip(prompts, pictures, strict=True):
        longest[picture] = max(longest.get(picture, 0), len(prompt))

    def key(index: int) -> tuple[int, int, int, int]:
        return -longest[pictures[index]], pictures[index], -len(prompts[index]), index

    return sorted(range(len(prompts)), key=key)


def _unanswered(
    prompts: Sequence[str], pictures: Sequence[int], size: int, answered: Mapping[int, Prediction]
) -> list[list[int]]:
    """The batches that have rows without an answer, with those rows only.

    Which rows share a batch is decided before the answered ones are taken out: an interruption between two batches
    then changes nothing at all in those that follow.
    """
    order = _order(prompts, pictures)
    batches = (order[start : start + size] for start in range(0, len(order), size))
    left = ([index for index in batch if index not in answered] for batch in batches)
    return [batch for batch in left if batch]


def _bar(
    title: str, batches: Sequence[Sequence[int]], processes: Processes, quiet: bool
) -> AbstractContextManager[Advance]:
    """A bar over this process's own rows."""
    share = f" (1 of {processes.count} processes)" if processes.count > 1 else ""
    return progress(title + share, sum(map(len, batches)), quiet=quiet or not processes.main)


def _answer(
    backbone: Backbone,
    ids: list[str],
    images: list[Any],
    prompts: list[str],
    asking: Asking,
    candidates: Sequence[str] | None,
) -> Iterator[Prediction]:
    if asking.inference == "generate":
        texts = backbone.generate(
            images,
            prompts,
            num_beams=asking.num_beams,
            max_new_tokens=asking.max_new_tokens,
            min_new_tokens=asking.min_new_tokens,
            length_penalty=asking.length_penalty,
        )
        for key, text in zip(ids, texts, strict=True):
            yield Prediction(id=key, text=text)
        return
    words = list(candidates or ())
    k = min(asking.rank_candidates, len(words))
    for key, scores in zip(ids, backbone.rank(images, prompts, words, k=k), strict=True):
        best = sorted(range(len(words)), key=lambda index: (-scores[index], index))[:KEPT_SCORES]
        kept = {words[index]: float(scores[index]) for index in best if scores[index] > float("-inf")}
        yield Prediction(id=key, text=words[best[0]], scores=kept)


def _autocast(backbone: Backbone, precision: str) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    device = backbone.device.type
    if precision == "fp16" and device == "cpu":
        raise UserError("--precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return torch.autocast(device, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
