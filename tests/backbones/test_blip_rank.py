from __future__ import annotations

import math

import pytest
import torch

from padapter.backbones import ranking
from padapter.errors import UserError
from padapter.methods import get_method

PROMPTS = ["what color is the dog?", "how many cats are there in the picture?", "", "what is it"]
CANDIDATES = ["red", "yes", "a large cat", "red dogs on the left", "blue", "zebra"]
#: Beginnings of each other, in no order, and one twice.
RELATED = [
    "a large cat",
    "red dogs on the left",
    "a",
    "red dogs",
    "a large dog",
    "red",
    "yes",
    "a large cat",
    "a large",
]
METHODS = {
    "none": None,
    "p-adapter": {"degree": "row", "per_head": "true", "p": "1.4", "mu": "0.3"},
    "p-adapter:steps": {"steps": "2", "p": "2.6"},
    # Eight features per head: of one, which the default leaves here, distances may nearly cancel.
    "p-adapter:bottleneck": {"form": "bottleneck", "reduction_factor": "1"},
    "adapter": {},
    "lora": {},
    "prefix": {"num_virtual_tokens": "3"},
}


def naive_scores(backbone, images, prompts, candidates):
    """One unpadded full forward per (row, candidate)."""
    tokenizer, decoder = backbone.processor.tokenizer, backbone.base_model.text_decoder
    rows = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        states = backbone.base_model.vision_model(pixel_values=pixels).last_hidden_state
        head = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        scores = []
        for candidate in candidates:
            tail = [*tokenizer(candidate, add_special_tokens=False).input_ids, backbone.end_id]
            logits = decoder(input_ids=torch.tensor([head + tail]), encoder_hidden_states=states).logits[0]
            log_probs = logits.log_softmax(-1)
            scores.append(sum(float(log_probs[len(head) - 1 + i, token]) for i, token in enumerate(tail)))
        rows.append(scores)
    return torch.tensor(rows)


