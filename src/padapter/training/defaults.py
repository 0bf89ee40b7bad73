"""What the options leave open, filled in: the resolved options are what ``config.yaml`` records."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from padapter.errors import UserError
from padapter.methods import Method
from padapter.options import TrainOptions

LEARNING_RATES = {
    # The p-adapter authors' rate for VQA and entailment (they use 3e-4 for captions).
    "p-adapter": 5e-4,
    # The same bottleneck, hence the same rate.
    "adapter": 5e-4,
    "lora": 5e-4,
    # Prefixes start as noise and learn slowly.
    "prefix": 5e-3,
    # BLIP's own fine-tuning uses 1e-5 (captions) and 2e-5 (VQA).
    "full": 2e-5,
}


def resolve(options: TrainOptions, method: Method[Any]) -> tuple[TrainOptions, Any]:
    """Fill in learning rate, length of training and the method's options.

    Args:
        options: as given.
        method: the method that ``options.method`` names.

    Returns:
        The options with nothing left open, and the method's options in their own type.

    Raises:
        UserError: for an option the method does not have, a bad value, or a method without a default learning rate.
    """
    settings = method.parse(options.method_options)
    rate = options.learning_rate or LEARNING_RATES.get(method.name)
    if rate is None:
        raise UserError(f"--learning-rate: is needed, method {method.name!r} has no default")
    epochs = options.epochs if options.epochs or options.max_steps else 1.0
    resolved = replace(options, method_options=asdict(settings), learning_rate=rate, epochs=epochs)
    return resolved, settings


def steps_per_epoch(rows: int, options: TrainOptions) -> int:
    """Optimizer steps in one pass over the data; the last one of a pass may see fewer rows."""
    batches = -(-rows // options.batch_size)
    return max(-(-batches // options.gradient_accumulation), 1)


def total_steps(rows: int, options: TrainOptions) -> int:
    """Optimizer steps of the whole training."""
    if options.max_steps is not None:
        return options.max_steps
    epochs = options.epochs or 1.0
    return max(1, -int(-epochs * steps_per_epoch(rows, options) // 1))
