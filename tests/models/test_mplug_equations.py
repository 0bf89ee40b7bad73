"""mPLUG against its description, computed without modules (mplug_reference), in float64."""

from __future__ import annotations

import mplug_reference as reference
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mplug_official import Sizes, official_state
from tiny_mplug import END, START, model_of, pictures, talkative, texts, tiny

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
#: seeds of the decoder, and how much it likes to end, that together reach every branch of the beam search
CASES = ((0, 1.0), (1, 1.0), (2, 1.0), (7, 1.0))


@st.composite
def all_sizes(draw: st.DrawFn) -> Sizes:
    fusion_layers = draw(st.integers(0, 7))
    heads = draw(st.sampled_from([1, 2]))
    return Sizes(
        width=4 * heads,
        heads=heads,
        hidden=draw(st.integers(3, 9)),
        words=draw(st.integers(12, 20)),
        vision_width=draw(st.sampled_from([4 * heads, 6 * heads])),
        vision_hidden=draw(st.integers(3, 9)),
        vision_layers=draw(st.integers(0, 2)),
        patch=draw(st.integers(2, 3)),
        grid=draw(st.integers(1, 3)),
        text_layers=draw(st.integers(0, 2)),
        fusion_built=fusion_layers + draw(st.integers(0, 2)),
        fusion_layers=fusion_layers,
        stride=draw(st.integers(1, 7)),
        decoder_layers=draw(st.integers(1, 2)),
        clip_layers=1,
    )


def read(state, sizes, pixels, ids, mask):
    """Fused image and text states, and the mask of both."""
    image = reference.image_features(state, pixels, heads=sizes.heads)
    text = reference.text_features(state, ids, mask, heads=sizes.heads)
    image, text = reference.fusion(
        state, text, image, mask, heads=sizes.heads, run=sizes.fusion_layers, stride=sizes.stride
    )
    return image, text, torch.cat([torch.ones(image.shape[:2]).long(), mask], dim=1)


@given(
    all_sizes(),
    st.integers(0, 9),
    st.sampled_from(["sdpa", "eager"]),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.data(),
)
@settings(max_examples=15)
def test_question_answering_is_what_the_description_says(sizes, seed, attention, questions, data):
    answers = data.draw(st.lists(st.integers(2, 5), min_size=len(questions), max_size=len(questions) + 2))
    state = official_state(sizes, seed=seed)
    model = model_of(state, sizes, attention=attention)
    pixels, (ids, mask) = pictures(sizes, len(questions)), texts(sizes, questions)
    answer_ids, answer_mask = texts(sizes, answers, seed=3)
    image, text, states_mask = read(state, sizes, pixels, ids, mask)
    owners = torch.arange(len(answers)).clamp(max=len(questions) - 1)
    logits = reference.decoder_logits(
        state, answer_ids, torch.cat([image, text], dim=1)[owners], states_mask[owners], heads=sizes.heads
    )
    losses = reference.sequence_losses(logits, answer_ids, answer_mask)
    weights = torch.linspace(0.3, 1.0, len(answers), dtype=torch.float64)

    torch.testing.assert_close(
        model.encode_images(pixels), reference.image_features(state, pixels, heads=sizes.heads), **TOLERANCE
    )
    given_to_model = {
        "pixel_values": pixels,
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": answer_ids,
        "decoder_attention_mask": answer_mask,
        "labels": answer_ids.masked_fill(answer_mask == 0, -100),
        "answer_counts": owners.bincount(minlength=len(questions)),
    }
    each = model(**given_to_model, reduction="none")
    torch.testing.assert_close(each.image_states, image, **TOLERANCE)
    torch.testing.assert_close(each.text_states, text, **TOLERANCE)  # at padding too
    torch.testing.assert_close(each.logits[answer_mask.bool()], logits[answer_mask.bool()], **TOLERANCE)
    torch.testing.assert_close(each.loss, losses, **TOLERANCE)
    total = model(**given_to_model, answer_weights=weights).loss
    torch.testing.assert_close(total, reference.vqa_loss(losses, weights, len(questions)), **TOLERANCE)


@given(all_sizes(), st.integers(0, 9), st.lists(st.integers(2, 6), min_size=1, max_size=3))
@settings(max_examples=6)
def test_captioning_reads_the_image_alone(sizes, seed, captions):
    state = official_state(sizes, seed=seed)
    model = model_of(state, sizes, "caption")
    pixels, (ids, mask) = pictures(sizes, len(captions)), texts(sizes, captions)
    image = reference.image_features(state, pixels, heads=sizes.heads)
    logits = reference.decoder_logits(state, ids, image, None, heads=sizes.heads)
    losses = reference.sequence_losses(logits, ids, mask)
    labels = ids.masked_fill(mask == 0, -100)
    outputs = model(pixels, labels=labels)  # the padding is on the right, where no token sees it
    torch.testing.assert_close(outputs.logits[mask.bool()], logits[mask.bool()], **TOLERANCE)
    torch.testing.assert_close(outputs.loss, reference.caption_loss(losses, mask), **TOLERANCE)
    torch.testing.assert_close(model(pixels, ids, mask, labels, reduction="none").loss, losses, **TOLERANCE)


