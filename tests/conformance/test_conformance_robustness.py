"""Uses that leave no trace in a single forward pass: threads, inference mode before training, wrong beam counts."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from peft import get_peft_model

from padapter.errors import UserError


def test_two_threads_do_not_mix_their_passes(adapted, batch, helpers):
    inputs = [{key: value[i : i + 1] for key, value in batch.items()} for i in (0, 1)]
    expected = [helpers.logits(adapted, one) for one in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        try:
            for _ in range(12):
                torch.testing.assert_close(helpers.logits(adapted, inputs[index]), expected[index])
        except Exception:
            wrong.append(index)
            raise

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_training_after_inference_mode(adapted, batch):
    one = {key: value[:1] for key, value in batch.items()}
    with torch.inference_mode():
        adapted(**one)
    adapted.train()
    adapted(**one).logits.square().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_names_for_beams_that_are_samples_are_refused(case, tiny_blip, batch):
    tiny_blip.text_decoder.generation_config.num_beams = 2
    model = get_peft_model(tiny_blip, case.config()).eval()
    model.add_adapter("second", case.config())
    four = {key: torch.cat([value, value]) for key, value in batch.items()}
    with pytest.raises(UserError, match="2 names, but the batch has 4 samples"):
        model(**four, adapter_names=["default", "second"])


def test_data_written_behind_the_back_counts_after_eval(adapted, batch, helpers):
    site = next(m for n, m in adapted.named_modules() if n.endswith("crossattention.output.dense"))
    base = site.get_base_layer() if hasattr(site, "get_base_layer") else site
    helpers.logits(adapted, batch)
    base.weight.data.mul_(1.5)
    adapted.eval()
    changed = helpers.logits(adapted, batch)
    base.weight.data = base.weight.data.clone()  # a new tensor: nothing remembered can be about it
    torch.testing.assert_close(helpers.logits(adapted, batch), changed)


def test_trained_biases_get_their_whole_gradient(case, tiny_blip, batch):
    """The bias of the output projection is part of the node features of the bottleneck form."""
    model = get_peft_model(tiny_blip.double(), case.config(bias=f"{case.tuner}_only"), autocast_adapter_dtype=False)
    model = model.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = {key: v.double() if v.is_floating_point() else v for key, v in batch.items()}
    biases = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n.endswith("output.dense.bias")]
    biases += [(n, p) for n, p in model.named_parameters() if p.requires_grad and n.endswith("base_layer.bias")]
    assert biases
    name, bias = biases[0]
    direction = torch.randn(bias.shape, generator=generator, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return model(**inputs).logits.log_softmax(-1)[..., 3].sum()

    loss().backward()
    analytic = (bias.grad * direction).sum()
    with torch.no_grad():
        step = 1e-6
        bias.add_(step * direction)
        above = loss()
        bias.sub_(2 * step * direction)
        below = loss()
    torch.testing.assert_close(analytic, (above - below) / (2 * step), rtol=1e-5, atol=1e-6), name
