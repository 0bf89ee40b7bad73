"""Adapters of several runs over one set of base weights, and what each of them answers about a picture."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.backbones import Backbone, load_backbone
from padapter.data import open_image
from padapter.data.schema import asked_fields
from padapter.errors import UserError
from padapter.evaluation.beforehand import one_row
from padapter.evaluation.predict import predict_rows
from padapter.evaluation.source import Source, load_source, place
from padapter.explain import Explanation, explain_answer
from padapter.methods import PeftMethod
from padapter.methods.peft_method import CONFIG, FIRST, REWRITING_STARTS
from padapter.options import SourceOptions

BASE = "Base model"


@dataclass(frozen=True)
class Choice:
    """A model that can be asked.

    Attributes:
        title: its name, unique in a session.
        source: how it is asked: task, prompt, inference, candidates.
        asks_for: "question" or "hypothesis"; None for tasks that need a picture only.
        peft_type: which of the session's models it is.
        adapter: what PEFT calls its adapter; None for the base model.
    """

    title: str
    source: Source
    asks_for: str | None
    peft_type: str
    adapter: str | None


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        title: of the choice that was asked.
        text: the answer; may be empty.
        probabilities: of each candidate that was ranked, most likely first, among these candidates; None where the
            answer was written freely.
        explanation: what ``text`` rests on; None where it cannot be told, and then ``note`` says why.
        note: empty, or why there is no explanation.
    """

    title: str
    text: str
    probabilities: dict[str, float] | None
    explanation: Explanation | None
    note: str = ""


class Session:
    """Several runs over the same base model, loaded once.

    Adapters of one PEFT type share a model, where ``set_adapter`` chooses and ``disable_adapter`` gives the base model.
    PEFT does not mix types, so each further type has modules of its own, over the same base weights.

    Args:
        runs: folders written by ``padapter train``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: for a folder that is no run, runs of different base models or with different ways to look at
            pictures, and runs that leave no adapter that can be taken off again (full fine-tuning, LoRA that rewrites
            base weights).
    """

    def __init__(self, runs: Sequence[str | Path], device: str = "auto") -> None:
        names = run_names(runs)
        self._sources = {
            name: load_source(SourceOptions(run=str(run), device=device), load_model=False)
            for name, run in zip(names, runs, strict=True)
        }
        methods = {name: _adapter_method(name, source) for name, source in self._sources.items()}
        first = names[0]
        for name in names[1:]:
            _check_base(self._sources[first], first, self._sources[name], name)
        self._lock = threading.Lock()
        self._models = _load(self._sources, methods, device)
        self.choices = tuple(_choices(self._sources, methods))
        self._lengths = {kind: backbone.max_length for kind, backbone in self._models.items()}

    @property
    def sources(self) -> Mapping[str, Source]:
        """The runs by name, as they are asked."""
        return self._sources

    @property
    def model(self) -> str:
        """What the runs call their base model."""
        return next(iter(self._sources.values())).model

    def choice(self, title: str) -> Choice:
        """The choice of that title.

        Raises:
            UserError: there is none.
        """
        for found in self.choices:
            if found.title == title:
                return found
        raise UserError(f"there is no model {title!r} here; there are: {', '.join(one.title for one in self.choices)}.")

    def answer(self, picture: str | Path, text: str | None, title: str) -> Answer:
        """Ask a model about a picture, and find out what its answer rests on.

        May be called from several threads; one answers at a time.

        Args:
            picture: a file.
            text: the question or hypothesis; not looked at where the task needs none.
            title: of a choice.

        Raises:
            UserError: for a picture that cannot be used or a text that is missing.
        """
        choice = self.choice(title)
        source, text = choice.source, (text or "").strip()
        if choice.asks_for is not None and not text:
            raise UserError(f"{choice.title} needs a {choice.asks_for} about the picture.")
        opened = open_image(picture)
        row = one_row(source.task, str(picture), text if choice.asks_for is not None else None)
        with self._lock, self._active(choice) as backbone:
            said = predict_rows(backbone, source.task, row, source.asking, candidates=source.candidates, quiet=True)[0]
            explanation, note = None, "The model says nothing about this picture."
            if said.text:
                closed = (source.candidates or []) if source.task.default_inference == "rank" else []
                others = [word for word in closed if word != said.text]
                try:
                    explanation = explain_answer(
                        backbone, opened, source.task.prompt(row[0]), said.text, others=others, layers=(), title=title
                    )
                    note = ""
                except UserError as problem:
                    note = str(problem)
        return Answer(title, said.text, _probabilities(said.scores), explanation, note)

    @contextmanager
    def _active(self, choice: Choice) -> Iterator[Backbone]:
        """The model of a choice, with its adapter switched on and no other."""
        backbone = self._models[choice.peft_type]
        model: Any = backbone.model
        backbone.max_length = choice.source.max_length or self._lengths[choice.peft_type]
        if choice.adapter is not None:
            model.set_adapter(choice.adapter)
            model.requires_grad_(False)  # PEFT takes what is set active for what is to be trained
        with model.disable_adapter() if choice.adapter is None else nullcontext():
            yield backbone


