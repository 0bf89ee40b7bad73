"""How answers are scored: the options of a command, those of the run before, and the task's own."""

from __future__ import annotations

from dataclasses import fields, replace

from padapter.errors import UserError
from padapter.options import EvalOptions, InferenceOptions, ScoringOptions, TrainOptions, refuse
from padapter.tasks import Task


def with_scoring(task: Task, options: InferenceOptions, trained: TrainOptions | None = None) -> Task:
    """The task with the rule and the metrics that were asked for.

    Args:
        task: a task.
        options: of the command; ``rule`` and ``meteor`` are None where they are left open, and not there in a command
            that scores nothing.
        trained: options of the run that is scored; they fill what ``options`` leave open.

    Returns:
        The task. METEOR, which takes long, is computed by ``padapter eval`` unless it was refused, and in training
        only where it was asked for.

    Raises:
        UserError: naming ``--rule`` or ``--meteor``: the task has no such rule, or no METEOR; or the command is going
            to score, and something that scoring needs is not installed.
    """
    scored = _scored(task, options, trained)
    if isinstance(options, EvalOptions) or (isinstance(options, TrainOptions) and options.eval is not None):
        scored.check_scoring()
    return scored


def _scored(task: Task, options: InferenceOptions, trained: TrainOptions | None) -> Task:
    given = options if isinstance(options, ScoringOptions) else None
    rule, meteor = (given.rule, given.meteor) if given is not None else (None, None)
    if trained is not None:
        rule = trained.rule if rule is None else rule
        meteor = trained.meteor if meteor is None else meteor
    try:
        scored: Task = replace(task, rule=rule) if rule is not None else task  # type: ignore[type-var]
    except UserError as problem:
        raise UserError(f"--rule: {problem}") from problem
    if "meteor" not in {item.name for item in fields(scored)}:  # type: ignore[arg-type]
        if given is not None and given.meteor:
            raise refuse("--meteor", f"is a score of captions; task {task.name!r} has none")
        return scored
    wanted = isinstance(options, EvalOptions) if meteor is None else meteor
    return replace(scored, meteor=wanted)  # type: ignore[type-var]
