from __future__ import annotations

import pytest
import torch

from padapter.errors import UserError

PROMPTS = ["what color is the dog?", "how many cats are there in the picture?", "", "what is it"]


def greedy_by_hand(backbone, image, prompt, steps):
    """Argmax of a full forward without cache, one row, no padding."""
    tokenizer = backbone.processor.tokenizer
    pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    states = backbone.model.vision_model(pixel_values=pixels).last_hidden_state
    ids = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
    start = len(ids)
    with torch.no_grad():
        for _ in range(steps):
            logits = backbone.model.text_decoder(input_ids=torch.tensor([ids]), encoder_hidden_states=states).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == backbone.end_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_greedy_is_the_argmax_of_the_full_forward(backbone, images):
    texts = backbone.generate(images, PROMPTS, max_new_tokens=8)
    assert texts == [greedy_by_hand(backbone, image, prompt, 8) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert len(set(texts)) == 4  # the model does look at its input


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_gives_what_single_rows_give(backbone, images, beams):
    options = {"num_beams": beams, "max_new_tokens": 8, "min_new_tokens": 2, "length_penalty": 0.5}
    batch = backbone.generate(images, PROMPTS, **options)
    singles = [backbone.generate([i], [p], **options)[0] for i, p in zip(images, PROMPTS, strict=True)]
    assert batch == singles
    assert all(batch)


def test_a_beam_as_wide_as_the_vocabulary_is_exhaustive_search(backbone, images):
    decoder, tokenizer = backbone.model.text_decoder, backbone.processor.tokenizer
    words = decoder.config.vocab_size
    found = backbone.generate(images, PROMPTS, num_beams=words, max_new_tokens=2, min_new_tokens=2)
    for image, prompt, text in zip(images, PROMPTS, found, strict=True):
        pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        head = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        ids = torch.tensor([[*head, first] for first in range(words)])
        with torch.no_grad():
            states = backbone.model.vision_model(pixel_values=pixels).last_hidden_state.expand(words, -1, -1)
            log_probs = decoder(input_ids=ids, encoder_hidden_states=states).logits[:, -2:].log_softmax(-1)
        pairs = log_probs[0, 0][:, None] + log_probs[:, 1]  # (first, second)
        pairs[backbone.end_id, :] = pairs[:, backbone.end_id] = float("-inf")
        best = divmod(int(pairs.argmax()), words)
        assert text == tokenizer.decode(best, skip_special_tokens=True)
    assert found != backbone.generate(images, PROMPTS, max_new_tokens=2, min_new_tokens=2)


def test_only_new_text_and_no_special_tokens(backbone, images):
    for text in backbone.generate(images, PROMPTS, max_new_tokens=12, num_beams=2):
        assert "[" not in text
        assert "what color is the dog" not in text


def test_min_and_max_new_tokens(backbone, images):
    tokenizer = backbone.processor.tokenizer
    for text in backbone.generate(images, PROMPTS, max_new_tokens=5, min_new_tokens=5):
        assert len(tokenizer(text, add_special_tokens=False).input_ids) <= 5
    decoder = backbone.model.text_decoder
    with torch.no_grad():  # make the end token the favourite: without a minimum nothing is said
        decoder.cls.predictions.bias[backbone.end_id] = 1000.0
    assert backbone.generate(images, PROMPTS, max_new_tokens=5) == ["", "", "", ""]
    assert all(backbone.generate(images, PROMPTS, max_new_tokens=5, min_new_tokens=2))


def test_one_image_object_for_many_questions_is_encoded_once(backbone, images):
    seen = []
    backbone.model.vision_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    shared = [images[0], images[1], images[0], images[0]]
    texts = backbone.generate(shared, PROMPTS, num_beams=2, max_new_tokens=4)
    assert seen == [2]
    assert texts[1] == backbone.generate([images[1]], [PROMPTS[1]], num_beams=2, max_new_tokens=4)[0]


def test_beams_share_what_the_decoder_reads_of_their_image(backbone, images):
    attention = backbone.model.text_decoder.bert.encoder.layer[1].crossattention.self
    read = []
    for part in (attention.key, attention.value):
        part.register_forward_hook(lambda _m, args, _out: read.append(len(args[0])))
    shared = [images[0], images[1], images[0], images[0]]
    texts = backbone.generate(shared, PROMPTS, num_beams=3, max_new_tokens=6)
    assert read == [2, 2]
    alone = [
        backbone.generate([i], [p], num_beams=3, max_new_tokens=6)[0] for i, p in zip(shared, PROMPTS, strict=True)
    ]
    assert texts == alone


def test_modes_and_gradients_are_restored(backbone, images):
    backbone.model.train()
    backbone.model.vision_model.eval()
    before = [module.training for module in backbone.model.modules()]
    backbone.generate(images, PROMPTS, max_new_tokens=2)
    backbone.rank(images, PROMPTS, ["red"])
    assert [module.training for module in backbone.model.modules()] == before
    assert torch.is_grad_enabled()


def test_dropout_is_off_while_generating(images):
    from tiny_blip import make_backbone

    backbone = make_backbone(dropout=0.5)
    backbone.model.train()
    runs = {tuple(backbone.generate(images, PROMPTS, max_new_tokens=6)) for _ in range(3)}
    assert len(runs) == 1


def test_a_long_prompt_is_cut_on_the_left_and_counted(backbone, images):
    backbone.max_length = 8
    long = backbone.generate(images[:1], ["what color is the dog on the left"], max_new_tokens=4)
    assert backbone.cut_prompts == 1
    assert long == backbone.generate(images[:1], ["on the left"], max_new_tokens=4)
    assert backbone.cut_prompts == 1


def test_no_room_for_a_prompt(backbone, images):
    with pytest.raises(UserError, match="no room for a prompt"):
        backbone.generate(images, PROMPTS, max_new_tokens=39)


def test_lists_of_different_length_are_refused(backbone, images):
    with pytest.raises(ValueError, match="4 images but 1 prompts"):
        backbone.generate(images, ["what?"])


def test_an_empty_batch_is_an_empty_list(backbone):
    assert backbone.generate([], []) == []
    assert backbone.rank([], [], ["red"]) == []
