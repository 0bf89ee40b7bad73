"""What is watched while training: Ctrl-C, the log and the progress bar. Gradients: `padapter.training.gradients`."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from padapter.errors import UserError
from padapter.evaluation.processes import ALONE, Processes
from padapter.evaluation.progress import Advance, progress
from padapter.training.batches import EpochSampler

DIVERGED = "diverged"  # status of a run whose loss was no number
# Launchers pass on a Ctrl-C that their processes have had from the terminal too; nobody presses it twice that fast.
SAME_KEY = 1.0  # seconds


class DivergedError(UserError):
    """The loss is no number any more."""


class StopOnInterrupt(TrainerCallback, AbstractContextManager["StopOnInterrupt"]):
    """The first Ctrl-C ends training after the current step with a checkpoint; the second one at once.

    Args:
        processes: those that train together; one that is asked to stop stops all of them.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes
        self.requested = False  # by a signal here or in another process
        self._noted: float | None = None  # when the first signal came here
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> StopOnInterrupt:
        # Python delivers signals to the main thread only; elsewhere the caller handles Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._noted is not None:
            if self.processes.count > 1 and now - self._noted < SAME_KEY:
                return
            raise KeyboardInterrupt
        self._noted, self.requested = now, True
        # os.write, because a print may be interrupted in the middle by the very signal this answers.
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and the end."""
        self.requested = any(self.processes.gather(self.requested))
        if self.requested:
            control.should_save = True
            control.should_training_stop = True
        return control


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins, also after a restart in the middle of one."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``state.epoch`` is exact: whole epochs end at (steps / steps) = 1.0."""
        self.sampler.start_epoch(int(state.epoch or 0))


class Log(TrainerCallback):
    """Appends every log entry to ``log.jsonl``, and stops a run whose loss is no number any more.

    Args:
        path: the file, or ``None`` in a process that does not write. Entries after the step at which a run resumes are
            dropped first: they will come again.
        resumed_at: the optimizer step at which training starts.
    """

    def __init__(self, path: Path | None, resumed_at: int = 0) -> None:
        self.path = path
        self.last_loss: float | None = None
        if path is None:
            return
        kept = []
        if path.exists() and resumed_at > 0:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _step_in(line) <= resumed_at]
        for line in kept:
            self.last_loss = json.loads(line).get("loss", self.last_loss)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept), encoding="utf-8")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the last step too, whatever the rhythm."""
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line; a loss that is no number stops the run."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")
        loss = (logs or {}).get("loss")
        self.last_loss = self.last_loss if loss is None else loss
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"--learning-rate: the loss is {loss} at step {state.global_step}; "
                "use a smaller learning rate, or --precision fp32, and start anew with --overwrite"
            )


class StepTimer(TrainerCallback):
    """Wall time of training, carried on from the checkpoint when a run resumes.

    Args:
        seconds: all of it, so far: steps, data, scoring during training, checkpoints.
        step_seconds: the part spent in optimizer steps.
        steps: how many those were.
    """

    def __init__(self, seconds: float = 0.0, step_seconds: float = 0.0, steps: int = 0) -> None:
        self.step_seconds = step_seconds
        self.steps = steps
        self._before = seconds
        self._began: float | None = None
        self._step_began = 0.0

    @property
    def seconds(self) -> float:
        """All wall time so far."""
        return self._before + (time.perf_counter() - self._began if self._began is not None else 0.0)

    def state(self) -> dict[str, Any]:
        """Arguments that make a timer which goes on from here."""
        return {"seconds": self.seconds, "step_seconds": self.step_seconds, "steps": self.steps}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start of an optimizer step."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End of an optimizer step."""
        self.step_seconds += time.perf_counter() - self._step_began
        self.steps += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self._before, self._began = self.seconds, None


class Bar(TrainerCallback):
    """A progress bar with loss and learning rate."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._shown: AbstractContextManager[Advance] | None = None
        self._advance: Advance | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self._shown = progress("training", state.max_steps, quiet=self.quiet, done=state.global_step)
        self._advance = self._shown.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance by one step."""
        if self._advance is not None:
            self._advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest loss."""
        if self._advance is not None and logs and "loss" in logs:
            self._advance(0, f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}")

    def close(self) -> None:
        """Close the bar; safe to call twice."""
        if self._shown is not None:
            shown, self._shown, self._advance = self._shown, None, None
            shown.__exit__(None, None, None)


def _step_in(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # The last line of a killed process can be half a line.
        return 2**62
