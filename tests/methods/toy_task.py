"""A task small enough to be learned in a few dozen steps."""

from __future__ import annotations

import torch
from tiny_blip import make_image

from padapter.backbones import TrainingExample

PROMPTS = ["what color is the dog?", "how many cats are there in the picture?", "what is it"]
ANSWERS = ["blue green", "three", "a large cat on the left"]


def toy_images():
    return [make_image(seed) for seed in range(3)]


def toy_batch(backbone):
    return backbone.collate(
        [
            TrainingExample(image, prompt, ((answer, 1.0),))
            for image, prompt, answer in zip(toy_images(), PROMPTS, ANSWERS, strict=True)
        ]
    )


def overfit(backbone, steps: int = 60, rate: float = 3e-2) -> list[float]:
    """Train on the toy batch and return the loss of every step."""
    module, batch = backbone.training_module("sequence"), toy_batch(backbone)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    losses = []
    for _ in range(steps):
        loss = module(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def outputs(backbone):
    """Everything a method can change: logits, greedy and beam texts, ranking."""
    with torch.no_grad():
        logits = backbone.training_module("sequence")(**toy_batch(backbone))["logits"]
    images = toy_images()
    return (
        logits,
        backbone.generate(images, PROMPTS, max_new_tokens=8),
        backbone.generate(images, PROMPTS, num_beams=3, max_new_tokens=8),
        torch.tensor(backbone.rank(images, PROMPTS, ["red", "blue green", "a cat"])),
    )


def assert_same(first, second):
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert first[1:3] == second[1:3]
    torch.testing.assert_close(first[3], second[3], rtol=0, atol=0)
