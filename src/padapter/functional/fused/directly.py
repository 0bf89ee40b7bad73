"""The C library's kernels without the dispatcher, which takes longer than they do where a call is small.

An operator of PyTorch passes some ten layers of Python in each direction, of which only the compiler, tracing, dispatch
modes, transformations of functions and tensor subclasses make any use. Where there are none of these, a function of
autograd calls the same kernels; in the backward pass too, unless the gradient is to have a graph of its own, of which
the operator says that it has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from padapter.functional.fused import operators
from padapter.functional.fused.contract import Inputs, Statistics

#: Arguments of the operator that are tensors, and those that have gradients: see `operators`.
_TENSORS, _DIFFERENTIABLE = 11, 8


def p_laplacian_context(*arguments: Any) -> Tensor:
    """Compute the context (B, H, N1, dh) by ``padapter::p_laplacian_forward``, or natively without the dispatcher.

    Args:
        arguments: those of the operator, in its order.
    """
    if _needs_operator(arguments):
        context: Tensor = operators.p_laplacian_forward(*arguments)[0]
        return context
    found: Tensor = _Native.apply(*arguments)
    return found


def _needs_operator(arguments: tuple[Any, ...]) -> bool:
    native = arguments[-1]
    return not native or _are_watched(arguments[:_TENSORS])


def _are_watched(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether something that works on calls of operators is at work, or comes with one of the tensors."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(type(it) is not Tensor and type(it) is not Parameter for it in tensors if it is not None)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        context, statistics = operators.forward_natively(Inputs(*arguments[:-1]))
        ctx.save_for_backward(*arguments[:_TENSORS], context, *statistics)
        ctx.numbers = arguments[_TENSORS:]
        ctx.set_materialize_grads(False)
        return context

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (_TENSORS + len(ctx.numbers))
        if upstream is None:
            return nothing
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[:_DIFFERENTIABLE]
        batched = torch._C._functorch.is_legacy_batchedtensor(upstream)  # by `is_grads_batched`
        if batched or torch.is_grad_enabled() or _are_watched((upstream, *saved)):
            return operators.gradients(upstream, saved, ctx.numbers, ctx.needs_input_grad)
        inputs = Inputs(*saved[:_TENSORS], *ctx.numbers[:-1])
        columns = wanted[1] or wanted[2] or wanted[5]
        out, statistics = saved[_TENSORS], Statistics(*saved[_TENSORS + 1 :])
        found = operators.backward_natively(inputs, upstream, out, statistics, columns)
        kept = (gradient if want else None for gradient, want in zip(found, wanted, strict=True))
        return (*kept, *nothing[_DIFFERENTIABLE:])
