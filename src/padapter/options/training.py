"""How a model is asked, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from padapter.options.fields import (
    NEVER,
    SPLIT_NAMES,
    check_at_least,
    check_augmentation,
    check_choices,
    check_every,
    option,
    refuse,
    split_method,
)

PRECISIONS = ("fp32", "bf16", "fp16")
INFERENCES = ("generate", "rank")
DEVICES = ("auto", "cpu", "cuda")
ATTENTIONS = ("sdpa", "eager")
RESIZES = ("squash", "crop", "pad")
KEPT = ("last", "best")


@dataclass(kw_only=True)
class PictureOptions:
    """What a model gets of a picture: shared by all commands that show it one."""

    image_size: int | None = option(
        None, help="Width and height of pictures for the model, in pixels. (default: the run's, or the model's own)"
    )
    resize: str | None = option(
        None,
        choices=RESIZES,
        metavar="squash|crop|pad",
        help="How pictures are made square, bicubic. (default: the run's, or the model's own)",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "image_size")


@dataclass(kw_only=True)
class InferenceOptions(PictureOptions):
    """How a model is asked: shared by training, evaluation and prediction."""

    inference: str | None = option(
        None,
        choices=INFERENCES,
        metavar="generate|rank",
        help="Write answers freely, or choose the most likely candidate. (default: the task's own)",
    )
    num_beams: int | None = option(None, help="Beams when generating. (default: the task's own)")
    max_new_tokens: int | None = option(None, help="Longest generated text in tokens. (default: the task's own)")
    min_new_tokens: int | None = option(None, help="Shortest generated text in tokens. (default: the task's own)")
    rank_candidates: int | None = option(
        None, help="When ranking: candidates that survive the first-token filter. (default: 32)"
    )
    eval_batch_size: int = option(32, help="Rows per batch when predicting.")
    prompt: str | None = option(
        None,
        metavar="TEMPLATE",
        help="Prompt with a place for {question} or {hypothesis}. (default: the task's own)",
    )
    precision: str = option(
        "fp32",
        choices=PRECISIONS,
        metavar="fp32|bf16|fp16",
        help="Number format of the forward and backward pass.",
    )
    attention: str = option(
        "sdpa",
        choices=ATTENTIONS,
        metavar="sdpa|eager",
        help="Plain attention in one fused call wherever the model can, or step by step.",
    )
    cache_features: bool = option(False, help="Keep what a frozen image encoder computes on disk.")
    device: str = option("auto", choices=DEVICES, metavar="auto|cpu|cuda", help="Where to compute.")
    quiet: bool = option(False, help="No progress bars; only the result.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "num_beams", "max_new_tokens", "rank_candidates", "eval_batch_size")
        check_at_least(self, 0, "min_new_tokens")
        generating = (self.num_beams, self.max_new_tokens, self.min_new_tokens)
        if self.inference == "rank" and generating != (None, None, None):
            raise refuse(
                "--inference", "'rank' generates nothing; drop --num-beams, --max-new-tokens and --min-new-tokens"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise refuse("--precision", "fp16 needs a GPU; use bf16 or fp32 with --device cpu")


@dataclass(kw_only=True)
class ScoringOptions(InferenceOptions):
    """How answers are scored, besides: what commands that score have in common."""

    rule: str | None = option(
        None, metavar="NAME", help="Rule that scores; an unknown one lists them all. (default: chosen from the data)"
    )
    meteor: bool | None = option(None, help="METEOR of captions: 12 s and 1 GB more. (default: `eval` yes, `train` no)")


@dataclass(kw_only=True)
class TrainOptions(ScoringOptions):
    """Options of ``padapter train``."""

    task: str = option(metavar="TASK", help="What is asked of the model: vqa, entailment or caption.")
    model: str = option(metavar="ID|DIR", help="Model to adapt: a folder, a hub id, or shapes-blip (built in).")
    train: str = option(metavar="DATA", help="Training data: a file, a folder, NAME:FOLDER, ... (docs/data.md).")
    eval: str | None = option(None, metavar="DATA", help="Data to score on before and after training.")
    method: str = option(
        "p-adapter",
        metavar="NAME",
        help="How to adapt, e.g. lora or lora:r=4; `padapter methods` lists all.",
    )
    method_options: dict[str, Any] = option(  # noqa: RUF009 (`option` returns a dataclass field)
        dict,
        flag="--set",
        metavar="NAME=VALUE",
        help="An option of the method, e.g. p=1.25; may be repeated.",
    )
    output: str = option(metavar="RUN", short="-o", help="Folder for the adapter, scores, predictions and log.")
    config: str | None = option(
        None, metavar="FILE", in_yaml=False, help="YAML recipe; flags on the command line win over it."
    )
    train_split: str = option("train", help=f"Split of the training data: {SPLIT_NAMES}")
    eval_split: str = option("validation", help=f"Split of the evaluation data: {SPLIT_NAMES}")
    limit_train: int | None = option(None, help="Use only this many training rows.")
    limit_eval: int | None = option(None, help="Use only this many evaluation rows.")
    skip_bad_rows: bool = option(False, help="Leave out rows that cannot be used, and count them.")
    augment: str = option(
        "none",
        metavar="LIST",
        help="Change training pictures at random: none, published, or e.g. crop,flip (docs/augmentation.md).",
    )
    seed: int = option(42, help="Seed of initialisation, order and dropout.")
    epochs: float | None = option(None, help="Passes over the training data. (default: 1 unless --max-steps)")
    max_steps: int | None = option(None, help="Optimizer steps, instead of --epochs.")
    batch_size: int = option(8, help="Rows per forward pass, in all processes together.")
    gradient_accumulation: int = option(1, help="Forward passes per optimizer step.")
    learning_rate: float | None = option(None, help="Peak learning rate. (default: the method's own)")
    lr_scheduler: str = option(
        "linear",
        choices=("linear", "cosine", "constant", "constant_with_warmup"),
        metavar="NAME",
        help="Course of the learning rate: linear, cosine, constant or constant_with_warmup.",
    )
    warmup_ratio: float = option(0.0, help="Share of the steps in which the learning rate rises.")
    weight_decay: float = option(0.05, help="AdamW weight decay; matrices only, never biases, norms, p or mu.")
    max_grad_norm: float = option(1.0, help="Gradient norm is clipped to this; 0 switches clipping off.")
    max_length: int | None = option(
        None, help="Longest sequence in tokens; a longer prompt loses its start. (default: the model's own)"
    )
    num_workers: int = option(0, help="Processes that open and collate images.")
    log_every: int = option(10, help="Optimizer steps between two lines of the log.")
    eval_every: str = option(NEVER, metavar="WHEN", help="Score during training: never, epoch, or every so many steps.")
    save_every: str = option("100", metavar="WHEN", help="Write a checkpoint: never, epoch, or every so many steps.")
    keep_checkpoints: int = option(1, help="How many of the latest checkpoints to keep.")
    keep: str = option(
        "last",
        choices=KEPT,
        metavar="last|best",
        help="Weights to keep: of the last step, or of the best score on --eval during training.",
    )
    score_base: bool = option(True, help="Score the unadapted model first, so that the gain shows.")
    resume: bool = option(False, in_yaml=False, help="Continue RUN from its last complete checkpoint.")
    overwrite: bool = option(False, in_yaml=False, help="Start anew in a RUN that exists.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._take_method_apart()
        for name in ("task", "model", "train", "output", "method"):
            if not getattr(self, name).strip():
                raise refuse("--" + name, "must not be empty")
        check_at_least(self, 1, "limit_train", "limit_eval", "max_steps", "batch_size", "gradient_accumulation")
        check_at_least(self, 1, "keep_checkpoints", "log_every")
        check_at_least(self, 2, "max_length")
        check_at_least(self, 0, "seed", "weight_decay", "max_grad_norm", "num_workers", "warmup_ratio")
        check_at_least(self, 0, "epochs", "learning_rate", exclusive=True)
        if self.warmup_ratio >= 1:
            raise refuse("--warmup-ratio", f"must be below 1, got {self.warmup_ratio}")
        self.eval_every, self.save_every = str(self.eval_every), str(self.save_every)
        check_every("--eval-every", self.eval_every)
        check_every("--save-every", self.save_every)
        self._refuse_contradictions()

    def _take_method_apart(self) -> None:
        """``method="p-adapter:p=1.25"`` becomes ``method="p-adapter", method_options={"p": "1.25"}``."""
        self.method, inline = split_method(self.method)
        for name, value in inline.items():
            if name in self.method_options and str(self.method_options[name]) != value:
                raise refuse("--method", f"{name}={value} contradicts --set {name}={self.method_options[name]}")
        self.method_options = {**inline, **self.method_options}

    def _refuse_contradictions(self) -> None:
        if self.epochs is not None and self.max_steps is not None:
            raise refuse("--max-steps", "contradicts --epochs; give one of the two")
        if self.resume and self.overwrite:
            raise refuse("--overwrite", "contradicts --resume; give one of the two")
        check_augmentation(self.augment, self.cache_features)
        if self.eval is None and self.eval_every != NEVER:
            raise refuse("--eval-every", "there is nothing to score on; give --eval DATA")
        if self.keep == "best" and self.eval is None:
            raise refuse("--keep", "'best' needs rows to score on during training; give --eval DATA and --eval-every")
        if self.keep == "best" and self.eval_every == NEVER:
            raise refuse("--keep", "'best' compares scores during training; give --eval-every epoch, or so many steps")
        if self.eval is None and self.limit_eval is not None:
            raise refuse("--limit-eval", "there is nothing to limit; give --eval DATA")
