"""Rows in, answers out: in batches that share pictures and length, complete and in the rows' own order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from padapter.backbones.base import evaluating
from padapter.errors import UserError
from padapter.evaluation.progress import progress
from padapter.options import InferenceOptions
from padapter.tasks import Prediction, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from padapter.backbones import Backbone

RANK_CANDIDATES = 32
KEPT_SCORES = 10


@dataclass(frozen=True)
class Asking:
    """Everything about how answers are obtained, resolved from the task's defaults and the options.

    Attributes:
        inference: ``generate`` or ``rank``.
        num_beams: beams of the search; 1 is greedy.
        max_new_tokens: longest new text.
        min_new_tokens: shortest new text.
        length_penalty: exponent of the length in beam scores.
        rank_candidates: candidates that are scored in full when ranking.
        batch_size: rows per batch.
        precision: ``fp32``, or ``bf16``/``fp16`` under autocast.
    """

    inference: str
    num_beams: int
    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float
    rank_candidates: int
    batch_size: int
    precision: str


def resolve_asking(task: Task, options: InferenceOptions) -> Asking:
    """Fill what the options leave open from the task's defaults.

    Raises:
        UserError: for a length below the task's shortest text.
    """
    defaults = task.generation
    longest = options.max_new_tokens or defaults.max_new_tokens
    if longest < defaults.min_new_tokens:
        shortest = defaults.min_new_tokens
        raise UserError(f"--max-new-tokens: task {task.name!r} writes at least {shortest} tokens, got {longest}")
    return Asking(
        inference=options.inference or task.default_inference,
        num_beams=options.num_beams or defaults.num_beams,
        max_new_tokens=longest,
        min_new_tokens=defaults.min_new_tokens,
        length_penalty=defaults.length_penalty,
        rank_candidates=options.rank_candidates or RANK_CANDIDATES,
        batch_size=options.eval_batch_size,
        precision=options.precision,
    )


def with_prompt(task: Task, template: str | None) -> Task:
    """The task with another prompt template.

    Args:
        task: a task.
        template: text with the place that the task's own template has, e.g. ``{question}``; ``None`` changes nothing.

    Raises:
        UserError: naming ``--prompt`` and the place that is missing.
    """
    if template is None:
        return task
    changed: Task = replace(task, prompt_template=template)  # type: ignore[type-var]
    try:
        changed.prompt({field.name: "x" for field in task.fields})
    except UserError as problem:
        raise UserError(f"--prompt: {problem}") from problem
    return changed


def predict_rows(
    backbone: Backbone,
    task: Task,
    rows: Dataset,
    asking: Asking,
    *,
    candidates: Sequence[str] | None = None,
    record: Callable[[Prediction], None] | None = None,
    title: str = "predicting",
    quiet: bool = False,
) -> list[Prediction]:
    """Answer every row.

    Rows about the same picture follow each other, so that a batch encodes it once. Apart from that batches hold
    prompts of similar length, longest first, so that padding is small and a batch that does not fit into memory fails
    at once. The returned list is in the order of ``rows``.

    Args:
        backbone: the model that answers; put into eval mode for the time being.
        task: asks the question.
        rows: a dataset with ``id``, ``image`` and the task's columns.
        asking: how answers are obtained.
        candidates: the closed set of answers; needed when ``asking.inference`` is ``rank``.
        record: called with every prediction as soon as it is there, in the order of the batches.
        title: stands beside the progress bar.
        quiet: no progress bar.

    Returns:
        One prediction per row.

    Raises:
        UserError: when ranking is asked for and there is nothing to rank.
    """
    if asking.inference == "rank" and not candidates:
        raise UserError(
            f"--inference: 'rank' needs candidates, and task {task.name!r} has none here; use 'generate', "
            "name them with --candidates FILE, or give a --run that was trained with --inference rank"
        )
    prompts = [task.prompt(row) for row in without_images(rows)]
    pictures = _pictures(rows)
    order = _order(prompts, pictures)
    answers: dict[int, Prediction] = {}
    with (
        progress(title, len(prompts), quiet=quiet) as advance,
        evaluating(backbone.model),
        _autocast(backbone, asking.precision),
    ):
        for start in range(0, len(order), asking.batch_size):
            batch = order[start : start + asking.batch_size]
            texts = [prompts[index] for index in batch]
            asked = [rows[index] for index in batch]
            shown = {pictures[index]: row["image"] for index, row in zip(batch, asked, strict=True)}
            ready = {key: backbone.picture(source) for key, source in shown.items()}
            images = [ready[pictures[index]] for index in batch]
            chosen = _answer(backbone, [row["id"] for row in asked], images, texts, asking, candidates)
            for index, prediction in zip(batch, chosen, strict=True):
                answers[index] = prediction
                if record is not None:
                    record(prediction)
            advance(len(batch))
    return [answers[index] for index in range(len(prompts))]


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
