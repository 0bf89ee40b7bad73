"""Distances behind a projection, taken before it."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def metric_factor(weight: Tensor, num_heads: int) -> Tensor:
    """Compute per head the square factor R with ``R R^T = Wo Wo^T``.

    The graph's features are projected ones, ``F = x Wo`` (equation 6), but only their distances matter, and
    ``|x Wo|^2 = x (Wo Wo^T) x^T = |x R|^2``: dh numbers per node instead of d.

    R comes from the QR decomposition of ``Wo^T`` in float64, never from ``Wo Wo^T`` itself: it exists for
    every weight (d < dh, rank-deficient, zero) and loses no digits to squaring. Signs are fixed so that R is
    lower triangular with a non-negative diagonal: the Cholesky factor, where there is one.

    Args:
        weight: (d, H * dh), the weight of the output projection as `torch.nn.Linear` holds it; head h owns
            columns ``h * dh`` to ``(h + 1) * dh``. Dequantise it first where the model is quantised.
        num_heads: H.

    Returns:
        (H, dh, dh), on the weight's device; float64 for a float64 weight, else float32. It carries no
        gradient: the projection is frozen.

    Raises:
        ValueError: if the weight is not a floating-point matrix, holds a NaN or infinity, or does not split
            into num_heads heads.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight: got {weight.dtype} of shape {tuple(weight.shape)}, accepted is a floating-point matrix "
            "(d, H * dh); dequantise a quantised weight first"
        )
    model_width, inner = weight.shape
    if num_heads < 1 or inner == 0 or inner % num_heads:
        raise ValueError(f"num_heads: got {num_heads}, accepted is a divisor of the weight's {inner} columns")
    # Apple's GPUs have no float64.
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device
    columns = weight.to(device=device, dtype=torch.float64)
    if weight.device.type != "meta" and not bool(torch.isfinite(columns).all()):
        raise ValueError("weight: holds a NaN or infinite value, so no distance behind this projection exists")
    head_width = inner // num_heads
    transposed = columns.view(model_width, num_heads, head_width).transpose(0, 1)  # (H, d, dh) = Wo^T per head
    _, upper = torch.linalg.qr(transposed, mode="r")  # (H, min(d, dh), dh)
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    upper = upper * signs.unsqueeze(-1)
    factor = upper.new_zeros(num_heads, head_width, head_width)
    factor[:, :, : upper.shape[1]] = upper.mT  # d < dh leaves the last columns zero
    return factor.to(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
