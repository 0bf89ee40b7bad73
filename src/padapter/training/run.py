"""One run from data to model card: score, train, score again, write down what was done."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Seq2SeqTrainingArguments, set_seed

from padapter.backbones import Backbone, load_backbone
from padapter.cache import cache_folder
from padapter.data import LoadedData, load_data, overlap
from padapter.data.augment import parse_augmentation
from padapter.errors import UserError
from padapter.evaluation.evaluate import Evaluation, describe_data, evaluate
from padapter.evaluation.files import output_problems
from padapter.evaluation.predict import Asking, resolve_asking, with_prompt
from padapter.evaluation.processes import refuse_several
from padapter.evaluation.results import peak_memory, provenance, write_json, write_text
from padapter.evaluation.scoring import with_scoring
from padapter.evaluation.source import place, weights_folder
from padapter.methods import Method, get_method
from padapter.methods.base import trainable_parameters
from padapter.options import EPOCH, NEVER, TrainOptions
from padapter.tasks import Task, get_task
from padapter.training.batches import Collator, Rows
from padapter.training.callbacks import DIVERGED, Bar, DivergedError, GradientCheck, Log, StepTimer, StopOnInterrupt
from padapter.training.checkpoints import read_state, step_of
from padapter.training.defaults import resolve, steps_per_epoch, total_steps
from padapter.training.model_card import model_card
from padapter.training.pictures import describe_augmentation, prepare_for_training
from padapter.training.run_folder import RunFolder
from padapter.training.trainer import AdapterTrainer, CheckpointWriter

# The p-adapter authors' optimizer (blip.md, section 5.4): AdamW with this epsilon.
ADAM_EPSILON = 1e-6


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; the message says how to go on."""


@dataclass(frozen=True)
class TrainReport:
    """What a run leaves behind.

    Attributes:
        output: the run's folder.
        metrics: the content of its ``metrics.json``.
    """

    output: Path
    metrics: dict[str, Any]


def train(options: TrainOptions) -> TrainReport:
    """Adapt a model and write RUN: adapter, scores, predictions, log, configuration and model card.

    A run can be killed at any moment. With ``options.resume`` it continues from its last complete checkpoint; on a
    CPU it then reaches the same weights, bit for bit, as it would have without the interruption.

    Args:
        options: what to train, on what and how.

    Returns:
        The run's folder and metrics.

    Raises:
        UserError: for anything a person can mend: options, data, model, a RUN that exists.
        Interrupted: after Ctrl-C; the message says how to resume.
    """
    folder = RunFolder(options.output)
    try:
        with output_problems(folder.path):
            return _Run(options, folder).go()
    except UserError as problem:
        if isinstance(problem, DivergedError) and folder.metrics.exists():
            folder.add_metrics(status=DIVERGED)
        folder.discard_unless_trained()
        raise
    except KeyboardInterrupt as stop:
        if not folder.config.exists():
            raise
        if folder.metrics.exists():
            folder.add_metrics(status="interrupted")
        command = f"padapter train --resume --output {folder.path}"
        raise Interrupted(f"interrupted; continue with: {command}") from stop