@pytest.mark.parametrize("cached", [True, False])
def test_the_official_search_finds_what_the_description_says(cached):
    """Ids exactly, scores to rounding, of all hypotheses; the cases reach every branch of the search."""
    _, state, sizes = tiny(fusion_layers=1, fusion_built=1, words=16, vision_layers=1, text_layers=0, decoder_layers=1)
    early = late = extended = inside = 0
    for seed, ending in CASES:
        spoken = talkative(state, seed, ending=ending)
        model = model_of(spoken, sizes)
        pixels, (ids, mask) = pictures(sizes, 2, seed), texts(sizes, [4, 2], seed)
        limits = {"length_penalty": 0.6 + 0.2 * (seed % 2), "min_new_tokens": seed % 3, "max_new_tokens": 5}
        found = model.generate(
            pixels, ids, mask, search="official", num_beams=4, use_cache=cached, return_dict_in_generate=True, **limits
        )
        image, text, states_mask = read(spoken, sizes, pixels, ids, mask)
        states = torch.cat([image, text], dim=1)
        for row in range(2):
            wanted = reference.beam_search(
                spoken, states[row : row + 1], states_mask[row : row + 1], heads=sizes.heads, prompt=[START], end=END,
                beams=4, alpha=limits["length_penalty"], least=seed % 3, most=5,
            )  # fmt: skip
            assert [ids for _, ids in found.hypotheses[row]] == [ids for _, ids in wanted]
            scores = [[score for score, _ in hypotheses] for hypotheses in (found.hypotheses[row], wanted)]
            torch.testing.assert_close(*scores, **TOLERANCE)
            best = wanted[0][1]
            assert found.sequences[row].tolist() == best + [0] * (found.sequences.shape[1] - len(best))
            torch.testing.assert_close(float(found.scores[row]), wanted[0][0], **TOLERANCE)
            early += len(best) < 6  # the best beam ended
            late += len(best) == 6  # none of the best did
            extended += len(wanted) > 4  # another beam ended before, was stored
            inside += any(END in ids[1:-1] for _, ids in wanted)  # and went on
    assert min(early, late, extended, inside) > 0


def test_the_official_search_continues_prompts_of_different_length():
    _, state, sizes = tiny("caption", words=16)
    spoken = talkative(state, 1, ending=1.0)
    model = model_of(spoken, sizes, "caption")
    pixels = pictures(sizes, 2)
    long, short = [START, 5, 6, 7], [START, 9]
    ids = torch.tensor([long, [0, 0, *short]])
    found = model.generate(
        pixels, ids, (ids != 0).long(), search="official", num_beams=3, min_new_tokens=2, max_new_tokens=5,
        return_dict_in_generate=True,
    )  # fmt: skip
    image = reference.image_features(spoken, pixels, heads=sizes.heads)
    for row, prompt in enumerate((long, short)):
        wanted = reference.beam_search(
            spoken, image[row : row + 1], None, heads=sizes.heads, prompt=prompt, end=END, beams=3, alpha=0.6, least=2,
            most=5,
        )  # fmt: skip
        assert [ids for _, ids in found.hypotheses[row]] == [ids for _, ids in wanted]


@given(st.integers(1, 9), st.integers(0, 12))
def test_which_layers_are_connected(stride, layers):
    from padapter.models.mplug import MPlugTextConfig

    wanted = [r for r in range(layers) if r > 0 and r % stride == 0]
    assert MPlugTextConfig(stride_layer=stride, fusion_layers=layers).connected_layers == wanted


def test_the_published_models():
    from padapter.models.mplug import MPlugTextConfig

    assert MPlugTextConfig().connected_layers == [3]  # layer 9 of the file
    assert MPlugTextConfig(stride_layer=6).connected_layers == []


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_positions_are_resized_bilinearly(old, new, width):
    from padapter.models.mplug.positions import resize_positions

    assume(old != new)
    table = torch.randn(1 + old * old, width, dtype=torch.float64)
    resized = resize_positions(table, new)
    assert torch.equal(resized[0], table[0])
    grid = table[1:].view(old, old, width)

    def weights(i: int) -> list[tuple[int, float]]:
        place = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = min(int(place), old - 1)
        return [(low, 1 - (place - low)), (min(low + 1, old - 1), place - low)]

    for y in range(new):
        for x in range(new):
            wanted = sum(a * b * grid[i, j] for i, a in weights(y) for j, b in weights(x))
            torch.testing.assert_close(resized[1 + y * new + x], wanted, rtol=1e-12, atol=1e-12)
