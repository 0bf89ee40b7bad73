"""How answers are obtained: the options of a command and the task's own habits, in one place. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from padapter.errors import UserError
from padapter.options import InferenceOptions
from padapter.tasks import Task

RANK_CANDIDATES = 32


@dataclass(frozen=True)
class Asking:
    """Everything about how answers are obtained, resolved from the task's defaults and the options.

    Attributes:
        inference: ``generate`` or ``rank``.
        num_beams: beams of the search; 1 is greedy.
        max_new_tokens: longest new text.
        min_new_tokens: shortest new text.
        length_penalty: exponent of the length in beam scores; None: that of the model's family.
        rank_candidates: candidates that are scored in full when ranking.
        batch_size: rows per batch.
        precision: ``fp32``, or ``bf16``/``fp16`` under autocast.
    """

    inference: str
    num_beams: int
    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float | None
    rank_candidates: int
    batch_size: int
    precision: str


def resolve_asking(task: Task, options: InferenceOptions) -> Asking:
    """Fill what the options leave open from the task's defaults.

    Raises:
        UserError: for a longest text that is shorter than the shortest one.
    """
    defaults = task.generation
    longest = options.max_new_tokens or defaults.max_new_tokens
    shortest = defaults.min_new_tokens if options.min_new_tokens is None else options.min_new_tokens
    if longest < shortest and options.min_new_tokens is None:
        raise UserError(
            f"--max-new-tokens: task {task.name!r} writes at least {shortest} tokens, got {longest}; --min-new-tokens "
            "lets it write fewer"
        )
    if longest < shortest:
        raise UserError(
            f"--min-new-tokens: is {shortest}, but at most {longest} tokens are written; give --max-new-tokens too"
        )
    return Asking(
        inference=options.inference or task.default_inference,
        num_beams=options.num_beams or defaults.num_beams,
        max_new_tokens=longest,
        min_new_tokens=shortest,
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