def adapt(backbone, method):
    """Apply a method and move all that it trains, so that it changes every output."""
    if METHODS[method] is not None:
        chosen = get_method(method.partition(":")[0])
        chosen.apply(backbone, chosen.parse(METHODS[method]))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in backbone.model.named_parameters():
                if parameter.requires_grad and "_p." not in name and "_mu." not in name:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.mark.parametrize("sizes", [(512, 128), (9, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("candidates", [CANDIDATES, RELATED], ids=["unlike", "related"])
def test_scores_are_those_of_a_full_forward_per_candidate(backbone, images, monkeypatch, sizes, candidates):
    monkeypatch.setattr(ranking, "PASS_TOKENS", sizes[0])
    monkeypatch.setattr(ranking, "TREE_TOKENS", sizes[1])
    scores = torch.tensor(backbone.rank(images, PROMPTS, candidates))
    with torch.no_grad():
        torch.testing.assert_close(scores, naive_scores(backbone, images, PROMPTS, candidates), atol=2e-5, rtol=1e-5)
    assert scores.std() > 0.1


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_scores_with_every_kind_of_adapter(backbone, images, monkeypatch, method):
    monkeypatch.setattr(ranking, "TREE_TOKENS", 8)
    before = torch.tensor(backbone.rank(images, PROMPTS, RELATED))
    adapt(backbone, method)
    scores = torch.tensor(backbone.rank(images, PROMPTS, RELATED))
    assert (scores - before).abs().max() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(scores, naive_scores(backbone, images, PROMPTS, RELATED), atol=1e-4, rtol=2e-5)


@pytest.mark.parametrize("method", ["none", "p-adapter"])
def test_scores_do_not_depend_on_the_order_of_candidates(backbone, images, method):
    adapt(backbone, method)
    order = torch.randperm(len(RELATED), generator=torch.Generator().manual_seed(1)).tolist()
    for k in (None, 3):
        scores = torch.tensor(backbone.rank(images, PROMPTS, RELATED))
        shuffled = torch.tensor(backbone.rank(images, PROMPTS, [RELATED[i] for i in order], k=k))
        kept = shuffled.isfinite()
        assert kept.sum() == (len(PROMPTS) * 3 if k else kept.numel())
        torch.testing.assert_close(shuffled[kept], scores[:, order][kept], atol=1e-4, rtol=2e-5)


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


def read_by(backbone):
    """The shape of every input of the decoder, and how often and for how many rows images were read."""
    inputs, crossed, seen = [], [], []
    decoder = backbone.base_model.text_decoder
    decoder.register_forward_pre_hook(lambda _m, _a, kw: inputs.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    for part in ("key", "value"):
        module = getattr(decoder.bert.encoder.layer[1].crossattention.self, part)
        module.register_forward_hook(lambda _m, args, _out: crossed.append(len(args[0])))
    backbone.base_model.vision_model.register_forward_pre_hook(
        lambda _m, _a, kw: seen.append(len(kw["pixel_values"])), with_kwargs=True
    )
    return inputs, crossed, seen


@pytest.mark.parametrize("method", ["none", "p-adapter"])
def test_images_prompts_and_beginnings_are_read_once(backbone, images, method):
    inputs, crossed, seen = read_by(adapt(backbone, method))
    asked = [images[0], images[1], images[0]]
    backbone.rank(asked, ["what is it", "what is", "what is"], RELATED)
    # The prompts; all candidates: a, a large, ... cat, ... dog, red, ... dog, ... ##s, ... on, ... the, ... left, yes.
    assert inputs == [(3, 4), (3, 11)]
    assert crossed == [2, 2]
    assert seen == [2]


def test_chosen_candidates_are_all_that_is_read(backbone, images):
    inputs, *_ = read_by(backbone)
    backbone.rank(images, PROMPTS, RELATED, k=1)
    assert inputs[1][1] <= 6


def test_passes_hold_so_many_tokens(backbone, images, monkeypatch):
    monkeypatch.setattr(ranking, "TREE_TOKENS", 7)
    monkeypatch.setattr(ranking, "PASS_TOKENS", 20)
    inputs, *_ = read_by(backbone)
    backbone.rank(images, PROMPTS, RELATED)
    assert inputs[1:] == [(2, 7)] * 4  # the second tree is "red dogs on the left" and "yes"


def test_candidates_are_tokenised_once(backbone, images, monkeypatch):
    first = backbone.rank(images, PROMPTS, CANDIDATES)
    tokenised = []
    original = type(backbone)._ids
    monkeypatch.setattr(type(backbone), "_ids", lambda self, text: tokenised.append(text) or original(self, text))
    assert backbone.rank(images, PROMPTS, list(CANDIDATES)) == first
    assert tokenised == PROMPTS
    backbone.rank(images, PROMPTS, ["yes"])
    assert tokenised == [*PROMPTS, "yes", *PROMPTS]
    assert len(backbone.rank(images, PROMPTS, CANDIDATES)[0]) == len(CANDIDATES)


def test_trees_hold_every_candidate_once_and_are_not_too_large(monkeypatch):
    monkeypatch.setattr(ranking, "TREE_TOKENS", 5)
    texts = [[3, 1], [2], [3, 1, 4], [3], [9, 9, 9, 9, 9, 9], [2], [3, 2]]
    trees = ranking.plant(texts, range(7), end=0)
    assert sorted(index for tree in trees for index in tree.candidates) == list(range(7))
    assert [len(tree.tokens) for tree in trees] == [5, 6]
    for tree in trees:
        for row, index in enumerate(tree.candidates):
            path = tree.nodes[row, : len(texts[index])]
            assert tree.tokens[path].tolist() == texts[index]
            assert tree.depths[path].tolist() == list(range(len(path)))
            assert tree.labels[row, : len(path)].tolist() == [*texts[index][1:], 0]
            assert (tree.labels[row, len(path) :] == -100).all()
            assert tree.paths[path[-1]].nonzero().flatten().tolist() == sorted(path.tolist())


@pytest.mark.parametrize("candidates", [[], ["red", ""], ["  "]])
def test_nothing_to_rank_is_refused(backbone, images, candidates):
    with pytest.raises(UserError, match="candidate"):
        backbone.rank(images, PROMPTS, candidates)


def test_bad_k_and_too_long_candidates_are_refused(backbone, images):
    with pytest.raises(UserError, match="k must be"):
        backbone.rank(images, PROMPTS, ["red"], k=0)
    with pytest.raises(UserError, match="no room for a prompt"):
        backbone.rank(images, PROMPTS, ["red " * 40])
