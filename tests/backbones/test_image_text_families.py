"""Families whose texts need more than ids: places in front of the text, masks per token, two tokenisers."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import make_family

from padapter.backbones import TrainingExample

NAMES = ["git", "instructblip", "kosmos-2", "mllama"]
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))
    for seed, size in enumerate([(20, 30, 3), (40, 16, 3)])
]
PROMPTS = ["what color is the thing ?", "is the thing red ?"]


@pytest.fixture(scope="module")
def backbones():
    return functools.cache(make_family)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_single_sequences_and_scores(backbones, name):
    backbone = backbones(name)
    module = backbone.training_module("sequence").eval()
    targets = [(("red", 0.75), ("blue green", 0.25)), (("yes", 1.0),)]
    rows = [TrainingExample(*row) for row in zip(PICTURES, PROMPTS, targets, strict=True)]

    def loss(examples):
        with torch.no_grad():
            return float(module(**backbone.collate(examples))["loss"])

    singles = [[loss([TrainingExample(x.image, x.prompt, ((text, 1.0),))]) for text, _ in x.targets] for x in rows]
    weighted = sum(
        w * one for x, some in zip(rows, singles, strict=True) for (_, w), one in zip(x.targets, some, strict=True)
    )
    assert loss(rows) == pytest.approx(weighted / 2, abs=1e-3)
    scores = backbone.rank(PICTURES[:1], PROMPTS[:1], ["red", "blue green"])[0]
    assert scores == pytest.approx([-one for one in singles[0]], abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_training_foresees_what_the_model_writes(backbones, name):
    """The logits of an answer's first token against transformers' own ``generate``, which knows nothing of answers."""
    backbone = backbones(name)
    for image, prompt in zip(PICTURES, PROMPTS, strict=True):
        batch = backbone.collate([TrainingExample(image, prompt, (("red", 1.0),))])
        with torch.no_grad():
            logits = backbone.training_module("token").eval()(**batch)["logits"]
        (written,) = backbone.generate([image], [prompt], max_new_tokens=1, min_new_tokens=1)
        logits[:, backbone.end_id] = float("-inf")
        assert backbone.processor.tokenizer.decode(logits[0].argmax(), skip_special_tokens=True).strip() == written


@pytest.mark.parametrize("name", NAMES)
def test_every_token_of_an_answer_is_foreseen_as_in_writing(backbones, name):
    """Logits of a whole answer against those of transformers' ``generate`` that may write nothing else."""
    backbone, image, prompt = backbones(name), PICTURES[0], PROMPTS[0]
    batch = backbone.collate([TrainingExample(image, prompt, (("blue green red", 1.0),))])
    with torch.no_grad():
        found = backbone.training_module("token").eval()(**batch)["logits"]
    row = backbone.read(image, prompt)
    answer = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    steps = iter(answer)
    written = backbone.base_model.generate(
        **row,
        do_sample=False,
        max_new_tokens=len(answer),
        prefix_allowed_tokens_fn=lambda *_: [next(steps)],
        eos_token_id=backbone.end_id,
        pad_token_id=backbone.pad_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert written.sequences[0, -len(answer) :].tolist() == answer
    torch.testing.assert_close(found, torch.cat(written.logits), atol=1e-4, rtol=1e-4)
