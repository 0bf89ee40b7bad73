"""The vanilla adapter inside BLIP and on any model, against its equation."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from padapter.errors import UserError
from padapter.tuners import BottleneckConfig


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.uniform_(-0.5, 0.5)


def expected(layer, x, result, scaling):
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    inner = torch.relu(x @ down.weight.T + down.bias)
    return result + scaling * (inner @ up.weight.T + up.bias)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("scaling", [0.7, "learned"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_inside_blip(tiny_blip, mode, scaling, chunk):
    model = get_peft_model(tiny_blip, BottleneckConfig(mode=mode, scaling=scaling)).eval()
    randomise(model)
    block = model.base_model.model.text_decoder.bert.encoder.layer[1]
    block.chunk_size_feed_forward = chunk
    seen = {}

    def keep(name):
        def hook(_, args, kwargs, output):
            seen.setdefault(name, []).append((args[0], output))

        return hook

    pairs = {
        "self": (block.attention.self, block.attention.output.dense),
        "cross": (block.crossattention.self, block.crossattention.output.dense),
        "feed-forward": (block.intermediate, block.output.dense),
    }
    for name, (first, last) in pairs.items():
        first.register_forward_hook(keep(f"{name} in"), with_kwargs=True)
        last.register_forward_hook(keep(f"{name} out"), with_kwargs=True)
    with torch.no_grad():
        model(pixel_values=torch.randn(2, 3, 32, 32), input_ids=torch.randint(3, 40, (2, 6)))
        for name, (_, last) in pairs.items():
            factor = last.bottleneck_scale["default"] if scaling == "learned" else scaling
            for (entered, _), (context, output) in zip(seen[f"{name} in"], seen[f"{name} out"], strict=True):
                result = last.base_layer(context)
                reads = entered if mode == "parallel" else result
                torch.testing.assert_close(output, expected(last, reads, result, factor), atol=1e-5, rtol=1e-5)
    assert len(seen["feed-forward in"]) == (3 if chunk else 1)


def test_behind_any_linear():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(4, 5)
    before = model(x)
    adapted = get_peft_model(model, BottleneckConfig(target_modules=["0"], r=2))
    assert torch.equal(adapted(x), before)
    randomise(adapted)
    inner = expected(model[0], model[0].base_layer(x), model[0].base_layer(x), 1.0)
    torch.testing.assert_close(adapted(x), model[2](torch.relu(inner)))


def test_behind_a_conv1d():
    model = nn.Sequential(Conv1D(6, 4))
    x = torch.randn(2, 3, 4)
    adapted = get_peft_model(model, BottleneckConfig(target_modules=["0"], r=2))
    randomise(adapted)
    torch.testing.assert_close(adapted(x), expected(model[0], model[0].base_layer(x), model[0].base_layer(x), 1.0))


def test_refused_targets():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.embedding = nn.MultiheadAttention(4, 2), nn.Embedding(3, 4)
            self.linear = nn.Linear(4, 4)

    for name, message in (
        ("attention.out_proj", "MultiheadAttention"),
        ("embedding", "'embedding' of class Embedding"),
    ):
        with pytest.raises(UserError, match=message):
            get_peft_model(Net(), BottleneckConfig(target_modules=[name]))
    with pytest.raises(UserError, match=r"'linear'.*'parallel'.*mode='sequential'"):
        get_peft_model(Net(), BottleneckConfig(target_modules=["linear"], mode="parallel"))
