"""Position embeddings of another image size."""

from __future__ import annotations

import torch

from padapter.architectures.positions import grid_side, resize_table
from padapter.errors import UserError


def resize_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings of g x g patches as those of ``side`` x ``side`` patches.

    Bilinear, as in the published mPLUG code; BLIP interpolates bicubically.

    Args:
        table: (1 + g * g, d); row 0 belongs to the class token and is kept.
        side: patches per side that are wanted.

    Returns:
        (1 + side * side, d); the table itself where it fits already.

    Raises:
        UserError: if the rows but the first are not a square number.
    """
    if table.dim() != 2 or grid_side(len(table)) is None:
        raise UserError(
            f"position embeddings of shape {tuple(table.shape)} are not one row for the class token and g * g rows for "
            "square images."
        )
    return resize_table(table[None], side, mode="bilinear")[0]
