from __future__ import annotations

import math

import pytest
import torch

from padapter.backbones import ranking
from padapter.errors import UserError

PROMPTS = ["what color is the dog?", "how many cats are there in the picture?", "", "what is it"]
CANDIDATES = ["red", "yes", "a large cat", "red dogs on the left", "blue", "zebra"]


def naive_scores(backbone, images, prompts, candidates):
    """One unpadded full forward per (row, candidate)."""
    tokenizer, decoder = backbone.processor.tokenizer, backbone.model.text_decoder
    rows = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        states = backbone.model.vision_model(pixel_values=pixels).last_hidden_state
        head = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        scores = []
        for candidate in candidates:
            tail = [*tokenizer(candidate, add_special_tokens=False).input_ids, backbone.end_id]
            logits = decoder(input_ids=torch.tensor([head + tail]), encoder_hidden_states=states).logits[0]
            log_probs = logits.log_softmax(-1)
            scores.append(sum(float(log_probs[len(head) - 1 + i, token]) for i, token in enumerate(tail)))
        rows.append(scores)
    return torch.tensor(rows)


@pytest.mark.parametrize("chunk", [64, 4])
def test_scores_are_those_of_a_full_forward_per_candidate(backbone, images, monkeypatch, chunk):
    monkeypatch.setattr("padapter.backbones.blip.CHUNK", chunk)
    scores = torch.tensor(backbone.rank(images, PROMPTS, CANDIDATES))
    with torch.no_grad():
        torch.testing.assert_close(scores, naive_scores(backbone, images, PROMPTS, CANDIDATES), atol=2e-5, rtol=1e-5)
    assert scores.std() > 0.1


def test_rows_do_not_depend_on_their_batch(backbone, images):
    batch = torch.tensor(backbone.rank(images, PROMPTS, CANDIDATES))
    singles = torch.tensor([backbone.rank([i], [p], CANDIDATES)[0] for i, p in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(batch, singles, atol=2e-5, rtol=1e-5)


def test_probabilities_of_all_one_word_texts_sum_to_less_than_one(backbone, images):
    words = [w for w in backbone.processor.tokenizer.get_vocab() if w.isalpha()]
    (scores,) = backbone.rank(images[:1], PROMPTS[:1], words)
    assert 0 < sum(map(math.exp, scores)) < 1


def test_length_normalised_scores(backbone, images):
    plain = torch.tensor(backbone.rank(images, PROMPTS, CANDIDATES))
    normalised = torch.tensor(backbone.rank(images, PROMPTS, CANDIDATES, length_normalized=True))
    tokens = torch.tensor([2, 2, 4, 7, 2, 2])  # words (dogs is two pieces) and the end token
    assert [
        len(backbone.processor.tokenizer(c, add_special_tokens=False).input_ids) + 1 for c in CANDIDATES
    ] == tokens.tolist()
    torch.testing.assert_close(normalised, plain / tokens)


def test_k_keeps_the_candidates_with_the_likeliest_first_token(backbone, images):
    full = torch.tensor(backbone.rank(images, PROMPTS, CANDIDATES))
    chosen = torch.tensor(backbone.rank(images, PROMPTS, CANDIDATES, k=3))
    kept = chosen.isfinite()
    assert kept.sum(1).tolist() == [3, 3, 3, 3]
    torch.testing.assert_close(chosen[kept], full[kept], atol=2e-5, rtol=1e-5)
    tokenizer = backbone.processor.tokenizer
    for row, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        ids = torch.tensor([[backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            states = backbone.model.vision_model(pixel_values=pixels).last_hidden_state
            first = backbone.model.text_decoder(input_ids=ids, encoder_hidden_states=states).logits[0, -1]
        tokens = [tokenizer(c, add_special_tokens=False).input_ids[0] for c in CANDIDATES]
        worst_kept = min(first[t] for t, keep in zip(tokens, kept[row], strict=True) if keep)
        best_dropped = max(first[t] for t, keep in zip(tokens, kept[row], strict=True) if not keep)
        assert worst_kept >= best_dropped


def test_among_equal_first_tokens_the_earlier_candidate_is_kept():
    first = torch.tensor([-1.0, -0.5, -1.0, -1.0])
    assert ranking.first_choices(first, 2).tolist() == [0, 1]
    assert ranking.first_choices(first, None).tolist() == [0, 1, 2, 3]
    assert ranking.first_choices(first, 9).tolist() == [0, 1, 2, 3]


def test_image_and_prompt_are_read_once(backbone, images):
    lengths = []
    backbone.model.text_decoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    backbone.rank(images[:2], ["what is it", "what is"], ["red", "yes", "a cat"])
    assert lengths == [(2, 4), (3, 2), (3, 2)]


@pytest.mark.parametrize("candidates", [[], ["red", ""], ["  "]])
def test_nothing_to_rank_is_refused(backbone, images, candidates):
    with pytest.raises(UserError, match="candidate"):
        backbone.rank(images, PROMPTS, candidates)


def test_bad_k_and_too_long_candidates_are_refused(backbone, images):
    with pytest.raises(UserError, match="k must be"):
        backbone.rank(images, PROMPTS, ["red"], k=0)
    with pytest.raises(UserError, match="no room for a prompt"):
        backbone.rank(images, PROMPTS, ["red " * 40])
