"""Decoder-only models of transformers with their own processors: reading, losing, writing and ranking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tiny_image_text import PROCESSORS, a_run_from_data_to_score, save

from padapter.backbones import TrainingExample, load_backbone
from padapter.backbones.image_text import ImageTextBackbone
from padapter.backbones.sequences import IGNORE
from padapter.data.augment import parse_augmentation
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.tasks import get_task
from padapter.training.batches import VISIT, Collator

NAMES = sorted(PROCESSORS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: save(name, tmp_path_factory.mktemp("models") / str(i)) for i, name in enumerate(NAMES)}


@pytest.fixture
def load(folders, monkeypatch):
    """Loads a backbone; the processor of Qwen2-VL cannot be read from a folder without torchvision."""

    def from_folder(name: str) -> ImageTextBackbone:
        if name == "qwen2-vl":
            made = PROCESSORS[name]()
            monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: made)
        backbone: Any = load_backbone(str(folders[name]))
        monkeypatch.undo()
        return backbone

    return from_folder


def picture(seed: int = 0, size: tuple[int, int] = (20, 30)) -> Image.Image:
    values = torch.randint(0, 255, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


EXAMPLES = [
    TrainingExample(picture(0), "what color is the thing ?", (("red", 0.75), ("blue green", 0.25))),
    TrainingExample(picture(1, (40, 16)), "is the thing red ?", (("yes", 1.0),)),
]


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_that_of_the_single_sequences(load, name):
    backbone = load(name)
    module = backbone.training_module("sequence").eval()
    batch = backbone.collate(EXAMPLES)
    assert [backbone.processor.tokenizer.decode(row[row != IGNORE]) for row in batch["labels"]] == [
        "red </s>",
        "blue green </s>",
        "yes </s>",
    ]
    with torch.no_grad():
        loss = module(**batch)["loss"]
        singles = [
            weight * module(**backbone.collate([TrainingExample(x.image, x.prompt, ((target, 1.0),))]))["loss"]
            for x in EXAMPLES
            for target, weight in x.targets
        ]
    torch.testing.assert_close(loss, sum(singles) / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 2])
def test_writing_does_not_depend_on_the_batch(load, name, beams):
    backbone = load(name)
    images, prompts = [x.image for x in EXAMPLES], [x.prompt for x in EXAMPLES]
    together = backbone.generate(images, prompts, num_beams=beams, max_new_tokens=5)
    alone = [
        backbone.generate([i], [p], num_beams=beams, max_new_tokens=5)[0] for i, p in zip(images, prompts, strict=True)
    ]
    assert together == alone


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_candidates_are_the_losses_of_training(load, name):
    backbone = load(name)
    module = backbone.training_module("sequence").eval()
    words = ["red", "blue green", "yes"]
    scores = backbone.rank([EXAMPLES[0].image], [EXAMPLES[0].prompt], words)[0]
    for word, score in zip(words, scores, strict=True):
        batch = backbone.collate([TrainingExample(EXAMPLES[0].image, EXAMPLES[0].prompt, ((word, 1.0),))])
        with torch.no_grad():
            assert -float(module(**batch)["loss"]) == pytest.approx(score, abs=1e-3)
    best = backbone.rank([EXAMPLES[0].image], [EXAMPLES[0].prompt], words, k=1)[0]
    assert sum(score > float("-inf") for score in best) == 1
    normalised = backbone.rank([EXAMPLES[0].image], [EXAMPLES[0].prompt], words, length_normalized=True)[0]
    assert normalised[1] == pytest.approx(scores[1] / 3)


@pytest.mark.parametrize("name", NAMES)
def test_picture_and_prompt_are_read_once(load, name):
    backbone = load(name)
    method = get_method("p-adapter")
    method.apply(backbone, method.parse({}))
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) if parameter.requires_grad else 0.0)
    words = [f"w{i} {'a' if i % 2 else ''} {'red' if i % 3 else ''}" for i in range(30, 50)]
    asked = ([x.image for x in EXAMPLES], [x.prompt for x in EXAMPLES], words)
    scores = backbone.rank(*asked)
    assert backbone.continuations.remembers
    backbone.continuations.remembers = False
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(backbone.rank(*asked)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrong", ["error", "score", "score of several tokens"])
def test_a_model_that_cannot_go_on_reads_anew_and_says_so(load, caplog, monkeypatch, wrong):
    backbone = load("llava")
    asked = ([EXAMPLES[0].image], [EXAMPLES[0].prompt], ["red", "blue green"])
    right = backbone.rank(*asked)
    backbone.continuations.remembers = None
    behind = backbone.continuations._behind

    def broken(prompt, answers):
        if wrong == "error":
            raise TypeError("no such thing as a cache")
        least = 3 if wrong == "score of several tokens" else 0  # the end token among them
        scores = zip(behind(prompt, answers), answers, strict=True)
        return [score - 0.1 * (len(answer) >= least) for score, answer in scores]

    monkeypatch.setattr(backbone.continuations, "_behind", broken)
    assert backbone.rank(*asked) == [pytest.approx(right[0], abs=1e-4)]
    assert backbone.continuations.remembers is False
    assert "reads picture and prompt anew for every candidate" in caplog.text


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_what_does_not_fit_is_said(load, name):
    backbone = load(name)
    backbone.max_length = backbone.collate(EXAMPLES[:1])["input_ids"].shape[1] - 1
    backbone.collate(EXAMPLES[:1])
    assert backbone.cut_targets == 1
    with pytest.raises(UserError, match="no room"):
        backbone.generate([EXAMPLES[0].image], [EXAMPLES[0].prompt], max_new_tokens=9)


@pytest.mark.parametrize("method", ["p-adapter", "adapter", "lora", "full"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.in_turn("method")
def test_a_run_from_data_to_score(folders, tmp_path, monkeypatch, name, method):
    if name == "qwen2-vl":
        made = PROCESSORS[name]()
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: made)
    task = {"llava": "entailment", "paligemma": "caption"}.get(name, "vqa")
    a_run_from_data_to_score(folders[name], tmp_path / "run", task, method)


def test_attention_is_what_transformers_chooses_or_step_by_step(folders):
    folder = str(folders[NAMES[0]])
    chosen = {
        name: load_backbone(folder, attention=name).model.config._attn_implementation for name in ("sdpa", "eager")
    }
    assert chosen == {"sdpa": "sdpa", "eager": "eager"}


def test_a_template_that_begins_with_the_start_token_gets_no_second_one(load, monkeypatch):
    """As in transformers' own ``apply_chat_template``; other texts begin with what the tokenizer puts there."""
    from tokenizers.processors import TemplateProcessing

    backbone = load("llava")
    backbone.processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    template = backbone.processor.chat_template
    for text in (template, "<s>" + template):
        monkeypatch.setattr(backbone.processor, "chat_template", text)
        ids = backbone.read(EXAMPLES[0].image, EXAMPLES[0].prompt)["input_ids"][0]
        assert (ids == 1).nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize("name", NAMES)
