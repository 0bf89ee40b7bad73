"""Every option of every command, once.

The dataclasses below are the Python interface (``TrainOptions(task="vqa", ...)``), the keys of a YAML recipe
and the flags of the command line at the same time. Nothing here imports torch: ``--help`` stays quick.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from padapter.conversion import convert, names_close_to, read_yaml
from padapter.errors import UserError
from padapter.option_fields import (
    EPOCH,
    NEVER,
    check_at_least,
    check_augmentation,
    check_choices,
    check_every,
    flag_of,
    option,
    own_first,
    parse_settings,
    refuse,
    split_method,
)

PRECISIONS = ("fp32", "bf16", "fp16")
INFERENCES = ("generate", "rank")
DEVICES = ("auto", "cpu", "cuda")
ATTENTIONS = ("sdpa", "eager")
RESIZES = ("squash", "crop", "pad")

T = TypeVar("T")


@dataclass(kw_only=True)
class InferenceOptions:
    """How a model is asked: shared by training, evaluation and prediction."""

    inference: str | None = option(
        None,
        choices=INFERENCES,
        metavar="generate|rank",
        help="Write answers freely, or choose the most likely candidate. (default: the task's own)",
    )
    num_beams: int | None = option(None, help="Beams when generating. (default: the task's own)")
    max_new_tokens: int | None = option(None, help="Longest generated text in tokens. (default: the task's own)")
    rank_candidates: int | None = option(
        None, help="When ranking: candidates that survive the first-token filter. (default: 32)"
    )
    eval_batch_size: int = option(32, help="Rows per batch when predicting.")
    prompt: str | None = option(
        None,
        metavar="TEMPLATE",
        help="Prompt with a place for {question} or {hypothesis}. (default: the task's own)",
    )
    rule: str | None = option(
        None, metavar="NAME", help="Rule that scores; an unknown one lists them all. (default: chosen from the data)"
    )
    meteor: bool | None = option(
        None, help="METEOR of captions: 12 seconds and 1 GB more per scoring. (default: `eval` yes, `train` no)"
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
    image_size: int | None = option(
        None, help="Width and height of pictures for the model, in pixels. (default: the run's, or the model's own)"
    )
    resize: str | None = option(
        None,
        choices=RESIZES,
        metavar="squash|crop|pad",
        help="How pictures are made square, bicubic. (default: the run's, or the model's own)",
    )
    cache_features: bool = option(
        False, help="Keep the output of a frozen image encoder on disk (half precision) and compute it only once."
    )
    device: str = option("auto", choices=DEVICES, metavar="auto|cpu|cuda", help="Where to compute.")
    quiet: bool = option(False, help="No progress bars; only the result.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "num_beams", "max_new_tokens", "rank_candidates", "eval_batch_size", "image_size")
        if self.inference == "rank" and (self.num_beams is not None or self.max_new_tokens is not None):
            raise refuse("--inference", "'rank' generates nothing; drop --num-beams and --max-new-tokens")
        if self.precision == "fp16" and self.device == "cpu":
            raise refuse("--precision", "fp16 needs a GPU; use bf16 or fp32 with --device cpu")


@dataclass(kw_only=True)
class TrainOptions(InferenceOptions):
    """Options of ``padapter train``."""

    task: str = option(metavar="vqa|entailment|caption", help="What is asked of the model.")
    model: str = option(metavar="ID|DIR", help="Model to adapt: 'shapes-blip' (built in), a folder or a hub id.")
    train: str = option(
        metavar="DATA", help="Training data: a file beside its images, a folder, a benchmark NAME:FOLDER, a hub id, ..."
    )
    eval: str | None = option(None, metavar="DATA", help="Data to score on before and after training.")
    method: str = option(
        "p-adapter",
        metavar="NAME[:K=V,...]",
        help="How to adapt; `padapter methods` lists them with their options.",
    )
    method_options: dict[str, Any] = option(  # noqa: RUF009 (`option` returns a dataclass field)
        dict,
        flag="--set",
        metavar="NAME=VALUE",
        help="An option of the method, e.g. --set p=1.25; may be repeated.",
    )
    output: str = option(metavar="RUN", help="Folder that receives the adapter, scores, predictions and log.")
    config: str | None = option(
        None, metavar="FILE", in_yaml=False, help="YAML recipe; flags on the command line win over it."
    )
    train_split: str = option("train", help="Split of the training data.")
    eval_split: str = option("validation", help="Split of the evaluation data.")
    limit_train: int | None = option(None, help="Use only this many training rows.")
    limit_eval: int | None = option(None, help="Use only this many evaluation rows.")
    skip_bad_rows: bool = option(False, help="Leave out rows that cannot be used, and count them.")
    augment: str = option(
        "none",
        metavar="none|published|LIST",
        help="Change training pictures at random, e.g. crop,flip,randaugment:n=2:m=5; see docs/augmentation.md.",
    )
    seed: int = option(42, help="Seed of initialisation, order and dropout.")
    epochs: float | None = option(None, help="Passes over the training data. (default: 1 unless --max-steps)")
    max_steps: int | None = option(None, help="Optimizer steps, instead of --epochs.")
    batch_size: int = option(8, help="Rows per forward pass.")
    gradient_accumulation: int = option(1, help="Forward passes per optimizer step.")
    learning_rate: float | None = option(None, help="Peak learning rate. (default: the method's own)")
    lr_scheduler: str = option(
        "linear",
        choices=("linear", "cosine", "constant", "constant_with_warmup"),
        metavar="linear|cosine|constant|constant_with_warmup",
        help="Course of the learning rate.",
    )
    warmup_ratio: float = option(0.0, help="Share of the steps in which the learning rate rises.")
    weight_decay: float = option(0.05, help="AdamW weight decay; matrices only, never biases, norms, p or mu.")
    max_grad_norm: float = option(1.0, help="Gradient norm is clipped to this; 0 switches clipping off.")
    max_length: int | None = option(
        None, help="Longest sequence in tokens; a longer prompt loses its start. (default: the model's own)"
    )
    num_workers: int = option(0, help="Processes that open and collate images.")
    log_every: int = option(10, help="Optimizer steps between two lines of the log.")
    eval_every: str = option(NEVER, metavar="never|epoch|STEPS", help="When to score during training.")
    save_every: str = option("100", metavar="never|epoch|STEPS", help="When to write a checkpoint.")
    keep_checkpoints: int = option(1, help="How many of the latest checkpoints to keep.")
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
        if self.eval is None and self.limit_eval is not None:
            raise refuse("--limit-eval", "there is nothing to limit; give --eval DATA")


@dataclass(kw_only=True)
class SourceOptions(InferenceOptions):
    """Which adapted model answers: a run, or a model with or without an adapter."""

    run: str | None = option(None, metavar="RUN", help="Folder written by `padapter train`.")
    model: str | None = option(None, metavar="ID|DIR", help="Model, when there is no --run.")
    adapter: str | None = option(None, metavar="DIR", help="Adapter folder in PEFT format, for --model.")
    task: str | None = option(None, metavar="vqa|entailment|caption", help="Task. (default: the run's own)")
    candidates: str | None = option(
        None, metavar="FILE", help="Answers to rank, one per line. (default: those of the run's training data)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.run is None) == (self.model is None):
            raise refuse("--run", "give either --run RUN or --model MODEL (with --adapter DIR if it is adapted)")
        if self.run is not None and self.adapter is not None:
            raise refuse("--adapter", "contradicts --run, which has its own adapter; give --model instead of --run")
        if self.run is None and self.task is None:
            raise refuse("--task", "is needed with --model")


@dataclass(kw_only=True)
class EvalOptions(SourceOptions):
    """Options of ``padapter eval``."""

    data: str = option(metavar="DATA", help="Data to score on.")
    split: str = option("test", help="Split of the data.")
    output: str | None = option(
        None, metavar="DIR", help="Folder for metrics.json and predictions.jsonl. (default: print only)"
    )
    limit: int | None = option(None, help="Score only this many rows.")
    skip_bad_rows: bool = option(False, help="Leave out rows that cannot be used, and count them.")
    overwrite: bool = option(False, in_yaml=False, help="Replace results that exist in --output.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "limit")


@dataclass(kw_only=True)
class PredictOptions(SourceOptions):
    """Options of ``padapter predict``."""

    image: str | None = option(None, metavar="FILE", help="One picture to ask about.")
    text: str | None = option(None, help="The question or hypothesis about --image; captions need none.")
    data: str | None = option(None, metavar="DATA", help="Rows to answer, instead of --image.")
    split: str = option("test", help="Split of the data.")
    output: str | None = option(None, metavar="FILE", help="JSONL file for the answers. (default: standard output)")
    limit: int | None = option(None, help="Answer only this many rows.")
    skip_bad_rows: bool = option(False, help="Leave out rows that cannot be used, and count them.")
    overwrite: bool = option(False, in_yaml=False, help="Replace --output if it exists.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "limit")
        if (self.image is None) == (self.data is None):
            raise refuse("--image", "give either --image FILE (with --text) or --data DATA")
        if self.data is not None and self.text is not None:
            raise refuse("--text", "belongs to --image; rows of --data bring their own")
        for flag, given in (("--rule", self.rule), ("--meteor", self.meteor)):
            if given is not None:
                raise refuse(flag, "`predict` scores nothing; `eval` does")


@dataclass(kw_only=True)
class SubmitOptions:
    """Options of ``padapter submit``."""

    predictions: str = option(
        metavar="PREDICTIONS", positional=True, help="predictions.jsonl of a run or of `eval`, or what `predict` wrote."
    )
    data: str = option(metavar="DATA", help="The data that were answered: their ids must be those of the predictions.")
    split: str = option("test", help="Split of the data.")
    format: str | None = option(
        None, metavar="NAME", help="What the server accepts; an unknown one lists them all. (default: that of DATA)"
    )
    output: str = option(metavar="FILE", help="JSON file for the server.")
    overwrite: bool = option(False, in_yaml=False, help="Replace --output if it exists.")


@dataclass(kw_only=True)
class DataCheckOptions:
    """Options of ``padapter data check``."""

    data: str = option(
        metavar="DATA", positional=True, help="A file beside its images, a folder, a benchmark NAME:FOLDER, ..."
    )
    task: str | None = option(
        None,
        metavar="vqa|entailment|caption",
        help="Task whose fields the rows must have. (default: told from the fields)",
    )
    split: str | None = option(None, help="Split to check. (default: every split of a folder)")
    show: int = option(50, help="Problems to print; the count is always of all.")

    def __post_init__(self) -> None:
        check_at_least(self, 0, "show")


@dataclass(kw_only=True)
class DataShardOptions:
    """Options of ``padapter data shard``."""

    data: str = option(metavar="DATA", positional=True, help="What to pack: a file, a folder, NAME:FOLDER, ...")
    destination: str = option(metavar="DST", positional=True, help="Folder to write the tar files and the index into.")
    task: str | None = option(
        None,
        metavar="vqa|entailment|caption",
        help="Task whose fields the rows must have. (default: told from the fields)",
    )
    split: str | None = option(None, help="Split to pack. (default: every split that is there)")
    size: int = option(1000, metavar="MB", help="Megabytes at which a new tar file is begun.")
    skip_bad_rows: bool = option(False, help="Leave out rows with problems instead of refusing the data.")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "size")


@dataclass(kw_only=True)
class CompareOptions:
    """Options of ``padapter compare``."""

    recipe: str = option(metavar="RECIPE", positional=True, help="YAML file: methods, benchmarks, seeds; see docs.")
    output: str | None = option(None, metavar="DIR", help="Folder of the comparison; the same one again continues it.")
    jobs: int | None = option(None, help="Runs at a time. (default: one per GPU, or one)")
    only: str | None = option(
        None, metavar="NAMES", in_yaml=False, help="Only run these benchmarks and methods (commas between them)."
    )
    tune: bool = option(False, in_yaml=False, help="First choose learning rates on validation rows, by the grid.")
    match: bool = option(False, in_yaml=False, help="Only print the sizes that the recipe's budget leads to.")
    dry_run: bool = option(False, in_yaml=False, help="Only print what would be run, and check models and data.")
    report_only: bool = option(False, in_yaml=False, help="Only write the report of the runs that are finished.")
    overwrite: bool = option(
        False, in_yaml=False, help="Repeat finished runs whose options have changed; begin unfinished ones anew."
    )
    device: str = option("auto", choices=DEVICES, metavar="auto|cpu|cuda", help="Where to compute.")
    quiet: bool = option(False, help="No progress; only the result.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "jobs")
        only = [name for name in ("match", "dry_run", "report_only") if getattr(self, name)]
        if len(only) > 1:
            flags = [f"--{name.replace('_', '-')}" for name in only]
            raise refuse(flags[1], f"contradicts {flags[0]}; give one of the two")
        if self.report_only and self.overwrite:
            raise refuse("--overwrite", "contradicts --report-only, which runs nothing; give one of the two")
        if self.output is None and not (self.match or self.dry_run):
            raise refuse("--output", "is needed")


def options_from(cls: type[T], config: str | Path | None = None, overrides: dict[str, Any] | None = None) -> T:
    """Build options from a YAML recipe and values that win over it.

    Args:
        cls: one of the dataclasses above.
        config: a YAML file of ``field: value`` lines; relative paths in it start at the working folder.
        overrides: values by field name; ``None`` means not given.

    Returns:
        The validated options.

    Raises:
        UserError: for a file that cannot be read, an unknown key, a missing option or a bad value.
    """
    values: dict[str, Any] = {}
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    if config is not None:
        for name, value in read_yaml(config).items():
            if name not in known or not known[name].metadata["in_yaml"]:
                raise _unknown_key(config, name, [key for key, item in known.items() if item.metadata["in_yaml"]])
            values[name] = convert(value, hints[name], f"{config}: {name}")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{cls.__name__} has no option {name!r}{names_close_to(name, list(known))}")
        given[name] = convert(value, hints[name], flag_of(known[name]))
    values.update(_merge_methods(values, given) if "method" in known else given)
    if config is not None and "config" in known:
        values["config"] = str(config)
    for item in known.values():
        needed = item.default is MISSING and item.default_factory is MISSING
        if needed and item.name not in values:
            raise refuse(flag_of(item), "is needed")
    return cls(**values)


def _merge_methods(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was given, with the recipe's method options kept below it unless another method was named."""
    below, _ = split_method(str(recipe.get("method", TrainOptions.method)))
    name, inline = split_method(given.get("method", below))
    settings = given.get("method_options", {})
    for key in inline.keys() & settings.keys():
        if str(settings[key]) != inline[key]:
            raise refuse("--method", f"{key}={inline[key]} contradicts --set {key}={settings[key]}")
    if not given.keys() & {"method", "method_options"}:
        return given
    _, written = split_method(str(recipe.get("method", "")))
    kept = {**written, **recipe.get("method_options", {})} if name == below else {}
    return {**given, "method": name, "method_options": {**kept, **inline, **settings}}


