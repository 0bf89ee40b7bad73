"""The fused operators of PyTorch: with fake tensors for the compiler, and with autograd.

On GPUs they are Triton's kernels (`kernel_forward` and its neighbours), on processors C (`padapter.functional.native`).

* ``padapter::p_laplacian_forward``: context of p-Laplacian message passing, and `Statistics`: a few numbers per node.
* ``padapter::p_laplacian_backward``: its gradients.
* ``padapter::attention_degrees``, ``padapter::attention_degrees_backward``: column sums of M.

Shapes: query (B, H, N1, dk); key (B, Hkv, N2, dk); value (B, Hkv or H, N2, dh); node_query, near_query (B, H, N1, dh);
near_value (B, Hkv or H, N2, dh); p, restart (H,) float32; metric (H, dh, dh) float32, a constant; mask broadcastable to
(B, H, N1, N2), 4-dimensional; seed (1,) int64. No node_query means query; distances, if there are any (p = 2 has none),
are those of near_query and near_value, without these of the nodes themselves, and behind the metric if there is one. No
seed means that no weights are dropped; with one the backward pass drops what the forward pass dropped (`dropout`).
Nothing of size N1 x N2 is stored. Gradients do not depend on the order in which programs run: there are no atomic
additions.

``native`` says whose kernels compute it, in both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from padapter.functional import native as processor
from padapter.functional.fused.contract import Gradients, Inputs, Statistics
from padapter.functional.fused.launch import (
    Features,
    RowGradients,
    Scores,
    backward_columns_plan,
    backward_rows_plan,
    degrees_plan,
    forward_plan,
    readable,
)
from padapter.functional.graph import without_autocast

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? node_query, Tensor? near_query, Tensor? near_value, Tensor p, "
    "Tensor? restart, Tensor? metric, Tensor? mask, Tensor? seed"
)
_NUMBERS = "float scale, bool causal, bool distances, float relative, float least, float dropout_p, bool native"


@torch.library.custom_op(
    "padapter::p_laplacian_forward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_NUMBERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def p_laplacian_forward(
    query: Tensor, key: Tensor, value: Tensor, node_query: Tensor | None, near_query: Tensor | None,
    near_value: Tensor | None, p: Tensor, restart: Tensor | None,
    metric: Tensor | None, mask: Tensor | None, seed: Tensor | None, scale: float, causal: bool,
    distances: bool, relative: float, least: float, dropout_p: float, native: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Context (B, H, N1, dh) in value's dtype, natively in float32; then `Statistics`."""
    inputs = Inputs(
        query,
        key,
        value,
        node_query,
        near_query,
        near_value,
        p,
        restart,
        metric,
        mask,
        seed,
        scale,
        causal,
        distances,
        relative,
        least,
        dropout_p,
    )
    if native:
        context, statistics = forward_natively(inputs)
        return context, *statistics
    out, statistics = _new_context(query, value, native), Statistics.empty(query, key.shape[2], sizes=False)
    forward_plan(_scores(query, key, mask, scale, causal), _features(inputs), out, statistics[:3]).run()
    return out, *statistics


@p_laplacian_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs, native = Inputs(query, key, value, *rest[:-1]), rest[-1]
    statistics = Statistics.empty(query, key.shape[2], sizes=native and inputs.distances)
    return _new_context(query, value, native), *statistics


