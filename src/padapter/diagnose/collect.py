"""Read data with a model, without its adapter and with it, and measure every attention graph on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from padapter.architectures import WHERE, AttentionSite, default_sites, find_sites, record_attention
from padapter.architectures.recording import AttentionRecord
from padapter.backbones import Backbone, TrainingExample
from padapter.backbones.base import evaluating
from padapter.data import LoadedData, load_data
from padapter.diagnose.reading import LayerReader, Sampling, exponents_of
from padapter.diagnose.results import Diagnosis, Exponent, Layer
from padapter.errors import UserError
from padapter.evaluation.progress import progress
from padapter.evaluation.source import Source, load_source
from padapter.options import SourceOptions
from padapter.tasks import Task
from padapter.tuners.p_adapter.layer import PAdapterLayer

WITHOUT_P_ADAPTER = (
    "no p-adapter is at work here: there is no p and no mu, and no calibrated weights to compare with plain ones. What "
    "adaptation changed in features and plain weights is shown."
)


def diagnose(
    model: str | Path | Source | Backbone,
    data: str | LoadedData | Iterable[TrainingExample],
    *,
    task: Task | None = None,
    split: str = "test",
    rows: int = 128,
    points: int = 150,
    where: str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
) -> Diagnosis:
    """Measure the attention graphs of a model on data, before and after adaptation.

    Every row is read once per state, prompt and likeliest target together, as in training. Nothing is kept of a batch
    but sums and a sample of fixed size, so memory does not depend on how much data there is, and apart from rounding
    the result does not depend on ``batch_size``.

    Args:
        model: a run's folder, what `padapter.evaluation.source.load_source` gives, or a backbone, adapted or not.
        data: a data spec, of which at most ``rows`` rows are drawn at random; or loaded data, or training examples, all
            of which are read.
        task: asks about the rows; default: that of the run.
        split: of a data spec.
        rows: how many rows of a data spec are read at most.
        points: how many query nodes, and how many value nodes, are sampled per layer for t-SNE; 0 for none.
        where: which attention modules, as of `PAdapterConfig`: "decoder", "vision", "all", ..., several with commas;
            None for those of the decoder and all that carry a p-adapter.
        batch_size: rows per forward pass.
        seed: of the rows and nodes that are drawn.
        device: "auto", "cpu" or "cuda", for a run.
        quiet: no progress bar.

    Returns:
        The numbers; `padapter.diagnose` has figures of them.

    Raises:
        UserError: for anything wrong with run, data or ``where``, or if there is no attention module to look at.
    """
    if isinstance(model, (str, Path)):
        model = load_source(SourceOptions(run=str(model), device=device))
    source = model if isinstance(model, Source) else None
    after = model.backbone if isinstance(model, Source) else model
    task = task if task is not None or source is None else source.task
    before, adapted = _base_of(after, source)
    examples, count, name = _examples(after, data, task, split, rows, seed)
    sites = _sites(after, where)
    readers = _Readers(before, after if adapted else None, sites, Sampling(seed, points))
    found = 0
    with progress("reading", count, quiet=quiet) as advance:
        for batch in _batches(examples, batch_size):
            readers.read(batch)
            found += len(batch)
            advance(len(batch))
    if not found:
        raise UserError("there are no rows to read.")
    layers = readers.layers()
    return Diagnosis(
        title=source.weights.parent.name if source is not None and source.weights is not None else after.name,
        model=after.name,
        method=source.method.name if source is not None and source.method is not None else _method(after),
        data=name,
        rows=found,
        seed=seed,
        layers=layers,
        notes=_notes(layers, adapted),
    )


class _Readers:
    """Readers of all layers, in both states.

    Args:
        before: the model without adapter; may be that of ``after``.
        after: the adapted model, None for a model that is not adapted.
        sites: names of the attention modules.
        sampling: how much is kept.
    """

    def __init__(self, before: Backbone, after: Backbone | None, sites: Sequence[str], sampling: Sampling) -> None:
        self.states = [(before, _unadapted(before)), *([] if after is None else [(after, contextlib.nullcontext)])]
        self.readers: list[dict[str, LayerReader]] = []
        self.exponents: dict[str, dict[str, Exponent]] = {}
        for backbone, _ in self.states:
            known = {site.name: site for site in attention_sites(backbone)}
            self.readers.append({name: LayerReader(known[name], number, sampling) for number, name in enumerate(sites)})
        if after is not None:
            self.exponents = {name: exponents_of(reader.site) for name, reader in self.readers[-1].items()}

    def read(self, examples: Sequence[TrainingExample]) -> None:
        """Read one batch in every state."""
        for (backbone, context), readers in zip(self.states, self.readers, strict=True):
            dtype = next(it.dtype for it in backbone.base_model.parameters() if it.is_floating_point())
            batch = {
                name: value.to(backbone.device, dtype if value.is_floating_point() else value.dtype)
                for name, value in backbone.collate(examples).items()
            }
            masks = backbone.token_masks(batch)

            def count(
                record: AttentionRecord,
                readers: dict[str, LayerReader] = readers,
                masks: dict[str, torch.Tensor] = masks,
            ) -> None:
                tokens = masks.get(record.site.part)
                if tokens is not None and tokens.shape[0] != record.call.query.shape[0]:
                    tokens = None
                readers[record.site.name].read(record, tokens)

            module = backbone.training_module("sequence")
            with (
                evaluating(backbone.model),
                context(),
                record_attention(backbone.base_model, list(readers), on_call=count),
            ):
                module(**batch)

    def layers(self) -> tuple[Layer, ...]:
        """What was found in all layers."""
        several = len({reader.site.part for reader in self.readers[0].values()}) > 1
        found = []
        for name, reader in self.readers[0].items():
            states = [readers[name].result() for readers in self.readers]
            site, index = reader.site, _index(name)
            label = f"{site.part} " * several + (name if index is None else f"layer {index}")
            label += ", cross-attention" if site.cross else ", self-attention"
            exponents = self.exponents.get(name, {})
            after = states[1] if len(states) > 1 else None
            found.append(Layer(name, label, site.part, site.cross, index, site.num_heads, states[0], after, exponents))
        labels = [layer.label for layer in found]
        unique = len(set(labels)) == len(labels)
        return tuple(found if unique else [replace(layer, label=layer.name) for layer in found])


def attention_sites(backbone: Backbone) -> list[AttentionSite]:
    """The attention modules of a model, named as in the base model."""
    return [site for site in find_sites(backbone.base_model).values() if isinstance(site, AttentionSite)]


@dataclass(frozen=True)
class Planned:
    """An attention module that would be looked at: full name, number of its layer, number of heads."""

    name: str
    index: int | None
    heads: int


def planned(backbone: Backbone, where: str | None = None) -> list[Planned]:
    """The attention modules that `diagnose` looks at.

    Raises:
        UserError: as `diagnose` for ``where``.
    """
    heads = {site.name: site.num_heads for site in attention_sites(backbone)}
    return [Planned(name, _index(name), heads[name]) for name in _sites(backbone, where)]


def _sites(backbone: Backbone, where: str | None) -> list[str]:
    """Names of the attention modules to look at, in the order of the model."""
    sites = find_sites(backbone.base_model)
    words = [word.strip() for word in (where or "decoder").split(",") if word.strip()]
    unknown = sorted(set(words) - set(WHERE))
    if unknown or not words:
        raise UserError(f"--where: {where!r} is not made of {', '.join(WHERE)}")
    chosen = set(default_sites(sites, attention=True, feed_forward=False, where=words, layers=None))
    found = [
        site.name
        for output, site in sites.items()
        if isinstance(site, AttentionSite)
        and (output in chosen or (where is None and any(isinstance(m, PAdapterLayer) for m in site.output().modules())))
    ]
    if not found:
        raise UserError(f"--where: {backbone.name} has no attention modules that padapter knows there")
    return found


def _base_of(after: Backbone, source: Source | None) -> tuple[Backbone, bool]:
    """The model before adaptation, and whether there is anything to compare it with."""
    if after.model is not after.base_model:  # an adapter, which can be switched off
        return after, True
    if source is not None and source.method is not None:  # it changed the weights themselves
        return source.unadapted().backbone, True
    return after, False


def _unadapted(backbone: Backbone) -> Any:
    """Makes a context in which the adapter is off."""
    model: Any = backbone.model

    def context() -> AbstractContextManager[Any]:
        return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()

    return context


def _examples(
    backbone: Backbone,
    data: str | LoadedData | Iterable[TrainingExample],
    task: Task | None,
    split: str,
    rows: int,
    seed: int,
) -> tuple[Iterable[TrainingExample], int, str]:
    """Examples, their number (0 if it is not known), and what the data are called."""
    if not isinstance(data, (str, LoadedData)):
        return data, len(data) if isinstance(data, Sequence) else 0, "examples"
    if task is None:
        raise UserError("name the task that asks about the rows (task=get_task('vqa'), ...)")
    if isinstance(data, str):
        data = load_data(data, task, split=split, limit=rows, seed=seed)
    table, asker = data.dataset, task

    def examples() -> Iterator[TrainingExample]:
        for row in table:
            targets = asker.targets(row)
            best = max(targets, key=lambda target: target[1])  # the first of equals
            yield TrainingExample(backbone.picture(row["image"]), asker.prompt(row), (best,))

    return examples(), len(table), f"{data.name}, {data.split}"


def _batches(examples: Iterable[TrainingExample], size: int) -> Iterator[list[TrainingExample]]:
    stream = iter(examples)
    while batch := list(islice(stream, size)):
        yield batch


def _index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _method(backbone: Backbone) -> str | None:
    """What PEFT calls the method of an adapted backbone."""
    config = getattr(backbone.model, "active_peft_config", None)
    return (
        None if config is None else str(getattr(config.peft_type, "value", config.peft_type)).lower().replace("_", "-")
    )


def _notes(layers: Sequence[Layer], adapted: bool) -> tuple[str, ...]:
    if not adapted:
        return ("this model is not adapted: there is nothing to compare it with.",)
    if not any(layer.after is not None and layer.after.calibrated is not None for layer in layers):
        return (WITHOUT_P_ADAPTER,)
    return ()
