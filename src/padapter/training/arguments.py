"""Our options as transformers' training arguments, and what else must be set while its trainer runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from padapter.errors import UserError
from padapter.options import EPOCH, NEVER, TrainOptions

# The p-adapter authors' optimizer (blip.md, section 5.4): AdamW with this epsilon.
ADAM_EPSILON = 1e-6


def training_arguments(
    options: TrainOptions,
    folder: Path,
    steps: int,
    *,
    processes: int = 1,
    all_learn: bool = True,
    metric: str | None = None,
) -> Seq2SeqTrainingArguments:
    """The arguments of a training.

    Args:
        options: of the run, resolved.
        folder: that checkpoints are written into.
        steps: optimizer steps of the whole training.
        processes: how many train together; each gets an equal share of every batch.
        all_learn: whether every trainable parameter gets a gradient in every step.
        metric: score by which the best weights are chosen, if they are to be kept.

    Raises:
        UserError: when a launcher has not told which of the processes this is.
    """
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size // processes,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup_ratio,
        weight_decay=options.weight_decay,
        adam_epsilon=ADAM_EPSILON,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch_fused",  # one call for all parameters: adapters are many small ones
        seed=options.seed,
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        use_cpu=on_cpu(options.device),
        logging_steps=options.log_every,
        logging_first_step=True,
        # A loss that is no number stops the run (callbacks.Log) instead of being smoothed over.
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=options.num_workers,
        dataloader_pin_memory=not on_cpu(options.device),
        report_to="none",
        disable_tqdm=True,
        # Frozen weights and constants are the same in all processes from the start.
        ddp_broadcast_buffers=False,
        ddp_find_unused_parameters=not all_learn,
        **_rhythm("eval", options.eval_every),
        **_rhythm("save", options.save_every, otherwise="no" if metric is None else "best"),
        metric_for_best_model=metric,
        greater_is_better=None if metric is None else True,
    )
    # One GPU: a batch holds pictures and sequences of different number, which DataParallel cannot split.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    if arguments.world_size != processes:
        # Otherwise each would train by itself.
        raise UserError(
            f"{processes} processes are connected, but transformers sees {arguments.world_size}: RANK, LOCAL_RANK and "
            "WORLD_SIZE do not say so; start with torchrun or accelerate launch"
        )
    return arguments


def check_batch(options: TrainOptions, processes: int) -> None:
    """Refuse a batch that processes cannot share equally.

    Raises:
        UserError: naming ``--batch-size``.
    """
    if options.batch_size % processes:
        raise UserError(
            f"--batch-size: {options.batch_size} rows cannot be shared equally by {processes} processes; give a "
            f"multiple of {processes} (it counts the rows of all processes together)"
        )


def on_cpu(device: str) -> bool:
    """Whether ``--device`` means the CPU here."""
    return device == "cpu" or not torch.cuda.is_available()


@contextmanager
def reproducible() -> Iterator[None]:
    """Sums in a fixed order on the CPU, where a few backward passes would otherwise add in any order.

    GPUs are left alone: their deterministic kernels need an environment variable set before the process starts.
    """
    if torch.cuda.is_available():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _rhythm(what: str, every: str, otherwise: str = "no") -> dict[str, Any]:
    if every == NEVER:
        return {f"{what}_strategy": otherwise}
    if every == EPOCH:
        return {f"{what}_strategy": "epoch"}
    return {f"{what}_strategy": "steps", f"{what}_steps": int(every)}
