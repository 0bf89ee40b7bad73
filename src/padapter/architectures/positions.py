"""Position embeddings of image patches for another image size."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn.functional import interpolate


def resize_table(
    table: torch.Tensor, side: int, *, mode: Literal["bicubic", "bilinear"], others: int = 1
) -> torch.Tensor:
    """Interpolate learned positions of a square grid to another square grid.

    Corners are not aligned and nothing is smoothed beforehand, as the official BLIP and mPLUG codes do when they load.

    Args:
        table: (1, others + g * g, d), rows of the grid one after the other.
        side: g', the wanted number of patches along each edge.
        mode: how to interpolate.
        others: positions before the grid (class token), which stay as they are.

    Returns:
        (1, others + g' * g', d) of the same type; ``table`` itself when g' is g. Half precision is computed in float32.
    """
    old = grid_side(table.shape[1], others)
    if old is None:
        raise ValueError(f"{table.shape[1]} positions are not {others} and a square grid")
    if old == side:
        return table
    kept, grid = table[:, :others], table[:, others:]
    planes = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, d, g, g)
    planes = planes.to(torch.promote_types(table.dtype, torch.float32))
    planes = interpolate(planes, size=(side, side), mode=mode, align_corners=False, antialias=False)
    rows = planes.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(table.dtype)
    return torch.cat((kept, rows), dim=1)


def grid_side(positions: int, others: int = 1) -> int | None:
    """The g of a table of ``others`` + g * g positions, or ``None`` if there is none."""
    patches = positions - others
    side = math.isqrt(patches) if patches > 0 else 0
    return side if side and side * side == patches else None
