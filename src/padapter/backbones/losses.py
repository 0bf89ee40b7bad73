"""Weighted next-token losses."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from padapter.backbones.base import LossReduction
from padapter.backbones.sequences import IGNORE


def labelled(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions whose next token carries a label, row by row.

    Args:
        labels: (S, L); -100 marks tokens without loss.

    Returns:
        Rows (K,) and columns (K,), which index (S, L, ...).
    """
    row, column = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    return row, column


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    *,
    num_images: int,
    reduction: LossReduction,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    r"""Cross entropy of the next token, summed or averaged over weighted sequences.

    With l_st the (label-smoothed) loss of token t of sequence s, over tokens that carry a label:

    - ``sequence``: :math:`\frac{1}{I} \sum_s w_s \sum_t l_{st}` for I images (the VQA loss of BLIP and of the
      p-adapter authors, one sequence per distinct answer, w_s its share of the annotators);
    - ``token``: :math:`\sum_s w_s \sum_t l_{st} \,/\, \sum_s w_s T_s` with T_s the number of labels of sequence s.

    Args:
        logits: (S, L, V), logits[:, t] predict token t + 1; or (K, V), those at the positions of :func:`labelled`.
            With 30k words, logits that no label asks for would cost as much as a part of the model.
        labels: (S, L); -100 marks tokens without loss.
        weights: (S,).
        num_images: I.
        reduction: See above.
        label_smoothing: Share of the target distribution spread evenly over the vocabulary.

    Returns:
        The loss, a scalar, in the type of ``logits`` or float32, whichever is wider.
    """
    row, column = labelled(labels)
    picked = logits if logits.dim() == 2 else logits[row, column]
    picked = picked.float() if picked.dtype in (torch.float16, torch.bfloat16) else picked
    losses = F.cross_entropy(picked, labels[row, column + 1], reduction="none", label_smoothing=label_smoothing)
    token_weights = weights.to(losses.dtype)[row]
    total = (losses * token_weights).sum()
    if reduction == "sequence":
        return total / num_images
    return total / token_weights.sum()
