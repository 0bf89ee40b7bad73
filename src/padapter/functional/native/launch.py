"""From tensors to calls of the C library, by as many threads as PyTorch uses."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from padapter.functional.fused.contract import Gradients, Inputs, Statistics
from padapter.functional.native.library import load

#: The largest log of 1 / (sum Mbar + r) that is turned into a number: half the exponent range of float32.
_LARGEST_INVERSE = 44.36

#: Products of two numbers that take about as long as waking another thread.
_WORTH_A_THREAD = 1 << 19

#: R R^T by R, with R's address and version at that time.
_SQUARES: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _View(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("batch", ctypes.c_long), ("head", ctypes.c_long), ("row", ctypes.c_long))


_VIEWS = (
    "query", "key", "value", "node", "x", "y", "metric", "mask", "upstream", "out",
    "d_query", "d_key", "d_value", "d_node", "d_x", "d_y",
)  # fmt: skip
_ARRAYS = ("row_max", "row_log", "log_total", "x_sizes", "y_sizes", "p", "restart", "d_p", "d_restart", "seed")
_LONGS = ("B", "H", "N1", "N2", "DK", "DH", "key_groups", "value_groups", "y_groups", "causal", "below")
_NUMBERS = ("scale", "relative", "least", "largest_inverse", "factor")


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, _View) for name in _VIEWS),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_long) for name in _LONGS),
        *((name, ctypes.c_float) for name in _NUMBERS),
        *((name, ctypes.c_long) for name in ("threads", "backward", "next")),
    )


def forward(inputs: Inputs) -> tuple[Tensor, Statistics]:
    """Compute the context (B, H, N1, dh), and what the backward pass wants to know, in float32.

    Raises:
        MemoryError: if a thread finds no room for its rows of scores.
    """
    problem, keep = _problem(inputs, inputs.metric)
    B, H, N1, _ = inputs.query.shape
    out = torch.empty_permuted((B, H, N1, problem.DH), (0, 2, 1, 3), dtype=torch.float32, device=inputs.query.device)
    load().padapter_prepare(out.data_ptr(), out.nbytes)
    statistics = Statistics.empty(inputs.query, inputs.key.shape[2], sizes=inputs.distances)
    _point(problem, out=out)
    _array(problem, **statistics._asdict())
    _run("padapter_forward", problem)
    del keep
    width = inputs.value.shape[-1]
    return out if width == problem.DH else out[..., :width], statistics


def backward(inputs: Inputs, upstream: Tensor, out: Tensor, statistics: Statistics, columns: bool) -> Gradients:
    """Compute the gradients of everything but the mask.

    Args:
        inputs: those of the forward pass.
        upstream: (B, H, N1, dh).
        out: the context.
        statistics: those of the forward pass.
        columns: whether gradients of key, value and near_value are wanted.

    Raises:
        MemoryError: as `forward`.
    """
    problem, keep = _problem(inputs, None if inputs.metric is None else _squared(inputs.metric))
    B, H = inputs.query.shape[:2]
    restarts, near = inputs.restart is not None, inputs.distances
    rows = {"d_query": (inputs.query, problem.N1, problem.DK)}
    if inputs.node_query is not None and (restarts or (near and inputs.near_query is None)):
        rows["d_node"] = (inputs.node_query, problem.N1, problem.DH)
    if near and inputs.near_query is not None:
        rows["d_x"] = (inputs.near_query, problem.N1, problem.DH)
    if columns:
        rows["d_key"] = (inputs.key, problem.N2, problem.DK)
        rows["d_value"] = (inputs.value, problem.N2, problem.DH)
        if near and inputs.near_value is not None:
            rows["d_y"] = (inputs.near_value, problem.N2, problem.DH)
    found = {name: _fresh(given, B, H, nodes, width) for name, (given, nodes, width) in rows.items()}
    # Gradients of features that stand for others are added to theirs.
    node = found.get("d_node", found["d_query"])
    x, y = found.get("d_x", node), found.get("d_y", found.get("d_value"))
    targets = found | ({"d_node": node} if restarts else {}) | ({"d_x": x, "d_y": y} if near else {})
    read = [_readable(tensor) for tensor in (upstream, out)]
    _point(problem, upstream=read[0], out=read[1], **targets)
    d_p = inputs.p.new_empty(B, H, dtype=torch.float32)
    d_restart = torch.empty_like(d_p) if restarts else None
    # Whoever keeps tensors for the backward pass may give them back with other strides.
    statistics = Statistics(*(it.contiguous() for it in statistics))
    _array(problem, **statistics._asdict(), d_p=d_p, d_restart=d_restart)
    _run("padapter_backward", problem)
    del keep
    cut = {name: tensor[..., : rows[name][0].shape[-1]] for name, tensor in found.items()}
    return Gradients(
        cut["d_query"], cut.get("d_key"), cut.get("d_value"), cut.get("d_node"), cut.get("d_x"), cut.get("d_y"),
        d_p.sum(0), None if d_restart is None else d_restart.sum(0),
    )  # fmt: skip


def _problem(inputs: Inputs, metric: Tensor | None) -> tuple[_Problem, list[Any]]:
    """The problem without its outputs, with the metric as its pass wants it, and the tensors that it points into."""
    library = load()
    panel = library.padapter_panel()
    if library.padapter_problem_size() != ctypes.sizeof(_Problem):
        raise RuntimeError("launch.py and attention.h disagree on what a problem is")
    B, H, N1, _ = inputs.query.shape
    N2 = inputs.key.shape[2]
    query, key, value, node, x, y = inputs.resolved()
    made: dict[int, Tensor] = {}

    def readable(tensor: Tensor | None) -> Tensor | None:
        """Once for every tensor: the library looks whether two are the same."""
        return None if tensor is None else made.setdefault(id(tensor), _readable(tensor))

    tensors = {name: readable(it) for name, it in zip(_VIEWS, (query, key, value, node, x, y), strict=False)}
    if metric is not None:
        short = -metric.shape[-1] % panel
        squares = torch.nn.functional.pad(metric, (0, short, 0, short)) if short else metric
        tensors["metric"] = _readable(squares).unsqueeze(0)
    tensors["mask"] = None if inputs.mask is None else _added(inputs.mask, N2).expand(B, H, N1, N2)
    problem = _Problem()
    _point(problem, **tensors)
    given = {"p": inputs.p, "restart": inputs.restart}
    numbers = {name: None if it is None else it.float().contiguous() for name, it in given.items()}
    _array(problem, **numbers)
    problem.B, problem.H, problem.N1, problem.N2, problem.causal = B, H, N1, N2, inputs.causal
    problem.DK, problem.DH = (-(-width // panel) * panel for width in (query.shape[-1], value.shape[-1]))
    problem.key_groups, problem.value_groups = H // key.shape[1], H // value.shape[1]
    problem.y_groups = 1 if y is None else H // y.shape[1]
    problem.scale, problem.relative, problem.least = inputs.scale, inputs.relative, inputs.least
    problem.largest_inverse = _LARGEST_INVERSE
    dropout = inputs.dropout()
    if dropout is not None:
        _array(problem, seed=dropout.seed)
        problem.below, problem.factor = dropout.below, dropout.factor
    return problem, [tensors, numbers]


def _squared(metric: Tensor) -> Tensor:
    """R R^T (H, dh, dh), kept as long as R stays what it is: a frozen projection has the same in every step."""
    known, state = _SQUARES.get(metric), (metric.data_ptr(), metric._version)
    if known is None or known[0] != state:
        known = (state, metric @ metric.mT)
        _SQUARES[metric] = known
    return known[1]


def _fresh(like: Tensor, *shape: int) -> Tensor:
    """Without content; heads side by side where they are in ``like``, so that what made it need not copy a gradient."""
    order = (0, 2, 1, 3) if like.stride(1) < like.stride(2) else (0, 1, 2, 3)
    tensor = torch.empty_permuted(shape, order, dtype=torch.float32, device=like.device)
    load().padapter_prepare(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _readable(tensor: Tensor) -> Tensor:
    """In float32, with contiguous rows whose width is a multiple of what the library computes together."""
    tensor = tensor.float()
    short = -tensor.shape[-1] % load().padapter_panel()
    if short:
        return torch.nn.functional.pad(tensor, (0, short))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _added(mask: Tensor, keys: int) -> Tensor:
    """A mask as float32 numbers to add, with contiguous rows of all keys."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    mask = mask.float().expand(*mask.shape[:-1], keys)
    return mask if mask.stride(-1) == 1 else mask.contiguous()


def _point(problem: _Problem, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            batch, head, row, _ = tensor.stride()
            setattr(problem, name, _View(tensor.data_ptr(), batch, head, row))


def _array(problem: _Problem, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(problem, name, tensor.data_ptr())


def _run(name: str, problem: _Problem) -> None:
    """Let as many threads as PyTorch uses work on a problem, this one among them; small problems get fewer.

    The library's threads are its own: Python runs nothing, the handler of Ctrl-C included, before all of them are done
    with the tensors.
    """
    pairs = problem.B * problem.H
    products = pairs * problem.N1 * problem.N2 * (problem.DK + problem.DH)
    problem.threads = min(torch.get_num_threads(), pairs, 1 + products // _WORTH_A_THREAD)
    if getattr(load(), name)(ctypes.byref(problem)):
        raise MemoryError("no memory for one row of attention scores")