def run_names(runs: Sequence[str | Path]) -> list[str]:
    """The shortest ends of paths, the same number of parts for all, that tell runs apart.

    Raises:
        UserError: for a run that is given twice.
    """
    paths = [Path(run).expanduser().resolve() for run in runs]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"RUN: {twice} is given twice")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _adapter_method(name: str, source: Source) -> PeftMethod[Any]:
    """The method of a run, if what it learned can be switched on and off."""
    method, weights = source.method, source.weights
    if not isinstance(method, PeftMethod) or weights is None:
        learned = "no method" if method is None else f"method {method.name!r}"
        raise UserError(
            f"RUN: {name} was trained by {learned}, which changes the base model itself and leaves no adapter to "
            "switch on and off; `padapter explain` and `padapter predict` ask such a run"
        )
    try:
        start = json.loads((weights / CONFIG).read_text(encoding="utf-8")).get("init_lora_weights")
    except (OSError, ValueError):
        return method  # loading it says what is wrong
    if start in REWRITING_STARTS:
        raise UserError(
            f"RUN: {name} is a LoRA that started from {start!r}, which moves a part of the base weights into the "
            "adapter; the base model cannot be shown beside it. `padapter predict` asks such a run"
        )
    return method


def _check_base(first: Source, first_name: str, other: Source, name: str) -> None:
    if _place(first.model) != _place(other.model):
        raise UserError(
            f"RUN: {name} adapts the model {other.model!r}, and {first_name} adapts {first.model!r}; start a demo for "
            "each of the two"
        )


def _place(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def _load(sources: Mapping[str, Source], methods: Mapping[str, PeftMethod[Any]], device: str) -> dict[str, Backbone]:
    """One backbone per PEFT type, with all adapters of that type."""
    first = next(iter(sources))
    asks = {source.task.asks for source in sources.values()}
    base = load_backbone(sources[first].model, asks=True in asks)
    if base.captions_apart and len(asks) > 1:
        raise UserError(
            f"RUN: {sources[first].model} has one arrangement for questions and another for captions; start a demo for "
            "the runs of captions and another for the rest"
        )
    for source in sources.values():
        source.task = source.task.led_by(base.lead_in)
    own = base.preprocessing()
    seen = sources[first].preprocessing or own
    for name, source in sources.items():
        mine = source.preprocessing or own
        if mine != seen:
            changed = sorted(key for key in {*seen, *mine} if seen.get(key) != mine.get(key))
            raise UserError(
                f"RUN: {name} looks at pictures in another way than {first} (they differ in {', '.join(changed)}); "
                "start a demo for each of the two"
            )
    place(base, device)
    kinds = dict.fromkeys(method.peft_type for method in methods.values())
    models = {kind: base if number == 0 else _twin(base) for number, kind in enumerate(kinds)}
    adapters = _adapter_names(methods)
    for backbone in models.values():
        backbone.preprocess_as(seen)
    for name, method in methods.items():
        backbone, weights = models[method.peft_type], sources[name].weights
        if weights is None:
            raise RuntimeError("a run without weights has been let through")
        if adapters[name] == FIRST:
            method.load(backbone, weights)
        else:
            method.add(backbone, weights, adapters[name])
    for backbone in models.values():
        place(backbone, device)  # adapters are made on the CPU
    return models


def _twin(backbone: Backbone) -> Backbone:
    """The same model in modules of its own that hold the very same tensors."""
    model = backbone.model
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    return type(backbone)(twin, copy.deepcopy(backbone.processor), backbone.name, backbone.max_length)


def _adapter_names(methods: Mapping[str, PeftMethod[Any]]) -> dict[str, str]:
    """What PEFT calls the adapter of each run; names of runs will not do, as PEFT makes module names of them."""
    seen: set[str] = set()
    names = {}
    for number, (name, method) in enumerate(methods.items()):
        names[name] = f"run{number}" if method.peft_type in seen else FIRST
        seen.add(method.peft_type)
    return names


def _choices(sources: Mapping[str, Source], methods: Mapping[str, PeftMethod[Any]]) -> Iterator[Choice]:
    """The base model once per task, asked as the first run of that task is; then the runs."""
    tasks: dict[str, str] = {}
    for name, source in sources.items():
        tasks.setdefault(source.task.name, name)
    several = len(tasks) > 1
    for task, name in tasks.items():
        title = f"{BASE} ({task})" if several else BASE
        yield Choice(title, sources[name], _asks_for(sources[name]), methods[name].peft_type, None)
    for name, adapter in _adapter_names(methods).items():
        source, method = sources[name], methods[name]
        about = f"{method.name}, {source.task.name}" if several else method.name
        yield Choice(f"{name} ({about})", source, _asks_for(source), method.peft_type, adapter)


def _asks_for(source: Source) -> str | None:
    asked = asked_fields(source.task.fields)
    return asked[0].name if asked else None


def _probabilities(scores: Mapping[str, float] | None) -> dict[str, float] | None:
    """Softmax of log-probabilities: how likely each candidate is, if it is one of them."""
    if not scores:
        return None
    top = max(scores.values())
    shares = {word: math.exp(score - top) for word, score in scores.items()}
    total = sum(shares.values())
    return {word: shares[word] / total for word in sorted(shares, key=shares.__getitem__, reverse=True)}
