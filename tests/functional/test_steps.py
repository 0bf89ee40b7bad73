"""A graph layer's last step, taken apart, puts together the layer's own context."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from padapter.functional import plain_step
from padapter.tuners.p_adapter.message_passing import MESSAGE_PASSING, MessagePassing

B, H, HKV, N, DH = 2, 4, 2, 5, 3
ARGUMENTS = {"p": 1.3, "mu": 0.2, "teleport": 0.3, "theta": 0.5, "metric_factor": None, "mapping": None}


def states():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, h, N, DH, generator=generator, dtype=torch.double) for h in (H, HKV, HKV))


def arguments(layer, steps, update_values):
    found = {name: value for name, value in ARGUMENTS.items() if name in layer.takes and value is not None}
    if "mapping" in layer.takes:
        generator = torch.Generator().manual_seed(1)
        found["mapping"] = torch.randn(H, DH, DH, generator=generator, dtype=torch.double)
    if "steps" in layer.takes:
        found |= {"steps": steps, "update_values": update_values}
    return found


@pytest.mark.parametrize("name", MESSAGE_PASSING)
@pytest.mark.parametrize(("steps", "update_values"), [(1, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize("degree", ["row", "symmetric"])
def test_the_step_makes_the_context(name, steps, update_values, degree):
    layer = MESSAGE_PASSING[name]
    given = arguments(layer, steps, update_values)
    mask = torch.rand(B, 1, N, N, generator=torch.Generator().manual_seed(2)) > 0.2
    given |= {"attention_mask": mask | torch.eye(N, dtype=torch.bool), "degree": degree}
    step = layer.last_step(*states(), **given)
    torch.testing.assert_close(step.context(), layer.context(*states(), dropout_p=0.0, **given))
    weights, own = layer.weights(*states(), **given)
    torch.testing.assert_close(step.weights, weights)
    torch.testing.assert_close(step.own, own)


def test_a_layer_that_says_no_more_than_its_weights():
    """Without ``step`` the context is ``W V + own F``, with heads shared and other node features."""
    appnp = MESSAGE_PASSING["appnp"]
    mine = MessagePassing(appnp.context, appnp.weights)
    query, key, value = states()
    nodes = torch.randn(B, H, N, DH, dtype=torch.double)
    given = {"teleport": 0.3, "node_query": nodes}
    expected = appnp.context(query, key, value, dropout_p=0.0, **given)
    torch.testing.assert_close(mine.last_step(query, key, value, **given).context(), expected)


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive"])
def test_plain_attention(mask):
    query, key, value = states()
    boolean = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) > 0.2
    boolean = boolean | torch.eye(N, dtype=torch.bool)
    given = {"none": None, "causal": None, "boolean": boolean, "additive": torch.randn(1, 1, N, N).double()}[mask]
    step = plain_step(query, key, value, given, mask == "causal", 0.7)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=given, is_causal=mask == "causal", scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(step.context(), expected)
    torch.testing.assert_close(step.weights.sum(-1), torch.ones_like(step.own))