def test_what_decides_pixels_can_be_written_down_and_had_again(load, name):
    backbone = load(name)
    record = json.loads(json.dumps(backbone.preprocessing()))
    expected = backbone.read(picture(), "what color")
    own = backbone.processor.image_processor
    backbone.processor.image_processor = type(own).from_dict({**own.to_dict(), "image_mean": [0.9, 0.9, 0.9]})
    assert backbone.preprocessing() != record
    backbone.preprocess_as(record)
    assert backbone.preprocessing() == record
    found = backbone.read(picture(), "what color")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", NAMES)
def test_training_pictures_are_changed_at_their_own_size(load, name):
    backbone = load(name)
    image = picture(0, (40, 60))
    row = {"image": image, "question": "what color is it", "answers": ["red"], VISIT: (0, 3)}
    task = get_task("vqa")
    plain, same, turned = (
        Collator(backbone, task, parse_augmentation(text), seed=1)([row])
        for text in ("none", "rotate:p=0", "rotate:degrees=30:p=1")
    )
    pixels = next(key for key in plain if key.startswith("pixel_values"))
    assert torch.equal(same[pixels], plain[pixels])
    assert turned[pixels].shape == plain[pixels].shape
    assert not torch.equal(turned[pixels], plain[pixels])
    Collator(backbone, task, parse_augmentation("published"), seed=1)([row])
