"""The mathematics: pure functions on tensors, nothing about models.

Source: "p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models" (AAAI 2024,
arXiv 2312.10613), equations (5)-(9).

* `p_laplacian_attention`: message passing (equations 7-8) on the attention graph (equations 5-6), the fast
  form.
* `dispatch`: which of its two implementations runs, plain PyTorch or fused GPU kernels, and why.
* `gcn_attention`, `appnp_attention`, `gcnii_attention`: other graph layers on the same graph.
* `attention_graph`: the graph itself, to write a further layer on.
* ``..._weights``: the weights of each of them, for looking at rather than for computing with.
* ``..._step``: the last step of each taken apart, for gradients with respect to the weights (`Step`).
* `metric_factor`: what lets distances behind the output projection be taken before it (features of equation
  6).
* `p_laplacian_attention_reference`, `p_adapter_reference`: equations 5-8 and 5-9 word for word, slow,
  float64.
"""

from __future__ import annotations

from padapter.functional._arguments import DEGREES, Degree
from padapter.functional.appnp import appnp_attention, appnp_step, appnp_weights
from padapter.functional.factors import metric_factor
from padapter.functional.gcn import gcn_attention, gcn_weights
from padapter.functional.gcnii import gcnii_attention, gcnii_step, gcnii_weights
from padapter.functional.graph import (
    AttentionGraph,
    GraphArguments,
    Step,
    attention_graph,
    plain_step,
    without_autocast,
)
from padapter.functional.p_laplacian import p_laplacian_attention, p_laplacian_step, p_laplacian_weights
from padapter.functional.reference import p_adapter_reference, p_laplacian_attention_reference

__all__ = [
    "DEGREES",
    "AttentionGraph",
    "Degree",
    "GraphArguments",
    "Step",
    "appnp_attention",
    "appnp_step",
    "appnp_weights",
    "attention_graph",
    "gcn_attention",
    "gcn_weights",
    "gcnii_attention",
    "gcnii_step",
    "gcnii_weights",
    "metric_factor",
    "p_adapter_reference",
    "p_laplacian_attention",
    "p_laplacian_attention_reference",
    "p_laplacian_step",
    "p_laplacian_weights",
    "plain_step",
    "without_autocast",
]
