"""Adapters with random weights in mPLUG, everywhere, and the graph layers that tests go through."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from tiny_mplug import tiny

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
LAYERS = {
    "pgnn": {"p": 1.5, "mu": 0.3},
    "pgnn, two steps": {"p": 1.5, "mu": 0.3, "steps": 2},
    "gcn": {"message_passing": "gcn"},
    "appnp": {"message_passing": "appnp", "steps": 2},
    "gcnii": {"message_passing": "gcnii", "steps": 2},
}


def adapted(base, config, *, trained: bool = True):
    """An adapter everywhere, in float64, its weights random."""
    torch.manual_seed(0)
    config.init_weights = not trained
    model = get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
    if trained:
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                # Numbers that float32 holds too: in it PEFT makes adapters that are loaded.
                parameter.copy_((parameter + 0.3 * torch.rand(parameter.shape)).float())
    return model


@pytest.fixture(scope="session")
def vqa():
    """(model, sizes): one layer of each kind but the fusion network's four, of which the third is connected."""
    model, _, sizes = tiny(text_layers=1, vision_layers=1, decoder_layers=1, fusion_layers=4)
    return model, sizes
