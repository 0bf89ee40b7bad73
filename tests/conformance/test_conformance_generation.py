"""Generation: with the cache = without it = one full forward; no token sees a later one; padding changes nothing."""

from __future__ import annotations

import pytest
import torch

NEW = 6


@pytest.fixture
def decoder(adapted):
    """In float64: distances to the power p - 2 amplify what float32 rounds away."""
    return adapted.double().base_model.model.text_decoder


@pytest.fixture
def image(adapted, batch):
    with torch.no_grad():
        return adapted.double().base_model.model.vision_model(batch["pixel_values"].double())[0]


def generate(decoder, ids, image, **options):
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return decoder.generate(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=image,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


@torch.no_grad()
def full_forward(decoder, ids, image, **options):
    return decoder(input_ids=ids, encoder_hidden_states=image, **options).logits


def test_greedy_with_cache_without_cache_and_full_forward(decoder, image, batch):
    ids = batch["input_ids"]
    cached = generate(decoder, ids, image, use_cache=True)
    uncached = generate(decoder, ids, image, use_cache=False)
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    assert cached.past_key_values is not None
    assert uncached.past_key_values is None
    whole = full_forward(decoder, cached.sequences, image)[:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(cached.logits, 1), whole, atol=1e-5, rtol=1e-5, check_dtype=False)
    torch.testing.assert_close(torch.stack(uncached.logits, 1), whole, atol=1e-5, rtol=1e-5, check_dtype=False)


def test_beams_with_and_without_cache(decoder, image, batch):
    ids = batch["input_ids"][:, :4]
    cached = generate(decoder, ids, image, num_beams=3, use_cache=True)
    uncached = generate(decoder, ids, image, num_beams=3, use_cache=False)
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(
        cached.sequences_scores, uncached.sequences_scores, atol=1e-5, rtol=1e-5, check_dtype=False
    )
    # the score of a beam is the log-likelihood of its tokens, here from one full forward
    steps = full_forward(decoder, cached.sequences, image)[:, ids.shape[1] - 1 : -1].log_softmax(-1)
    chosen = steps.gather(2, cached.sequences[:, ids.shape[1] :, None]).squeeze(2).sum(1) / NEW
    torch.testing.assert_close(cached.sequences_scores, chosen, atol=1e-5, rtol=1e-5, check_dtype=False)


def test_no_token_sees_a_later_one(decoder, image, batch):
    ids = batch["input_ids"]
    before = full_forward(decoder, ids, image)
    for t in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 7) % 37 + 3
        after = full_forward(decoder, changed, image)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.in_turn("beams")
def test_left_padding_changes_nothing(decoder, image, batch, beams):
    singles = [batch["input_ids"][:1, :6], batch["input_ids"][1:, :3]]
    padded = torch.zeros(2, 6, dtype=torch.long)
    padded[0], padded[1, 3:] = singles[0][0], singles[1][0]
    together = generate(decoder, padded, image, attention_mask=(padded > 0).long(), num_beams=beams)
    for i, ids in enumerate(singles):
        alone = generate(decoder, ids, image[i : i + 1], num_beams=beams)
        assert together.sequences[i, 6:].tolist() == alone.sequences[0, ids.shape[1] :].tolist()
        if beams == 1:
            for step, single in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(step[i], single[0], atol=1e-5, rtol=1e-5, check_dtype=False)


def test_right_padding_changes_nothing(decoder, image, batch):
    ids = batch["input_ids"]
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    padded = full_forward(decoder, ids, image, attention_mask=mask)
    alone = full_forward(decoder, ids[1:, :4], image[1:])
    torch.testing.assert_close(padded[1:, :4], alone, atol=1e-5, rtol=1e-5, check_dtype=False)


def test_attention_maps(case, decoder, image, batch):
    out = decoder(input_ids=batch["input_ids"], encoder_hidden_states=image, output_attentions=True)
    assert [tuple(m.shape) for m in out.attentions] == [(2, 4, 6, 6)] * 2
    assert [tuple(m.shape) for m in out.cross_attentions] == [(2, 4, 6, image.shape[1])] * 2
    for maps in (*out.attentions, *out.cross_attentions):
        assert (maps >= 0).all()
        assert (maps.sum(-1) <= 1 + 1e-5).all()  # what is missing to 1 is beta, the node's own share
    assert all(maps.triu(1).abs().max() == 0 for maps in out.attentions)
