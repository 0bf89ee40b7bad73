"""Which weights a training leaves: those of its last step, or those that scored best on the way.

Which step scored best is what transformers' trainer writes into the state of every checkpoint
(``metric_for_best_model``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from padapter.errors import UserError
from padapter.training.checkpoints import complete_checkpoints, step_of

BEST, LAST = "best", "last"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Kept:
    """The weights that a run keeps.

    Attributes:
        weights: ``best`` or ``last``.
        step: the optimizer step they are of.
        metric: by which they were chosen; ``None`` for the last ones.
        score: theirs during training.
    """

    weights: str
    step: int
    metric: str | None = None
    score: float | None = None

    def record(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return asdict(self)


def best_weights(checkpoints: Path, metric: str) -> tuple[Kept, Path]:
    """The weights with the best score of a training that has ended.

    Args:
        checkpoints: folder of the run's checkpoints.
        metric: that the trainer has compared.

    Returns:
        What is kept, and the checkpoint that holds it.

    Raises:
        UserError: when that checkpoint is gone.
    """
    found = {step_of(path): path for path in complete_checkpoints(checkpoints)}
    state = TrainerState.load_from_json(str(found[max(found)] / TRAINER_STATE)) if found else None
    if state is None or state.best_global_step not in found:
        step = "" if state is None else f"-{state.best_global_step}"
        raise UserError(
            f"--keep: the checkpoint with the best score, {checkpoints}/checkpoint{step}, is gone; restore it, or "
            "start anew with --overwrite"
        )
    kept = Kept(BEST, state.best_global_step, metric, state.best_metric)
    return kept, found[kept.step]
