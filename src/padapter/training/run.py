"""One run from data to model card: score, train, score again, write down what was done."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from padapter.backbones import Backbone, load_backbone
from padapter.cache import cache_folder
from padapter.data import LoadedData
from padapter.data.augment import parse_augmentation
from padapter.errors import UserError
from padapter.evaluation.asking import Asking, resolve_asking
from padapter.evaluation.evaluating import Evaluation, describe_data, evaluate
from padapter.evaluation.files import output_problems
from padapter.evaluation.processes import Processes, join_processes
from padapter.evaluation.results import peak_memory, provenance, write_jsonl
from padapter.evaluation.source import place, weights_folder
from padapter.methods import Method, get_method
from padapter.methods.base import trainable_parameters
from padapter.options import TrainOptions, flag_of
from padapter.tasks import Task
from padapter.training.arguments import check_batch, on_cpu, reproducible, training_arguments
from padapter.training.batches import Collator, Rows
from padapter.training.beforehand import TrainingData, load_training_data, task_of
from padapter.training.callbacks import DIVERGED, Bar, DivergedError, Log, StepTimer, StopOnInterrupt
from padapter.training.checkpoints import read_state, step_of
from padapter.training.defaults import resolve, steps_per_epoch, total_steps
from padapter.training.gradients import GradientCheck
from padapter.training.keeping import BEST, LAST, Kept, best_weights
from padapter.training.model_card import model_card
from padapter.training.pictures import describe_augmentation, prepare_for_training
from padapter.training.run_folder import RunFolder
from padapter.training.same_data import check_same_data, data_state
from padapter.training.trainer import AdapterTrainer, CheckpointWriter


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


def train(options: TrainOptions, data: TrainingData | None = None) -> TrainReport:
    """Adapt a model and write RUN: adapter, scores, predictions, log, configuration and model card.

    A run can be killed at any moment. With ``options.resume`` it continues from its last complete checkpoint; on a
    CPU it then reaches the same weights, bit for bit, as it would have without the interruption.

    Where several processes train together (see :func:`padapter.evaluation.processes.join_processes`) all of them make
    the call. Each works on its share of every batch, and the first one writes.

    Args:
        options: what to train, on what and how.
        data: what :func:`padapter.training.beforehand.data_to_train` has found; by default they are loaded.

    Returns:
        The run's folder and metrics.

    Raises:
        UserError: for anything a person can mend: options, data, model, a RUN that exists.
        Interrupted: after Ctrl-C; the message says how to resume.
    """
    processes = join_processes(gpu=not on_cpu(options.device))
    folder = RunFolder(options.output, processes)
    try:
        with output_problems(folder.path):
            return _Run(options, folder, processes, data).go()
    except UserError as problem:
        folder.stopped(DIVERGED if isinstance(problem, DivergedError) else None)
        folder.discard_unless_trained()
        raise
    except KeyboardInterrupt as stop:
        if not folder.config.exists():
            raise
        folder.stopped("interrupted")
        command = f"padapter train --resume --output {folder.path}"
        raise Interrupted(f"interrupted; continue with: {command}") from stop


class _Run:
    """The stages of :func:`train`; cheap refusals come first, the model last."""

    def __init__(
        self, options: TrainOptions, folder: RunFolder, processes: Processes, data: TrainingData | None
    ) -> None:
        self.data = data
        self.folder = folder
        self.processes = processes
        self.task: Task = task_of(options)
        self.method: Method[Any] = get_method(options.method)
        self.options, self.settings = resolve(options, self.method)
        self.asking: Asking = resolve_asking(self.task, options)
        self.augmentation = parse_augmentation(options.augment)
        self.quiet = options.quiet or not processes.main
        check_batch(options, processes.count)
        folder.check(self.options)

    def go(self) -> TrainReport:
        done = self.folder.read_metrics() if self.options.resume else {}
        if done.get("status") == "finished":
            self.folder.remove_left_over()
            return TrainReport(self.folder.path, done)
        data = self.data or load_training_data(self.options, self.task)
        train_data, eval_data = data.train, data.eval
        checkpoint = self.folder.last_checkpoint() if self.options.resume else None
        self._check_data(checkpoint, train_data)
        self._agree(train_data)
        if self.options.resume and checkpoint is None and not self.quiet:
            print(f"{self.folder.path} has no checkpoint yet: training starts from its first step", file=sys.stderr)
        backbone = self._load_backbone()
        self.folder.begin(self.options, backbone.preprocessing())
        candidates = self._candidates(train_data)
        self.folder.add_metrics(
            status="running",
            task=self.task.name,
            model=self.options.model,
            auto_class=backbone.auto_class,
            model_class=f"{type(backbone.base_model).__module__}.{type(backbone.base_model).__qualname__}",
            method=self.method.name,
            method_options=self.options.method_options,
            seed=self.options.seed,
            primary_metric=self.task.primary_metric,
            asking=asdict(self.asking),
            preprocessing=backbone.preprocessing(),
            augmentation=describe_augmentation(self.augmentation, self.task, train_data.dataset, self.quiet),
            data={"train": describe_data(train_data), "eval": describe_data(eval_data) if eval_data else None},
            provenance=provenance(),
        )
        self._score_base(backbone, eval_data, candidates)
        self._adapt(backbone, checkpoint)
        training = self._train(backbone, train_data, eval_data, candidates, checkpoint)
        kept, place_of_kept = self._kept(training["steps"])
        if kept.step != training["steps"]:
            # As a run that is continued begins, and without the model of the last step, which may be big.
            del backbone
            gc.collect()
            backbone = self._load_backbone()
            self._adapt(backbone, place_of_kept)
        training["kept"] = kept.record()
        self._save_weights(backbone)
        before = self.folder.read_metrics().get("scores", {}).get("before")

        def finish(after: Evaluation | None) -> None:
            self._finish(training, before, after)

        if eval_data is None and self.processes.main:
            finish(None)
        title = "scoring the adapted model"
        self._score(backbone, eval_data, candidates, self.folder.predictions, title, then=finish)
        self.folder.remove_left_over()
        return TrainReport(self.folder.path, self.folder.read_metrics())

    def _check_data(self, checkpoint: Path | None, data: LoadedData) -> None:
        if len(data.dataset) == 0:
            raise UserError(f"--train: {self.options.train} has no rows to train on")
        if checkpoint is not None:
            check_same_data(checkpoint, data, self.options.train)

    def _agree(self, data: LoadedData) -> None:
        """Refuse processes that were started with other options or see other data."""
        values = {flag_of(item): getattr(self.options, item.name) for item in fields(self.options)}
        self.processes.agree({**values, "training data": data.fingerprint})

    def _load_backbone(self) -> Backbone:
        backbone = load_backbone(self.options.model, attention=self.options.attention, asks=self.task.asks)
        self.task = self.task.led_by(backbone.lead_in)
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
        self.folder.write_candidates(candidates)
        return candidates

    def _score(
        self,
        backbone: Backbone,
        data: LoadedData | None,
        candidates: Sequence[str] | None,
        output: Path | None,
        title: str,
        quiet: bool = False,
        then: Callable[[Evaluation], None] | None = None,
    ) -> Evaluation | None:
        """Score; ``then`` writes the scores before the answers on their way to ``output`` are deleted."""
        if data is None:
            return None

        def deliver(result: Evaluation, lines: Iterable[dict[str, Any]]) -> None:
            if output is not None and then is not None:
                write_jsonl(output, lines)
                then(result)

        return evaluate(
            backbone,
            self.task,
            data,
            self.asking,
            candidates=candidates,
            output=output,
            # A run that continues may have reached other weights; what stands in its own folder need not be asked for.
            overwrite=True,
            deliver=deliver,
            title=title,
            quiet=quiet or self.quiet,
        )

    def _score_base(self, backbone: Backbone, data: LoadedData | None, candidates: Sequence[str] | None) -> None:
        known = self.folder.read_metrics().get("scores", {}).get("before")
        if not self.options.score_base or data is None or known is not None:
            return

        def keep(before: Evaluation) -> None:
            self.folder.scored_base(before.summary())

        title = "scoring the unadapted model"
        self._score(backbone, data, candidates, self.folder.base_predictions, title, then=keep)

    def _adapt(self, backbone: Backbone, checkpoint: Path | None) -> None:
        # Initial weights must not depend on what ran before, such as scoring the base.
        set_seed(self.options.seed)
        if checkpoint is None:
            self.method.apply(backbone, self.settings)
        else:
            self.method.load(backbone, checkpoint / "weights", trainable=True)
        place(backbone, self.options.device)
        if self.options.cache_features:
            backbone.cache_features(cache_folder(), precision=self.options.precision, training=True)

    def _kept(self, steps: int) -> tuple[Kept, Path | None]:
        """The weights that stay after the last of ``steps``, and their checkpoint if they were chosen."""
        if self.options.keep == LAST:
            return Kept(LAST, steps), None
        return self.processes.on_main(lambda: best_weights(self.folder.checkpoints, self.task.primary_metric))

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
        log = Log(self.folder.log if self.processes.main else None, start)
        gradients = GradientCheck(module)
        if start < steps:
            writer = CheckpointWriter(
                folder=self.folder.checkpoints,
                keep=self.options.keep_checkpoints,
                save_weights=lambda path: self.method.save(backbone, path),
                state=lambda: {**data_state(train_data), "timer": timer.state()},
            )

            def score() -> dict[str, Any]:
                result = self._score(backbone, eval_data, candidates, None, "", quiet=True)
                return {**result.metrics, "rule": result.rule} if result is not None else {}

            self._run_trainer(
                module,
                checkpoints=writer,
                score=score if eval_data is not None else None,
                args=training_arguments(
                    self.options,
                    self.folder.checkpoints,
                    steps,
                    processes=self.processes.count,
                    all_learn=self.method.all_learn,
                    metric=self.task.primary_metric if self.options.keep == BEST else None,
                ),
                collator=Collator(
                    backbone,
                    self.task,
                    self.augmentation,
                    self.options.seed,
                    origin=train_data.report.spec,
                    returns_failures=self.processes.count > 1,
                ),
                rows=Rows(train_data.dataset),
                rate_factors=self.method.learning_rate_factors(self.settings),
                watchers=[*([gradients] if self.method.all_learn else []), timer, log],
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
            "processes": self.processes.count,
            "parameters": {"trainable": trained, "total": total},
            # By part of the model; None where nobody looked.
            "without_gradient": None if gradients.found is None else gradients.found.counts,
            "features": backbone.features.summary() if backbone.features is not None else None,
            "cut": self._cut(backbone),
        }

    def _cut(self, backbone: Backbone) -> dict[str, int] | None:
        """How much was too long, in all processes; collating workers keep their own count, which is lost."""
        if self.options.num_workers > 0:
            return None
        counts = self.processes.gather((backbone.cut_prompts, backbone.cut_targets))
        return {"prompts": sum(prompts for prompts, _ in counts), "targets": sum(targets for _, targets in counts)}

    def _run_trainer(self, module: Any, *, watchers: list[Any], checkpoint: Path | None, **arguments: Any) -> None:
        bar = Bar(self.quiet)
        with StopOnInterrupt(self.processes) as stop, reproducible(), _closing(bar), self.processes.needed():
            trainer = AdapterTrainer(
                module,
                reduction=self.task.loss_reduction,
                callbacks=[stop, bar, *watchers],
                processes=self.processes,
                **arguments,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if stop.requested and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt

    def _save_weights(self, backbone: Backbone) -> None:
        final = weights_folder(self.folder.path, self.method)
        self.folder.write_weights(final, lambda place: self.method.save(backbone, place))

    def _finish(self, training: dict[str, Any], before: dict[str, Any] | None, after: Evaluation | None) -> None:
        """In the main process alone."""
        last = {
            "status": "finished",
            "scores": {"before": before, "after": after.summary() if after is not None else None},
            "training": training,
            "memory": peak_memory(),
            "provenance": provenance(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.folder.finish(last, lambda metrics: model_card(metrics, self.method))


@contextmanager
def _closing(bar: Bar) -> Iterator[None]:
    try:
        yield
    finally:
        bar.close()
