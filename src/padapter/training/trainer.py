"""The trainer: transformers' ``Seq2SeqTrainer`` with our batches, our checkpoints and our scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import Seq2SeqTrainer, TrainerControl
from transformers.trainer_callback import ExportableState
from transformers.training_args import OptimizerNames

from padapter.evaluation.processes import ALONE, Processes
from padapter.training.batches import FAILURE, IDLE, Collator, EpochSampler, Rows, SharedBatches, raise_failures
from padapter.training.callbacks import EpochOrder
from padapter.training.checkpoints import rotate, write_state, written_whole
from padapter.training.keeping import TRAINER_STATE
from padapter.training.optimizers import can_be_fused, go_on_its_own_way
from padapter.training.rates import split_rates

IGNORE = -100


@dataclass(frozen=True)
class CheckpointWriter:
    """What the trainer needs to write a checkpoint of its own accord.

    Attributes:
        folder: holds ``checkpoint-N``.
        keep: how many of the latest to keep.
        save_weights: writes what is trained into a folder.
        state: what else to remember, asked for at every checkpoint.
    """

    folder: Path
    keep: int
    save_weights: Callable[[Path], None]
    state: Callable[[], dict[str, Any]]


class AdapterTrainer(Seq2SeqTrainer):
    """Trains whatever is trainable in a backbone.

    Differences from its base class: checkpoints hold the adapter instead of the frozen model and appear whole or not
    at all; the order of rows depends on (seed, epoch) alone; accumulating gradients over k batches gives the gradient
    of the one batch that the k together are; weight decay is for matrices only; scores come from the task. Several
    processes make the steps of one: no row is added to fill a batch up.

    Args:
        module: maps a batch to ``{"loss": ...}``.
        reduction: how that loss is averaged, ``sequence`` or ``token``.
        checkpoints: how to write a checkpoint.
        score: computes the scores during training, with their ``rule``; ``None`` if there is nothing to score on.
        args: transformers' training arguments.
        collator: rows to batch.
        rows: training rows.
        callbacks: watched while training.
        rate_factors: learning rates of some parameters relative to ``args.learning_rate``, see
            :meth:`padapter.methods.Method.learning_rate_factors`.
        processes: those that train together, each with its share of every batch.
    """

    control: TrainerControl

    def __init__(
        self,
        module: nn.Module,
        *,
        reduction: str,
        checkpoints: CheckpointWriter,
        score: Callable[[], dict[str, Any]] | None,
        args: Any,
        collator: Collator,
        rows: Rows,
        callbacks: list[Any],
        rate_factors: Mapping[str, float] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.reduction = reduction
        self.checkpoints = checkpoints
        self.score = score
        self.rate_factors = dict(rate_factors or {})
        self.order = EpochSampler(len(rows), args.seed)
        super().__init__(
            model=module,
            args=args,
            data_collator=collator,
            train_dataset=rows,
            # Never iterated: `evaluate` below scores. The base class wants to see one.
            eval_dataset=rows if score is not None else None,
            callbacks=[EpochOrder(self.order), *callbacks],
        )
        # compute_loss below divides by the whole accumulated batch itself.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[tuple[int, int]]:
        return self.order

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; biases, norms and the scalars p and mu do not.

        They decay to zero; what a p-adapter with gcnii trains is W - I, so its W decays to the identity.
        """
        return [name for name, value in model.named_parameters() if value.ndim >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The base class's, with the method's own rates."""
        fresh = self.optimizer is None
        if fresh and not can_be_fused(self.model if model is None else model):
            self.args.optim = OptimizerNames.ADAMW_TORCH
        optimizer = super().create_optimizer(model)
        if fresh:
            go_on_its_own_way(optimizer)
        if fresh and self.rate_factors:
            split_rates(optimizer, self.model if model is None else model, self.rate_factors)
        return optimizer

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # Where the parent process first sees the batches of a step.
        failures = [batch[FAILURE] for batch in batch_samples if FAILURE in batch]
        mine = 0.0 if failures else sum(batch_units(batch, self.reduction) for batch in batch_samples)
        everyone = self.processes.gather((failures, mine))
        raise_failures(failure for failed, _ in everyone for failure in failed)
        return sum(units for _, units in everyone)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """This batch's share of the loss of the whole accumulated batch.

        Times the number of processes, since gradients (and the loss in the log) are averaged over them.
        """
        units = batch_units(inputs, self.reduction)
        outputs = model(**{name: value for name, value in inputs.items() if name != IDLE})
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            loss = loss * (units * self.processes.count / float(num_items_in_batch))
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score as the task scores; the base class would compute a loss."""
        if self.score is None:
            raise ValueError("there is no evaluation data")
        metrics = {f"eval_{name}": value for name, value in self.score().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The base class's, which remembers the best step; its checkpoint is written whatever the rhythm of others."""
        better = super()._determine_best_metric(metrics, trial)
        self.control.should_save = bool(better or self.control.should_save)
        return self.control.should_save

    def get_train_dataloader(self) -> DataLoader[Any]:
        """In several processes, the rows of this one; accelerate would repeat rows until all have the same number."""
        if self.processes.count == 1:
            return super().get_train_dataloader()
        index, count = self.processes.index, self.processes.count
        size = self.args.per_device_train_batch_size * count
        return DataLoader(
            self.train_dataset,
            batch_sampler=SharedBatches(self.order, size, index, count),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The base class's; each process draws its own numbers, for dropout. A checkpoint restores them."""
        if self.processes.count > 1:
            torch.manual_seed(self.args.seed + self.processes.index)
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        random_states = self.processes.gather(self._random_state()) if self.processes.count > 1 else None
        if self.processes.main:
            self._write_checkpoint(random_states)

    def _random_state(self) -> dict[str, bytes]:
        """The base class's file with the state of this process's generators: name -> content."""
        with TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def _write_checkpoint(self, random_states: list[dict[str, bytes]] | None) -> None:
        step = self.state.global_step
        with written_whole(self.checkpoints.folder, step) as folder:
            self.checkpoints.save_weights(folder / "weights")
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            if random_states is None:
                self._save_rng_state(str(folder))
            for name, content in (item for state in random_states or () for item in state.items()):
                (folder / name).write_bytes(content)
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / TRAINER_STATE))
            write_state(folder, self.checkpoints.state())
        rotate(self.checkpoints.folder, self.checkpoints.keep, self.state.best_global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing to do: the method has loaded the weights before the trainer was made."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the base class would ask the model for a method that only its own models have."""
        return 0


def batch_units(batch: dict[str, Any], reduction: str) -> float:
    """What the loss of a batch is an average over.

    Args:
        batch: as the collator makes it.
        reduction: ``sequence``: the number of pictures; ``token``: the weighted number of tokens with a label.

    Returns:
        The number; 0 for a batch that only keeps its process busy.
    """
    if IDLE in batch:
        return 0.0
    if reduction == "sequence":
        return float(batch["image_index"].max() + 1)
    labelled = (batch["labels"][:, 1:] != IGNORE).sum(dim=1)  # (S,)
    return float((batch["weights"] * labelled).sum())
