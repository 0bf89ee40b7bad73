"""What the tests of diagnoses measure: a tiny BLIP with a p-adapter, and texts of different lengths."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model

from padapter.backbones import TrainingExample
from padapter.tuners import PAdapterConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_backbone, make_image

TEXTS = (
    ("what color is the dog ?", "red"),
    ("how many cats", "two"),
    ("is it", "yes"),
    ("describe the small picture on the left ?", "there is a large dog in the picture"),
    ("what", "a red cat"),
)
SELF = "text_decoder.bert.encoder.layer.{}.attention.self"
CROSS = "text_decoder.bert.encoder.layer.{}.crossattention.self"


def examples(count=5):
    pairs = [TEXTS[number % len(TEXTS)] for number in range(count)]
    return [TrainingExample(make_image(n), prompt, ((target, 1.0),)) for n, (prompt, target) in enumerate(pairs)]


def adapted(double=False, **options):
    """A tiny BLIP with a p-adapter whose weights change something."""
    backbone = make_backbone()
    backbone.model = get_peft_model(backbone.model, PAdapterConfig(**{"p": 1.4, "mu": 0.3, **options}))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.rand_like(parameter) * (1 if "_p." in name or "_mu." in name else 0.3))
    if double:
        backbone.model.double()
    return backbone


def values(found):
    """All numbers of a diagnosis."""
    return np.array([record["mean"] for record in found.numbers()], dtype=float)
