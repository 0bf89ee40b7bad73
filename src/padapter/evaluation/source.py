"""What answers: a run, or a model with or without an adapter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from padapter.backbones import Backbone, load_backbone
from padapter.cache import cache_folder
from padapter.errors import UserError
from padapter.evaluation.asking import Asking, resolve_asking, with_prompt
from padapter.evaluation.beforehand import adapter_folder, listed_candidates, trained_options, weights_name
from padapter.evaluation.files import read_json
from padapter.evaluation.pictures import read_preprocessing
from padapter.evaluation.processes import local_device
from padapter.evaluation.scoring import with_scoring
from padapter.methods import Method, get_method, method_of
from padapter.options import SourceOptions
from padapter.tasks import Task, get_task

REMEDY = "name the candidates with --candidates FILE, or train the run anew"


class Source:
    """A model ready to answer, or about to be loaded.

    Args:
        model: built-in name, folder or hub id of the base model.
        task: asks the questions; once the model is there, in the words that it is used to.
        asking: how answers are obtained.
        method: what loads ``weights``; ``None`` for the unadapted model.
        weights: the adapter's folder, or the model's for full fine-tuning.
        candidates: the closed set of answers, for ranking.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_length: longest sequence in tokens; ``None`` for the model's own.
        cache_features: keep what a frozen image encoder computes.
        preprocessing: how the run that the weights come from looks at pictures.
        image_size: another size than that, or than the model's own.
        resize: another way to make pictures fit.
        attention: "sdpa" or "eager", see :func:`padapter.backbones.load_backbone`.
    """

    def __init__(
        self,
        model: str,
        task: Task,
        asking: Asking,
        *,
        method: Method[Any] | None,
        weights: Path | None,
        candidates: list[str] | None,
        device: str,
        max_length: int | None = None,
        cache_features: bool = False,
        preprocessing: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        resize: str | None = None,
        attention: str = "sdpa",
    ) -> None:
        self.model = model
        self.task = task
        self.asking = asking
        self.method = method
        self.weights = weights
        self.candidates = candidates
        self.device = device
        self.max_length = max_length
        self.cache_features = cache_features
        self.preprocessing = preprocessing
        self.image_size = image_size
        self.resize = resize
        self.attention = attention
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        """The loaded model."""
        if self._backbone is None:
            self.load_model()
        if self._backbone is None:
            raise RuntimeError("load_model left no model")
        return self._backbone

    def load_model(self) -> None:
        """Load model and adapter, once.

        Raises:
            UserError: when the model is not there, or the adapter belongs to another one.
        """
        if self._backbone is not None:
            return
        backbone = load_backbone(self.model, attention=self.attention, asks=self.task.asks)
        self.task = self.task.led_by(backbone.lead_in)
        # What was trained fits the size it was trained at; another size is asked for on top of that.
        if self.preprocessing is not None:
            backbone.preprocess_as(self.preprocessing)
        else:
            backbone.preprocess(image_size=self.image_size, resize=self.resize)
        if self.method is not None and self.weights is not None:
            self.method.load(backbone, self.weights)
        if self.preprocessing is not None:
            backbone.preprocess(image_size=self.image_size, resize=self.resize)
        if self.max_length is not None:
            backbone.max_length = self.max_length
        place(backbone, self.device)
        if self.cache_features:
            backbone.cache_features(cache_folder(), precision=self.asking.precision, training=False)
        self._backbone = backbone

    def unadapted(self) -> Source:
        """The base model alone, asked the same way and with the same preprocessing; not loaded yet."""
        other = copy.copy(self)
        other.method = other.weights = other._backbone = None
        return other

    def describe(self) -> dict[str, Any]:
        """Model, method and weights, for a result file."""
        return {
            "model": self.model,
            "method": self.method.name if self.method is not None else None,
            "weights": str(self.weights) if self.weights is not None else None,
        }


def load_source(options: SourceOptions, *, load_model: bool = True) -> Source:
    """Find out what ``--run``, or ``--model`` with ``--adapter``, stands for.

    Args:
        options: of ``eval`` or ``predict``; what they leave open comes from the run.
        load_model: load the weights at once; otherwise :meth:`Source.load_model` does, so that the data can be
            checked before.

    Raises:
        UserError: for a folder that is no run, a run without weights, or an unknown task.
    """
    source = _from_run(options, Path(options.run)) if options.run is not None else _from_model(options)
    if load_model:
        source.load_model()
    return source


def place(backbone: Backbone, device: str) -> None:
    """Move the model to ``auto`` (the GPU if there is one), ``cpu`` or ``cuda``.

    Of several processes on one machine each takes a GPU of its own.

    Raises:
        UserError: when there is no GPU and one is asked for, or fewer than processes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: this machine has no GPU that torch can use; give 'cpu' or 'auto'")
    use_gpu = device != "cpu" and torch.cuda.is_available()
    backbone.model.to(local_device() if use_gpu else "cpu")


def weights_folder(run: Path, method: Method[Any]) -> Path:
    """Where a run keeps what it learned: ``adapter``, or ``model`` for full fine-tuning."""
    return run / weights_name(method.name)


def read_candidates(run: Path) -> list[str] | None:
    """The candidates that a run ranks, if it ranks."""
    path = run / "candidates.json"
    if not path.exists():
        return None
    candidates = read_json(path, REMEDY).get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(word, str) for word in candidates):
        raise UserError(f"{path}: is damaged ('candidates' is no list of texts); {REMEDY}")
    return candidates


def _from_run(options: SourceOptions, run: Path) -> Source:
    trained = trained_options(options, run)
    method = get_method(trained.method)
    weights = weights_folder(run, method)
    prompt = options.prompt if options.prompt is not None else trained.prompt
    task = with_scoring(with_prompt(get_task(trained.task), prompt), options, trained)
    inference = options.inference or trained.inference
    generates = inference != "rank"
    filled = replace(
        options,
        inference=inference,
        num_beams=options.num_beams or (trained.num_beams if generates else None),
        max_new_tokens=options.max_new_tokens or (trained.max_new_tokens if generates else None),
        min_new_tokens=(
            options.min_new_tokens if options.min_new_tokens is not None or not generates else trained.min_new_tokens
        ),
        rank_candidates=options.rank_candidates or trained.rank_candidates,
    )
    return Source(
        trained.model,
        task,
        resolve_asking(task, filled),
        method=method,
        weights=weights,
        candidates=listed_candidates(options.candidates) or read_candidates(run),
        device=options.device,
        max_length=trained.max_length,
        cache_features=options.cache_features,
        preprocessing=read_preprocessing(run),
        image_size=options.image_size,
        resize=options.resize,
        attention=options.attention,
    )


def _from_model(options: SourceOptions) -> Source:
    task = with_scoring(with_prompt(get_task(str(options.task)), options.prompt), options)
    weights = adapter_folder(options)
    return Source(
        str(options.model),
        task,
        resolve_asking(task, options),
        method=method_of(weights) if weights is not None else None,
        weights=weights,
        candidates=listed_candidates(options.candidates),
        device=options.device,
        cache_features=options.cache_features,
        preprocessing=_preprocessing_beside(weights or Path(str(options.model))),
        image_size=options.image_size,
        resize=options.resize,
        attention=options.attention,
    )


def _preprocessing_beside(weights: Path) -> dict[str, Any] | None:
    """How the run looks at pictures that a folder of weights belongs to: RUN/adapter, or RUN/model."""
    return read_preprocessing(weights.parent) if weights.is_dir() else None
