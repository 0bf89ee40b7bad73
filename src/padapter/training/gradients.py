"""Trainable parameters that a task does not train: found by looking at gradients once, after the first backward pass.

A task may leave parts of a model out: captions of mPLUG are written without its text encoder and fusion network, say.
Adapters there would be counted, saved and loaded, and stay as they started. Where a class of model does not have a part
at all, the configuration has said so when it was applied; this finds the rest, whatever the method and the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from padapter.architectures import find_sites, part_of
from padapter.errors import UserError

NAMES_SHOWN = 3  # per part
ELSEWHERE = "other"  # the part of parameters that stand in no layer of a known part


@dataclass(frozen=True)
class Untrained:
    """What got no gradient.

    Attributes:
        names: part of the model -> names of its trainable tensors without a gradient.
        counts: part of the model -> how many numbers these are.
        of: how many numbers are trainable.
        trained: the parts in which tensors got a gradient.
    """

    names: dict[str, list[str]]
    counts: dict[str, int]
    of: int
    trained: tuple[str, ...]

    @property
    def total(self) -> int:
        """How many trainable numbers got no gradient."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        """Parts with their numbers and the names of some tensors, in words."""
        return "; ".join(
            f"{self.counts[part]:,} in the {part} part ({_listed(names)})" for part, names in self.names.items()
        )


def untrained(model: nn.Module) -> Untrained:
    """Look which trainable parameters have no gradient; call it between the first ``backward`` and ``zero_grad``.

    A gradient of zeros is one: at the start, the first half of a bottleneck gets nothing else.

    Args:
        model: any model, or a module around one.
    """
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    silent = {name for name, value in trainable if value.grad is None}
    if not silent:
        return Untrained({}, {}, sum(value.numel() for _, value in trainable), ())
    sites = find_sites(model)
    names: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    trained: dict[str, None] = {}
    for name, value in trainable:
        part = part_of(name, sites) or ELSEWHERE
        if name in silent:
            names.setdefault(part, []).append(name)
            counts[part] = counts.get(part, 0) + value.numel()
        else:
            trained[part] = None
    return Untrained(names, counts, sum(value.numel() for _, value in trainable), tuple(trained))


class GradientCheck(TrainerCallback):
    """Looks once, before the first optimizer step, which trainable parameters got no gradient, and says it.

    Args:
        module: what is trained: a call of it returns the loss, as entry or attribute ``loss``.

    Attributes:
        found: what was seen; None before the first step.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: Untrained | None = None
        self._hook: RemovableHandle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the first loss: one that depends on nothing trainable has no backward pass to wait for."""
        self._stop_looking()
        self._hook = self.module.register_forward_hook(self._look_at_loss)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave no hook behind."""
        self._stop_looking()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn of parameters without a gradient.

        Raises:
            UserError: if nothing is trainable, if nothing that is got a gradient, or if something did not and several
                processes train together, whose gradients are averaged in groups that wait for every member.
        """
        if self.found is not None:
            return
        self.found = untrained(self.module)
        if self.found.total == self.found.of:
            raise nothing_trained(self.found)
        if self.found.total and getattr(args, "world_size", 1) > 1:
            raise UserError(
                f"--method: {self.found.total:,} of {self.found.of:,} trainable parameters got no gradient: "
                f"{self.found}. Several processes can train together only what the model runs for this task: choose "
                "parts (`where`) or target modules that leave these out, or train in one process"
            )
        if self.found.total:
            parts = ", ".join(self.found.trained)
            warnings.warn(
                f"--method: {self.found.total:,} of {self.found.of:,} trainable parameters got no gradient in the "
                f"first step and stay as they are: {self.found}. The model does not run them for this task; what it "
                f"trains is in: {parts}. Choose parts (`where`) or target modules that leave them out",
                stacklevel=2,
            )

    def _look_at_loss(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook, for one call."""
        loss = output["loss"] if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not torch.is_grad_enabled() or loss is None:
            return
        self._stop_looking()
        if not loss.requires_grad:
            raise nothing_trained(untrained(module))

    def _stop_looking(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def nothing_trained(found: Untrained) -> UserError:
    """The error for training that would change nothing."""
    if found.of == 0:
        return UserError("--method: nothing is trainable; check the method's options")
    return UserError(
        f"--method: none of the {found.of:,} trainable parameters got a gradient, so nothing would be trained: "
        f"{found}. Choose parts (`where`) or target modules that the model runs for this task"
    )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - NAMES_SHOWN} more" if len(every) > NAMES_SHOWN else ""
    return ", ".join(every[:NAMES_SHOWN]) + more
