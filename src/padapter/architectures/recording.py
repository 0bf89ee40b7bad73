"""Watching attention: every call of an attention module in the table, with the weights that make its context.

A recorder is an adapter layer like any other (`AttentionAdapter`), put in front of the one a module has or in the place
of none. What it records is not computed beside the model but is what the model computes with, so a gradient of any
output with respect to the weights exists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from padapter.architectures.interface import AttentionAdapter, AttentionCall, attach, attached, detach, replace_adapter
from padapter.architectures.sites import AttentionSite, find_sites
from padapter.architectures.targets import layer_index
from padapter.errors import UserError
from padapter.functional.graph import Step, plain_step

Chosen = Callable[[AttentionSite], bool] | Collection[str]


@dataclass(frozen=True)
class Message:
    """What one p-adapter passed during a call.

    Attributes:
        adapter: its name.
        form: "projected" (the step is between the heads' features) or "bottleneck" (between those of the bottleneck).
        rows: the rows of the batch it serves, None for all of them.
        step: the last step; B is the number of its rows. ``step.weights`` (B, H, N1, N2) are the calibrated weights and
            ``step.own`` (B, H, N1) the share of the query node's own features.
    """

    adapter: str
    form: str
    rows: tuple[int, ...] | None
    step: Step


@dataclass(frozen=True)
class AttentionRecord:
    """One call of an attention module.

    Attributes:
        site: where; ``site.name``, ``site.part`` and ``site.cross`` say which module of which part, self or cross.
        layer: the first number in its name, None if there is none.
        call: what its attention function was given: query (B, H, N1, dk), key (B, Hkv, N2, dk), value (B, Hkv, N2, dh),
            mask (position biases included) and whether a causal one applies on top.
        plain: attention as it is; ``plain.weights`` is (B, H, N1, N2), in float32 or float64.
        messages: what the active p-adapters passed, in the order of their groups.
    """

    site: AttentionSite
    layer: int | None
    call: AttentionCall
    plain: Step
    messages: tuple[Message, ...] = ()

    @property
    def node_query(self) -> torch.Tensor:
        """Features of the query nodes, (B, H, N1, dh): the query as it was projected, before any rotation."""
        return self.call.query if self.call.node_query is None else self.call.node_query

    @property
    def calibrated(self) -> Step | None:
        """The step that replaced the plain one for the whole batch: that of one projected p-adapter, or None."""
        only = self.messages[0] if len(self.messages) == 1 else None
        return only.step if only is not None and only.form == "projected" and only.rows is None else None

    @property
    def used(self) -> Step:
        """The step whose tensors the context was made of: the calibrated one, or the plain one.

        With the bottleneck form, or with several adapters, the context is plain, and `messages` are added behind it.
        """
        return self.calibrated or self.plain

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step whose tensors take part in what the model computes, in the order of computation."""
        passed = tuple(message.step for message in self.messages)
        return passed if self.calibrated is not None else (self.plain, *passed)


@dataclass
class _Recorder:
    """The adapter layer of a module that is recorded; ``inner`` is the module's own, if it has one."""

    site: AttentionSite
    inner: AttentionAdapter | None
    told: Callable[[AttentionRecord], None]
    gradients: bool
    layer: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.layer = layer_index(self.site.name)

    def changes_attention(self) -> bool:
        """Always: the module must ask."""
        return True

    def attend(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Context (B, N1, H, dh) and weights (B, H, N1, N2), as the module's own layer wants them."""
        plain = plain_step(call.query, call.key, call.value, call.attention_mask, call.is_causal, call.scaling)
        messages: list[Message] = []

        def passed(adapter: str, form: str, rows: tuple[int, ...] | None, step: Step) -> None:
            self._watch(step)
            messages.append(Message(adapter, form, rows, step))

        def attend_plainly() -> tuple[torch.Tensor, torch.Tensor]:
            self._watch(plain)
            context = plain.context(call.dropout).to(call.value.dtype)
            return context.transpose(1, 2).contiguous(), plain.weights.to(call.value.dtype)

        recorded = replace(call, plain=attend_plainly, passed=passed)
        if self.inner is not None and self.inner.changes_attention():
            context, weights = self.inner.attend(recorded)
        else:
            context, weights = attend_plainly()
        if not _is_backward():
            self.told(AttentionRecord(self.site, self.layer, call, plain, tuple(messages)))
        return context, weights if call.need_weights else None

    def _watch(self, step: Step) -> None:
        """Let there be a gradient with respect to weights that depend on nothing that has one."""
        if self.gradients and torch.is_grad_enabled():
            for tensor in (step.weights, step.own):
                if not tensor.requires_grad:
                    tensor.requires_grad_()


@contextmanager
def record_attention(
    model: nn.Module,
    sites: Chosen | None = None,
    *,
    on_call: Callable[[AttentionRecord], None] | None = None,
    gradients: bool = False,
) -> Iterator[list[AttentionRecord]]:
    """Within this context, every call of the model's attention modules is recorded.

    Reaches every attention module in the table of architectures, and those that the generic rule reads, with or
    without a p-adapter. The model computes the same up to rounding, step by step instead of in a fused call, and is as
    it was at the end. What gradient checkpointing computes again in the backward pass is recorded once.

    Args:
        model: any model; may be adapted.
        sites: which attention modules: their full names (those of the base model, see `attention_sites`), or a
            function that says of a site whether it is one. None: all of them.
        on_call: told of every call as it happens. Then nothing is kept here: what a record holds can be freed as soon
            as ``on_call`` returns.
        gradients: whether `weight_gradients` will be asked for. Weights then require a gradient even in a model whose
            parameters are all frozen.

    Yields:
        The records so far, in the order of the calls; stays empty with ``on_call``.

    Raises:
        UserError: if a name is not that of an attention module, if a module is being recorded already, or if one
            cannot be redirected.
    """
    records: list[AttentionRecord] = []

    def recorder(site: AttentionSite, inner: AttentionAdapter | None) -> AttentionAdapter:
        if isinstance(inner, _Recorder):
            raise UserError(f"attention module {site.name!r} is being recorded already; leave the other one first.")
        return _Recorder(site, inner, on_call or records.append, gradients)

    with redirected(_chosen(attention_sites(model), sites), recorder):
        yield records


@contextmanager
def redirected(
    sites: Collection[AttentionSite], adapter: Callable[[AttentionSite, AttentionAdapter | None], AttentionAdapter]
) -> Iterator[None]:
    """Within this context, attention modules ask another adapter layer; at the end they are as they were.

    Args:
        sites: the modules.
        adapter: from a site and the adapter layer that its module has, None for none, to the layer to ask.

    Raises:
        UserError: if a module cannot be redirected.
    """
    with ExitStack() as undo:
        for site in sites:
            inner = attached(site.module)
            other = adapter(site, inner)
            if inner is None:
                attach(site, other)
                undo.callback(detach, site.module)
            else:
                replace_adapter(site.module, other)
                undo.callback(_put_back, site.module, other, inner)
        yield


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The attention modules of a model that can be recorded, with their names in the base model."""
    get_base: Any = getattr(model, "get_base_model", None)
    base = model if get_base is None else get_base()
    return [site for site in find_sites(base).values() if isinstance(site, AttentionSite)]


def weight_gradients(
    target: torch.Tensor, steps: Sequence[Step], *, retain_graph: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of a scalar with respect to weights and the query nodes' own shares, everything else held fixed.

    Args:
        target: scalar, computed by the recorded calls.
        steps: ``record.used`` of each record, or others of ``record.steps``, recorded with ``gradients=True``.
        retain_graph: whether the graph is needed again.

    Returns:
        Per step, gradients of ``step.weights`` (B, H, N1, N2) and ``step.own`` (B, H, N1); zero where the target does
        not depend on it.

    Raises:
        UserError: if the calls left no graph: recorded without ``gradients``, under ``torch.no_grad()``, or inside
            reentrant gradient checkpointing.
    """
    if not target.requires_grad or not all(step.weights.requires_grad for step in steps):
        raise UserError(
            "no gradient reaches the recorded weights. Record with gradients=True, outside of torch.no_grad(), and not "
            "with reentrant gradient checkpointing (call model.eval())."
        )
    wanted = [tensor for step in steps for tensor in (step.weights, step.own)]
    having = [tensor for tensor in wanted if tensor.requires_grad]
    found = iter(torch.autograd.grad(target, having, retain_graph=retain_graph, allow_unused=True))
    given = [next(found) if tensor.requires_grad else None for tensor in wanted]
    full = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, given, strict=True)]
    return list(zip(full[::2], full[1::2], strict=True))


def _chosen(sites: list[AttentionSite], chosen: Chosen | None) -> list[AttentionSite]:
    if chosen is None:
        return sites
    if callable(chosen):
        return [site for site in sites if chosen(site)]
    names = {chosen} if isinstance(chosen, str) else set(chosen)
    unknown = sorted(names - {site.name for site in sites})
    if unknown:
        known = ", ".join(site.name for site in sites) or "none"
        raise UserError(f"no attention module is called {', '.join(map(repr, unknown))}; the model has: {known}.")
    return [site for site in sites if site.name in names]


def _put_back(module: nn.Module, adapter: AttentionAdapter, inner: AttentionAdapter) -> None:
    if attached(module) is adapter:
        replace_adapter(module, inner)


def _is_backward() -> bool:
    """Whether a backward pass is running: checkpointing then repeats a call that was recorded."""
    return torch._C._current_graph_task_id() != -1
