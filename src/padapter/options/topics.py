"""Options by topic: the help of a command with many of them is read a panel at a time."""

from __future__ import annotations

TOPICS: dict[str, tuple[str, ...]] = {
    "Data": (
        "train_split",
        "eval_split",
        "split",
        "limit_train",
        "limit_eval",
        "limit",
        "skip_bad_rows",
        "cache_features",
    ),
    "Pictures": ("augment", "image_size", "resize"),
    "Training": (
        "seed",
        "epochs",
        "max_steps",
        "batch_size",
        "gradient_accumulation",
        "learning_rate",
        "lr_scheduler",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "max_length",
    ),
    "Course of the run": ("log_every", "eval_every", "keep", "save_every", "keep_checkpoints", "resume"),
    "Answers": (
        "inference",
        "num_beams",
        "max_new_tokens",
        "min_new_tokens",
        "candidates",
        "rank_candidates",
        "prompt",
        "eval_batch_size",
    ),
    "Scores": ("rule", "meteor", "score_base"),
    "Machine": ("device", "precision", "attention", "num_workers", "quiet"),
}
"""Names of fields by topic. What stands nowhere here says what a command is about, and comes first."""

_TOPIC_OF = {name: topic for topic, names in TOPICS.items() for name in names}


def topic_of(name: str) -> str | None:
    """The topic of a field, or ``None`` for what a command is about."""
    return _TOPIC_OF.get(name)