class _Run:
    """The stages of :func:`train`; cheap refusals come first, the model last."""

    def __init__(self, options: TrainOptions, folder: RunFolder) -> None:
        self.folder = folder
        self.task: Task = with_scoring(with_prompt(get_task(options.task), options.prompt), options)
        self.method: Method[Any] = get_method(options.method)
        self.options, self.settings = resolve(options, self.method)
        self.asking: Asking = resolve_asking(self.task, options)
        self.augmentation = parse_augmentation(options.augment)
        refuse_several("padapter train")
        folder.check(self.options)

    def go(self) -> TrainReport:
        done = self.folder.read_metrics() if self.options.resume else {}
        if done.get("status") == "finished":
            return TrainReport(self.folder.path, done)
        train_data, eval_data = self._load_data()
        checkpoint = self.folder.last_checkpoint() if self.options.resume else None
        self._check_data(checkpoint, train_data)
        if self.options.resume and checkpoint is None and not self.options.quiet:
            print(f"{self.folder.path} has no checkpoint yet: training starts from its first step", file=sys.stderr)
        backbone = self._load_backbone()
        self.folder.begin(self.options, backbone.preprocessing())
        candidates = self._candidates(train_data)
        self.folder.add_metrics(
            status="running",
            task=self.task.name,
            model=self.options.model,
            method=self.method.name,
            method_options=self.options.method_options,
            seed=self.options.seed,
            primary_metric=self.task.primary_metric,
            asking=asdict(self.asking),
            preprocessing=backbone.preprocessing(),
            augmentation=describe_augmentation(self.augmentation, self.task, train_data.dataset, self.options.quiet),
            data={"train": describe_data(train_data), "eval": describe_data(eval_data) if eval_data else None},
            provenance=provenance(),
        )
        self._score_base(backbone, eval_data, candidates)
        self._adapt(backbone, checkpoint)
        if self.options.cache_features:
            backbone.cache_features(cache_folder(), precision=self.options.precision, training=True)
        training = self._train(backbone, train_data, eval_data, candidates, checkpoint)
        self._save_weights(backbone)
        after = self._score(backbone, eval_data, candidates, self.folder.predictions, "scoring the adapted model")
        return self._finish(backbone, training, after)

    def _load_data(self) -> tuple[LoadedData, LoadedData | None]:
        options = self.options
        # The seed of training does not choose the data: runs with other seeds see the same rows.
        train_data = load_data(
            options.train,
            self.task,
            split=options.train_split,
            skip_bad_rows=options.skip_bad_rows,
            limit=options.limit_train,
            for_training=True,
        )
        if options.eval is None:
            return train_data, None
        eval_data = load_data(
            options.eval,
            self.task,
            split=options.eval_split,
            skip_bad_rows=options.skip_bad_rows,
            limit=options.limit_eval,
        )
        found = overlap((train_data.name, train_data.split), (eval_data.name, eval_data.split))
        if found is not None:
            warnings.warn(found, stacklevel=2)
        return train_data, eval_data

    def _check_data(self, checkpoint: Path | None, data: LoadedData) -> None:
        if len(data.dataset) == 0:
            raise UserError(f"--train: {self.options.train} has no rows to train on")
        if checkpoint is not None and read_state(checkpoint)["train_fingerprint"] != data.fingerprint:
            raise UserError(
                f"--resume: the training data {self.options.train!r} has changed since {checkpoint.name} was written; "
                "restore it, or start anew with --overwrite"
            )

    def _load_backbone(self) -> Backbone:
        backbone = load_backbone(self.options.model, attention=self.options.attention)
        longest = self.options.max_length
        if longest is not None:
            if longest > backbone.max_length:
                raise UserError(
                    f"--max-length: model {self.options.model!r} reads at most {backbone.max_length} tokens, "
                    f"got {longest}"
                )
            backbone.max_length = longest
        prepare_for_training(backbone, self.folder.path, self.options)
        place(backbone, self.options.device)
        return backbone

    def _candidates(self, data: LoadedData) -> Sequence[str] | None:
        if self.asking.inference != "rank":
            return None
        candidates = self.task.candidates(data.dataset)
        if not candidates:
            raise UserError(f"--inference: task {self.task.name!r} has no candidates to rank; use 'generate'")
        write_json(self.folder.candidates, {"candidates": list(candidates)})
        return candidates

    def _score(
        self,
        backbone: Backbone,
        data: LoadedData | None,
        candidates: Sequence[str] | None,
        output: Path | None,
        title: str,
        quiet: bool = False,
    ) -> Evaluation | None:
        if data is None:
            return None
        return evaluate(
            backbone,
            self.task,
            data,
            self.asking,
            candidates=candidates,
            output=output,
            # A run that continues may have reached other weights; what stands in its own folder need not be asked for.
            overwrite=True,
            title=title,
            quiet=quiet or self.options.quiet,
        )

    def _score_base(self, backbone: Backbone, data: LoadedData | None, candidates: Sequence[str] | None) -> None:
        known = self.folder.read_metrics().get("scores", {}).get("before")
        if not self.options.score_base or data is None or known is not None:
            return
        title = "scoring the unadapted model"
        before = self._score(backbone, data, candidates, self.folder.base_predictions, title)
        self.folder.add_metrics(scores={"before": before.summary() if before else None, "after": None})

    def _adapt(self, backbone: Backbone, checkpoint: Path | None) -> None:
        # Initial weights must not depend on what ran before, such as scoring the base.
        set_seed(self.options.seed)
        if checkpoint is None:
            self.method.apply(backbone, self.settings)
        else:
            self.method.load(backbone, checkpoint / "weights", trainable=True)
        place(backbone, self.options.device)

    def _train(
        self,
        backbone: Backbone,
        train_data: LoadedData,
        eval_data: LoadedData | None,
        candidates: Sequence[str] | None,
        checkpoint: Path | None,
    ) -> dict[str, Any]:
        rows = len(train_data.dataset)
        steps = total_steps(rows, self.options)
        start = step_of(checkpoint) if checkpoint is not None else 0
        timer = StepTimer(**(read_state(checkpoint)["timer"] if checkpoint is not None else {}))
        module = backbone.training_module(self.task.loss_reduction)
        log = Log(self.folder.log, start)
        if start < steps:
            writer = CheckpointWriter(
                folder=self.folder.checkpoints,
                keep=self.options.keep_checkpoints,
                save_weights=lambda path: self.method.save(backbone, path),
                state=lambda: {"train_fingerprint": train_data.fingerprint, "timer": timer.state()},
            )

            def score() -> dict[str, Any]:
                result = self._score(backbone, eval_data, candidates, None, "", quiet=True)
                return {**result.metrics, "rule": result.rule} if result is not None else {}

            self._run_trainer(
                module,
                checkpoints=writer,
                score=score if eval_data is not None else None,
                args=self._arguments(steps),
                collator=Collator(backbone, self.task, self.augmentation, self.options.seed),
                rows=Rows(train_data.dataset),
                rate_factors=self.method.learning_rate_factors(self.settings),
                watchers=[*([GradientCheck(module)] if self.method.all_learn else []), timer, log],
                checkpoint=checkpoint,
            )
        trained, total = trainable_parameters(backbone.model)
        return {
            "steps": steps,
            "epochs": steps / steps_per_epoch(rows, self.options),
            "learning_rate": self.options.learning_rate,
            "seconds": round(timer.seconds, 3),
            "seconds_per_step": round(timer.step_seconds / max(timer.steps, 1), 5),
            "last_loss": log.last_loss,
            "parameters": {"trainable": trained, "total": total},
            "features": backbone.features.summary() if backbone.features is not None else None,
            # Counted in this process only; collating workers keep their own count.
            "cut": {"prompts": backbone.cut_prompts, "targets": backbone.cut_targets}
            if self.options.num_workers == 0
            else None,
        }

    def _run_trainer(self, module: Any, *, watchers: list[Any], checkpoint: Path | None, **arguments: Any) -> None:
        bar = Bar(self.options.quiet)
        with StopOnInterrupt() as stop, _reproducible(), _closing(bar):
            trainer = AdapterTrainer(
                module, reduction=self.task.loss_reduction, callbacks=[stop, bar, *watchers], **arguments
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if stop.requested and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt

    def _arguments(self, steps: int) -> Seq2SeqTrainingArguments:
        options = self.options
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(self.folder.checkpoints),
            max_steps=steps,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.gradient_accumulation,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.lr_scheduler,
            warmup_steps=options.warmup_ratio,
            weight_decay=options.weight_decay,
            adam_epsilon=ADAM_EPSILON,
            max_grad_norm=options.max_grad_norm,
            optim="adamw_torch",
            seed=options.seed,
            bf16=options.precision == "bf16",
            fp16=options.precision == "fp16",
            use_cpu=_on_cpu(options.device),
            logging_steps=options.log_every,
            logging_first_step=True,
            # A loss that is no number stops the run (callbacks.Log) instead of being smoothed over.
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_num_workers=options.num_workers,
            dataloader_pin_memory=not _on_cpu(options.device),
            report_to="none",
            disable_tqdm=True,
            **_rhythm("eval", options.eval_every),
            **_rhythm("save", options.save_every),
        )
        # One GPU: a batch holds pictures and sequences of different number, which DataParallel cannot split.
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1
        return arguments

    def _save_weights(self, backbone: Backbone) -> None:
        final = weights_folder(self.folder.path, self.method)
        partial = self.folder.path / ".weights.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.method.save(backbone, partial)
        # PEFT writes a card of empty headings; the run's own stands one folder above.
        (partial / "README.md").unlink(missing_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)

    def _finish(self, backbone: Backbone, training: dict[str, Any], after: Evaluation | None) -> TrainReport:
        before = self.folder.read_metrics().get("scores", {}).get("before")
        metrics = self.folder.add_metrics(
            status="finished",
            scores={"before": before, "after": after.summary() if after is not None else None},
            training=training,
            memory=peak_memory(),
            provenance=provenance(),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_text(self.folder.card, model_card(metrics, self.method))
        return TrainReport(self.folder.path, metrics)


def _rhythm(what: str, every: str) -> dict[str, Any]:
    if every == NEVER:
        return {f"{what}_strategy": "no"}
    if every == EPOCH:
        return {f"{what}_strategy": "epoch"}
    return {f"{what}_strategy": "steps", f"{what}_steps": int(every)}


def _on_cpu(device: str) -> bool:
    return device == "cpu" or not torch.cuda.is_available()


@contextmanager
def _reproducible() -> Iterator[None]:
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


@contextmanager
def _closing(bar: Bar) -> Iterator[None]:
    try:
        yield
    finally:
        bar.close()