def _unknown_key(config: str | Path, name: str, known: list[str]) -> UserError:
    return UserError(f"{config}: unknown key {name!r}{names_close_to(name, known)}")


def to_plain(options: Any) -> dict[str, Any]:
    """Options as plain values, for ``config.yaml``: what a recipe may hold."""
    values = asdict(options)
    return {item.name: values[item.name] for item in own_first(type(options)) if item.metadata["in_yaml"]}


def resume_config(cls: type[Any], given: dict[str, Any]) -> Path | None:
    """The run's own ``config.yaml`` when it is to be resumed, so that ``--resume --output RUN`` is enough."""
    if cls is not TrainOptions or not given.get("resume") or given.get("output") is None:
        return None
    config = Path(given["output"]) / "config.yaml"
    if not config.is_file() and given.get("task") is None:
        raise refuse("--resume", f"{given['output']} holds no run (there is no config.yaml)")
    return config if config.is_file() else None


__all__ = [
    "ATTENTIONS",
    "DEVICES",
    "EPOCH",
    "INFERENCES",
    "NEVER",
    "PRECISIONS",
    "CompareOptions",
    "DataCheckOptions",
    "DataShardOptions",
    "EvalOptions",
    "InferenceOptions",
    "PredictOptions",
    "SourceOptions",
    "TrainOptions",
    "flag_of",
    "option",
    "options_from",
    "own_first",
    "parse_settings",
    "refuse",
    "resume_config",
    "split_method",
    "to_plain",
]
