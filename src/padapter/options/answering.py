"""What answers, on what it is scored, and whom the answers are for."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.options.fields import SPLIT_NAMES, check_at_least, option, refuse
from padapter.options.training import InferenceOptions, ScoringOptions


@dataclass(kw_only=True)
class SourceOptions(InferenceOptions):
    """Which adapted model answers: a run, or a model with or without an adapter."""

    run: str | None = option(None, metavar="RUN", help="Folder written by `padapter train`.")
    model: str | None = option(None, metavar="ID|DIR", help="Model, when there is no --run.")
    adapter: str | None = option(None, metavar="DIR", help="Adapter folder in PEFT format, for --model.")
    task: str | None = option(None, metavar="TASK", help="Task: vqa, entailment or caption. (default: the run's own)")
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
class EvalOptions(SourceOptions, ScoringOptions):
    """Options of ``padapter eval``."""

    data: str = option(metavar="DATA", help="Data to score on.")
    split: str = option("test", help=f"Split of the data: {SPLIT_NAMES}")
    output: str | None = option(
        None, metavar="DIR", short="-o", help="Folder for metrics.json and predictions.jsonl. (default: print only)"
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
    split: str = option("test", help=f"Split of the data: {SPLIT_NAMES}")
    output: str | None = option(
        None, metavar="FILE", short="-o", help="JSONL file for the answers. (default: standard output)"
    )
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


@dataclass(kw_only=True)
class SubmitOptions:
    """Options of ``padapter submit``."""

    predictions: str = option(
        metavar="PREDICTIONS", positional=True, help="predictions.jsonl of a run or of `eval`, or what `predict` wrote."
    )
    data: str = option(metavar="DATA", help="The data that were answered: their ids must be those of the predictions.")
    split: str = option("test", help=f"Split of the data: {SPLIT_NAMES}")
    format: str | None = option(
        None, metavar="NAME", help="What the server accepts; an unknown one lists them all. (default: that of DATA)"
    )
    output: str = option(metavar="FILE", short="-o", help="JSON file for the server.")
    overwrite: bool = option(False, in_yaml=False, help="Replace --output if it exists.")
