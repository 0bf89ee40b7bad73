from __future__ import annotations

import pytest
import torch
from tiny_blip import make_backbone, make_image
from torch.nn import functional as F

from padapter.backbones import TrainingExample
from padapter.backbones.losses import labelled, next_token_loss


@pytest.fixture
def examples(images):
    return [
        TrainingExample(images[0], "what color is the dog?", (("red", 0.75), ("blue green", 0.25))),
        TrainingExample(images[1], "", (("a picture of the cat", 1.0),)),
        TrainingExample(images[2], "how many cats?", (("two", 1.0),)),
    ]


def separate_losses(backbone, examples):
    """Per sequence: (weight, list of token losses), one unpadded forward each, smoothing written out, float64."""
    decoder, tokenizer = backbone.model.text_decoder, backbone.processor.tokenizer
    smoothing, found = decoder.label_smoothing, []
    for example in examples:
        pixels = backbone.processor.image_processor([example.image], return_tensors="pt")["pixel_values"]
        states = backbone.model.vision_model(pixel_values=pixels.double()).last_hidden_state
        prompt = tokenizer(example.prompt, add_special_tokens=False).input_ids
        for text, weight in example.targets:
            target = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.sep_token_id]
            ids = torch.tensor([[tokenizer.convert_tokens_to_ids("[DEC]"), *prompt, *target]])
            logits = decoder(input_ids=ids, encoder_hidden_states=states).logits[0]
            log_probs = logits - logits.logsumexp(-1, keepdim=True)
            losses = [
                -(1 - smoothing) * log_probs[len(prompt) + i, token] - smoothing * log_probs[len(prompt) + i].mean()
                for i, token in enumerate(target)
            ]
            found.append((weight, losses))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_loss_is_the_weighted_sum_of_separate_sequences(images, examples, reduction, smoothing):
    backbone = make_backbone(label_smoothing=smoothing)
    backbone.model.double()
    with torch.no_grad():
        loss = backbone.training_module(reduction)(**backbone.collate(examples))["loss"]
        separate = separate_losses(backbone, examples)
    total = sum(weight * sum(losses) for weight, losses in separate)
    count = len(examples) if reduction == "sequence" else sum(weight * len(losses) for weight, losses in separate)
    torch.testing.assert_close(loss, total / count, rtol=1e-12, atol=1e-12)


def test_sequence_loss_is_that_of_transformers(backbone, examples):
    batch = backbone.collate(examples)
    states = backbone.model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state[batch["image_index"]]
    per_sequence = backbone.model.text_decoder(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        encoder_hidden_states=states,
        labels=batch["labels"],
        reduction="none",
    ).loss
    expected = (batch["weights"] * per_sequence).sum() / len(examples)
    torch.testing.assert_close(backbone.training_module("sequence")(**batch)["loss"], expected)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_gradient_of_the_loss_is_that_of_a_dense_cross_entropy(reduction):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 7, (3, 5))
    labels[:, :2] = -100
    labels[1, 4] = -100
    weights = torch.tensor([0.5, 0.25, 1.0])
    loss = next_token_loss(logits, labels, weights, num_images=2, reduction=reduction, label_smoothing=0.1)
    dense = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", label_smoothing=0.1)
    total = (weights[:, None] * dense).sum()
    tokens = (weights[:, None] * (labels[:, 1:] != -100)).sum()
    expected = total / (2 if reduction == "sequence" else tokens)
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    rest = {"num_images": 2, "reduction": reduction, "label_smoothing": 0.1}
    torch.testing.assert_close(next_token_loss(logits[labelled(labels)], labels, weights, **rest), expected)


def test_logits_are_computed_for_labelled_tokens_only(backbone, examples):
    batch = backbone.collate(examples)
    seen = []
    backbone.model.text_decoder.cls.predictions.register_forward_hook(
        lambda _m, inputs, _out: seen.append(inputs[0].shape[0])
    )
    logits = backbone.training_module("sequence")(**batch)["logits"]
    tokens = int((batch["labels"] != -100).sum())
    assert tokens < batch["labels"].numel() / 2
    assert seen == [tokens] == [len(logits)]
    states = backbone.model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state[batch["image_index"]]
    every = backbone.model.text_decoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], encoder_hidden_states=states
    ).logits
    torch.testing.assert_close(logits, every[:, :-1][batch["labels"][:, 1:] != -100])