@torch.library.custom_op(
    "padapter::p_laplacian_backward",
    mutates_args=(),
    schema=f"(Tensor upstream, {_INPUTS}, Tensor out, Tensor row_max, Tensor row_log, Tensor log_total, "
    f"Tensor x_sizes, Tensor y_sizes, {_NUMBERS}, bool columns) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def p_laplacian_backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, node_query: Tensor | None, near_query: Tensor | None,
    near_value: Tensor | None, p: Tensor, restart: Tensor | None,
    metric: Tensor | None, mask: Tensor | None, seed: Tensor | None, out: Tensor, row_max: Tensor,
    row_log: Tensor, log_total: Tensor, x_sizes: Tensor, y_sizes: Tensor, scale: float, causal: bool, distances: bool,
    relative: float, least: float, dropout_p: float, native: bool, columns: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of all eight inputs but the mask, in their order; empty tensors where there is none.

    Without ``columns`` those of key, value and near_value, which take a kernel of their own, are left out.
    """
    inputs = Inputs(
        query,
        key,
        value,
        node_query,
        near_query,
        near_value,
        p,
        restart,
        metric,
        mask,
        seed,
        scale,
        causal,
        distances,
        relative,
        least,
        dropout_p,
    )
    statistics = Statistics(row_max, row_log, log_total, x_sizes, y_sizes)
    if native:
        gradients = backward_natively(inputs, upstream, out, statistics, columns)
    else:
        with without_autocast(query.device):
            found = _backward_by_kernels(inputs, readable(upstream), out, statistics[:3], columns)
        gradients = _as_given(found, inputs)
    return tuple(_none(query) if gradient is None else gradient.contiguous() for gradient in gradients)


def forward_natively(inputs: Inputs) -> tuple[Tensor, Statistics]:
    """Context (B, H, N1, dh) in float32, and `Statistics`, by the C library."""
    context, statistics = processor.forward(inputs)
    if context.stride(1) > context.shape[-1]:
        context = _new_context(inputs.query, inputs.value, native=True).copy_(context)
    return context, statistics


def backward_natively(
    inputs: Inputs, upstream: Tensor, out: Tensor, statistics: Statistics, columns: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of all eight inputs but the mask, in their order, by the C library; None where there is none."""
    with without_autocast(inputs.query.device):  # somebody's backward may run under it
        return _as_given(processor.backward(inputs, upstream, out, statistics, columns), inputs)


def _as_given(found: Gradients, inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Gradients in the shapes and dtypes of what they are of."""
    return tuple(
        None if gradient is None or given is None else _shared(gradient, given).to(given.dtype)
        for gradient, given in zip(found, inputs.differentiable(), strict=True)
    )


def _backward_by_kernels(
    inputs: Inputs, upstream: Tensor, out: Tensor, statistics: tuple[Tensor, Tensor, Tensor], columns: bool
) -> Gradients:
    query, key, value, node, *_ = inputs.resolved()
    x, y = inputs.behind_metric()
    scores, features = _scores(query, key, inputs.mask, inputs.scale, inputs.causal), _features(inputs)
    restarts = inputs.restart is not None
    rows = RowGradients(
        query=_like(query),
        node_query=None if node is None else _like(node),
        near_query=None if x is None else _like(x),
        p=_new_statistic(query),
        restart=_new_statistic(query) if restarts else None,
        delta=_new_statistic(query),
        restart_change=_new_statistic(query) if restarts else None,
    )
    backward_rows_plan(scores, features, out, statistics, upstream, rows).run()
    d_key = d_value = d_y = None
    if columns:
        heads = query.shape[1]
        d_key, d_value = _per_head(key, heads), _per_head(value, heads)
        d_y = None if y is None else _per_head(y, heads)
        backward_columns_plan(scores, features, statistics, upstream, rows, (d_key, d_value, d_y)).run()
    return Gradients(
        rows.query, d_key, d_value, rows.node_query, rows.near_query, d_y,
        torch.zeros_like(inputs.p) if x is None else rows.p.sum(dim=(0, 2)),
        None if rows.restart is None else rows.restart.sum(dim=(0, 2)),
    ).gathered(inputs)  # fmt: skip


@p_laplacian_backward.register_fake
def _(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, node_query: Tensor | None, near_query: Tensor | None,
    near_value: Tensor | None, p: Tensor, restart: Tensor | None,
    metric: Tensor | None, mask: Tensor | None, seed: Tensor | None, out: Tensor, row_max: Tensor,
    row_log: Tensor, log_total: Tensor, x_sizes: Tensor, y_sizes: Tensor, scale: float, causal: bool, distances: bool,
    relative: float, least: float, dropout_p: float, native: bool, columns: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    def like(tensor: Tensor | None, wanted: bool = True) -> Tensor:
        return _none(query) if tensor is None or not wanted else _like(tensor)

    moves_nodes = restart is not None or (distances and near_query is None)
    return (
        like(query), like(key, columns), like(value, columns), like(node_query, moves_nodes),
        like(near_query, distances), like(near_value, distances and columns), torch.empty_like(p),
        _none(query) if restart is None else torch.empty_like(restart),
    )  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.numbers = inputs[:11], inputs[11:]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 18
    return gradients(upstream, ctx.saved_tensors, ctx.numbers, ctx.needs_input_grad)


def gradients(
    upstream: Tensor, saved: tuple[Any, ...], numbers: tuple[Any, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Compute gradients of all arguments of ``padapter::p_laplacian_forward`` by ``padapter::p_laplacian_backward``.

    Args:
        upstream: that of the context.
        saved: the operator's arguments that are tensors, and what it returned.
        numbers: its other arguments.
        wanted: for every argument, whether it has a gradient.
    """
    columns = wanted[1] or wanted[2] or wanted[5]
    found = p_laplacian_backward(upstream, *saved, *numbers, columns)
    # An empty tensor stands for an input that changes nothing: node_query, say, without distances and restart.
    given = [
        gradient if want and gradient.dim() > 0 and gradient.numel() > 0 else None
        for gradient, want in zip(found, wanted[:8], strict=True)
    ]
    return (*given, *(None,) * 10)


torch.library.register_autograd("padapter::p_laplacian_forward", _differentiate, setup_context=_save)


@torch.library.custom_op(
    "padapter::attention_degrees",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor? mask, float scale, bool causal, bool native) "
    "-> (Tensor, Tensor, Tensor)",
)
def attention_degrees(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool, native: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Column sums of M (B, H, N2), and row_max, row_log (B, H, N1), in float32; on processors the latter are zeros."""
    if native:
        D = processor.degrees(query, key, mask, scale, causal)
        return D, _new_statistic(query).zero_(), _new_statistic(query).zero_()
    scores = _scores(query, key, mask, scale, causal)
    statistics = (_new_statistic(query), _new_statistic(query))
    degrees = _new_degrees(query, key)
    degrees_plan("row_statistics_kernel", scores, statistics, by_rows=True).run()
    degrees_plan("column_sums_kernel", scores, statistics, by_rows=False, degrees_ptr=degrees).run()
    return degrees, *statistics


@attention_degrees.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_degrees(query, key), _new_statistic(query), _new_statistic(query)


@torch.library.custom_op(
    "padapter::attention_degrees_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor query, Tensor key, Tensor? mask, Tensor row_max, Tensor row_log, float scale, "
    "bool causal, bool native) -> (Tensor, Tensor)",
)
def attention_degrees_backward(
    upstream: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, row_max: Tensor, row_log: Tensor, scale: float,
    causal: bool, native: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of query and key."""
    if native:
        with without_autocast(query.device):
            found = processor.degrees_backward(upstream, query, key, mask, scale, causal)
        return found[0].to(query.dtype), _shared(found[1], key).to(key.dtype)
    scores = _scores(query, key, mask, scale, causal)
    statistics = (row_max, row_log)
    delta, d_query, d_key = _new_statistic(query), _like(query), _per_head(key, query.shape[1])
    shared = {"g_ptr": upstream.contiguous(), "delta_ptr": delta}
    degrees_plan("degrees_backward_rows_kernel", scores, statistics, by_rows=True, dq_ptr=d_query, **shared).run()
    degrees_plan("degrees_backward_columns_kernel", scores, statistics, by_rows=False, dk_ptr=d_key, **shared).run()
    return d_query, _shared(d_key, key)


@attention_degrees_backward.register_fake
def _(upstream: Tensor, query: Tensor, key: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(query), _like(key)


def _save_degrees(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, mask, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, mask, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate_degrees(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 6
    return (*attention_degrees_backward(upstream, *ctx.saved_tensors, *ctx.numbers), None, None, None, None)


torch.library.register_autograd("padapter::attention_degrees", _differentiate_degrees, setup_context=_save_degrees)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Scores:
    return Scores(readable(query), readable(key), mask, scale, causal)


def _features(inputs: Inputs) -> Features:
    _, _, value, node, *_ = inputs.resolved()
    node, x, y = (None if it is None else readable(it) for it in (node, *inputs.behind_metric()))
    p, restart = inputs.p.contiguous(), inputs.restart
    return Features(readable(value), node, x, y, p, restart, inputs.relative, inputs.least, inputs.dropout())


def _new_context(query: Tensor, value: Tensor, native: bool) -> Tensor:
    """Laid out as (B, N1, H, dh), which is what attention modules go on with."""
    B, H, N1, _ = query.shape
    dtype = torch.float32 if native else value.dtype
    # No view: somebody may work in place on what comes out.
    return torch.empty_permuted((B, H, N1, value.shape[-1]), (0, 2, 1, 3), dtype=dtype, device=value.device)


def _new_statistic(query: Tensor) -> Tensor:
    return query.new_empty(query.shape[:3], dtype=torch.float32)


def _new_degrees(query: Tensor, key: Tensor) -> Tensor:
    return query.new_empty((*query.shape[:2], key.shape[2]), dtype=torch.float32)


def _like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)  # contiguous, whatever the tensor's strides


def _none(query: Tensor) -> Tensor:
    return query.new_empty(0)


def _per_head(tensor: Tensor, heads: int) -> Tensor:
    """An empty gradient per query head (B, H, N2, d); in float32 where it is still to be summed over heads."""
    dtype = tensor.dtype if tensor.shape[1] == heads else torch.float32
    return tensor.new_empty((tensor.shape[0], heads, *tensor.shape[2:]), dtype=dtype)


def _shared(gradient: Tensor, tensor: Tensor) -> Tensor:
    """Sum over the query heads that share a head of ``tensor``."""
    if gradient.shape == tensor.shape:
        return gradient
    return gradient.unflatten(1, (tensor.shape[1], -1)).sum(dim=2).to(tensor.dtype)