def test_keys_and_values_of_a_picture_are_computed_once_for_all_answers(backbone, examples):
    batch = backbone.collate(examples)
    layers = backbone.model.text_decoder.bert.encoder.layer
    seen = []
    for layer in layers:
        for part in (layer.crossattention.self.key, layer.crossattention.self.value):
            part.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0].shape[0]))
    module = backbone.training_module("token").train()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    once = torch.autograd.grad(module(**batch)["loss"], trained, allow_unused=True)
    assert seen == [3] * 2 * len(layers)
    seen.clear()
    batch["pixel_values"] = batch["pixel_values"][batch["image_index"]]  # as if every answer had a picture of its own
    batch["image_index"] = torch.arange(4)
    each = torch.autograd.grad(module(**batch)["loss"], trained, allow_unused=True)
    assert seen == [4] * 2 * len(layers)
    for ours, theirs in zip(once, each, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_collate_layout(backbone, examples):
    batch = backbone.collate(examples)
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert batch["image_index"].tolist() == [0, 0, 1, 2]
    assert batch["weights"].tolist() == [0.75, 0.25, 1.0, 1.0]
    tokens = backbone.processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][1])
    assert " ".join(tokens) == "[DEC] what color is the dog ? blue green [SEP]"
    assert batch["input_ids"][:, 0].tolist() == [backbone.start_id] * 4


def test_prompt_and_target_do_not_fuse(backbone, images):
    def ids(prompt):
        return backbone.collate([TrainingExample(images[0], prompt, (("red", 1.0),))])["input_ids"][0].tolist()

    red = backbone.processor.tokenizer.convert_tokens_to_ids("red")
    # "how many dogred" would be one unknown word.
    assert ids("how many dog")[-2] == red


def test_special_tokens_in_a_question_are_plain_text(backbone, images):
    batch = backbone.collate([TrainingExample(images[0], "is [SEP] [PAD] there?", (("[SEP] yes", 1.0),))])
    assert (batch["input_ids"] == backbone.end_id).sum() == 1
    assert batch["input_ids"][0, -1] == backbone.end_id


@pytest.mark.parametrize(
    ("targets", "message"),
    [((), "no target"), ((("", 1.0),), "no token"), ((("red", 0.0),), "weight"), ((("red", float("nan")),), "weight")],
)
def test_bad_targets_are_refused(backbone, images, targets, message):
    with pytest.raises(ValueError, match=message):
        backbone.collate([TrainingExample(images[0], "what color?", targets)])


def test_long_texts_are_cut_by_the_rule_and_counted(backbone, images, caplog):
    backbone.max_length = 6
    batch = backbone.collate(
        [
            TrainingExample(images[0], "what color is the dog", (("red", 1.0),)),
            TrainingExample(images[0], "what", (("one two three one two three", 1.0),)),
        ]
    )
    rows = backbone.processor.tokenizer.batch_decode(batch["input_ids"])
    assert rows[0].split() == ["[DEC]", "is", "the", "dog", "red", "[SEP]"]
    assert rows[1].split() == ["[DEC]", "one", "two", "three", "one", "two"]
    assert (backbone.cut_prompts, backbone.cut_targets) == (2, 1)
    assert "was cut" in caplog.text


def test_the_frozen_image_tower_builds_no_graph(backbone, examples):
    batch = backbone.collate(examples)
    module = backbone.training_module("sequence")
    seen = []
    backbone.model.vision_model.post_layernorm.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    backbone.model.vision_model.requires_grad_(False)
    module(**batch)["loss"].backward()
    assert not any(seen)
    seen.clear()
    backbone.model.vision_model.embeddings.class_embedding.requires_grad_(True)
    module(**batch)["loss"].backward()
    assert all(seen)
    assert backbone.model.vision_model.embeddings.class_embedding.grad.abs().sum() > 0


def test_each_image_is_encoded_once(backbone, examples):
    seen = []
    backbone.model.vision_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    backbone.training_module("sequence")(**backbone.collate(examples))
    assert seen == [3]


def test_unknown_reduction_is_refused(backbone):
    with pytest.raises(ValueError, match="loss_reduction"):
        backbone.training_module("mean")


def test_images_of_any_mode_and_size_become_pixels(backbone):
    images = [make_image(0).convert("RGBA"), make_image(1).convert("L"), make_image(2, side=7)]
    batch = backbone.collate([TrainingExample(image, "what?", (("red", 1.0),)) for image in images])
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
