"""The rules of relevance against their equations in loops, with finite differences for gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from plain_loops import bar, bar_of, eye, of_steps, plus, times, transposed
from tiny_blip import make_backbone, make_image

from padapter.errors import UserError
from padapter.explain import Relevance, explain_answer
from padapter.explain.reading import read
from padapter.explain.rules import distributed, gradient_weighted, normalised
from padapter.methods import get_method
from padapter.tuners import PAdapterConfig

WORDS, PATCHES, HEADS, WIDTH = 4, 5, 2, 3


def rows_of_ones(rng, *shape):
    weights = rng.random(shape)
    return weights / weights.sum(-1, keepdims=True)


class Toy:
    """Two layers of a text that attends to itself and to a picture, behind one layer of the picture's own.

    Attention matrices are given, not computed: so the output is a function of each of their entries alone. The first
    cross-attention leaves tokens a share of their own features.
    """

    names = ("image", "self 1", "cross 1", "self 2", "cross 2")

    def __init__(self):
        rng = np.random.default_rng(3)
        self.words = rng.normal(size=(WORDS, WIDTH))
        self.patches = rng.normal(size=(PATCHES, WIDTH))
        self.values = {name: rng.normal(size=(HEADS, WIDTH, WIDTH)) for name in self.names}
        self.last = rng.normal(size=WIDTH)
        sizes = {"image": (PATCHES, PATCHES), "self 1": (WORDS, WORDS), "self 2": (WORDS, WORDS)}
        self.weights = {n: rows_of_ones(rng, HEADS, *sizes.get(n, (WORDS, PATCHES))) for n in self.names}
        for name in ("self 1", "self 2"):  # a causal text
            lower = np.tril(self.weights[name])
            self.weights[name] = lower / lower.sum(-1, keepdims=True)
        self.weights["own"] = 0.4 * rng.random((HEADS, WORDS))

    def target(self, weights):
        """The output for the last word; operations that numpy and torch share."""

        def attended(name, source):
            return sum(
                weights[name][h] @ source @ values for h, values in enumerate(self.given(self.values[name], source))
            )

        image, text = (self.given(x, weights["image"]) for x in (self.patches, self.words))
        image = image + attended("image", image)
        text = text + attended("self 1", text)
        own = sum(
            weights["own"][h][:, None] * (text @ values)
            for h, values in enumerate(self.given(self.values["cross 1"], text))
        )
        text = text + attended("cross 1", image) + own
        text = text + 0.3 * text**3  # something that is not linear
        text = text + attended("self 2", text)
        text = text + attended("cross 2", image)
        return (text[-1] @ self.given(self.last, text)) ** 2

    @staticmethod
    def given(array, like):
        return torch.from_numpy(array) if isinstance(like, torch.Tensor) else array


def finite_differences(toy, step=1e-5):
    gradients = {}
    for name, weights in toy.weights.items():
        gradient = np.zeros_like(weights)
        for place in np.ndindex(weights.shape):
            pair = []
            for sign in (1, -1):
                changed = {**toy.weights, name: weights.copy()}
                changed[name][place] += sign * step
                pair.append(toy.target(changed))
            gradient[place] = (pair[0] - pair[1]) / (2 * step)
        gradients[name] = gradient
    return gradients


def oracle(weights, gradients, layers, words, patches, own=None):
    """R of the words to words and patches, by equations (6), (7), (10), with lists and loops.

    ``layers`` are (name, kind), kind one of "image", "self", "cross"; ``own`` has (shares, gradients), each (H, N), by
    name: a token's own share is attention to itself.
    """
    r_ii, r_tt, r_ti = eye(patches), eye(words), [[0.0] * patches for _ in range(words)]
    for name, kind in layers:
        a, n = bar(weights[name], gradients[name]), len(weights[name][0])
        shares, slopes = (own or {}).get(name, (np.zeros((1, n)), np.zeros((1, n))))
        share = bar(shares[..., None], slopes[..., None])
        itself = [[share[i][0] * float(i == j) for j in range(n)] for i in range(n)]
        if kind == "image":
            r_ii = plus(r_ii, times(plus(a, itself), r_ii))
        elif kind == "self":
            a = plus(a, itself)
            r_tt, r_ti = plus(r_tt, times(a, r_tt)), plus(r_ti, times(a, r_ti))
        else:
            new = plus(r_ti, times(transposed(bar_of(r_tt)), times(a, bar_of(r_ii))))
            r_tt, r_ti = plus(r_tt, times(itself, r_tt)), plus(new, times(itself, r_ti))
    return np.array(r_tt), np.array(r_ti)


def test_two_layers_of_self_and_cross_attention():
    toy = Toy()
    layers = [("image", "image"), ("self 1", "self"), ("cross 1", "cross"), ("self 2", "self"), ("cross 2", "cross")]
    slopes = finite_differences(toy)
    own = {"cross 1": (toy.weights["own"], slopes["own"])}
    expected = oracle(toy.weights, slopes, layers, WORDS, PATCHES, own)

    weights = {name: torch.from_numpy(array).requires_grad_() for name, array in toy.weights.items()}
    gradients = torch.autograd.grad(toy.target(weights), list(weights.values()))
    bars = {
        name: gradient_weighted(toy.weights[name][..., None], gradient.numpy()[..., None])[:, 0]
        if name == "own"
        else gradient_weighted(toy.weights[name], gradient.numpy())
        for name, gradient in zip(weights, gradients, strict=True)
    }
    relevance = Relevance({"text": WORDS, "image": PATCHES})
    relevance.attend_self("image", bars["image"])
    relevance.attend_self("text", bars["self 1"])
    relevance.attend_cross("text", "image", bars["cross 1"], bars["own"])
    relevance.attend_self("text", bars["self 2"])
    relevance.attend_cross("text", "image", bars["cross 2"])
    np.testing.assert_allclose(relevance.of("text", "text"), expected[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(relevance.of("text", "image"), expected[1], rtol=1e-6, atol=1e-8)
    assert relevance.of("text", "image")[-1].min() > 0


def test_own_shares_are_a_diagonal_of_self_attention():
    rng = np.random.default_rng(0)
    attention, own, cross = rng.random((3, 3)), rng.random(3), rng.random((3, 2))
    apart, together = (Relevance({"text": 3, "image": 2}) for _ in range(2))
    for relevance, first in ((apart, (attention, own)), (together, (attention + np.diag(own), None))):
        relevance.attend_cross("text", "image", cross)
        relevance.attend_self("text", *first)
    for q in ("text", "image"):
        np.testing.assert_allclose(apart.of("text", q), together.of("text", q))


def test_the_start_is_the_identity_and_no_gradient_no_relevance():
    relevance = Relevance({"text": 3, "image": 2})
    np.testing.assert_array_equal(relevance.of("text", "text"), np.eye(3))
    np.testing.assert_array_equal(relevance.of("text", "image"), np.zeros((3, 2)))
    nothing = gradient_weighted(np.full((4, 3, 3), 0.3), np.zeros((4, 3, 3)))
    relevance.attend_self("text", nothing)
    relevance.attend_cross("text", "image", np.zeros((3, 2)), np.zeros(3))
    np.testing.assert_array_equal(relevance.of("text", "text"), np.eye(3))
    np.testing.assert_array_equal(relevance.of("text", "image"), np.zeros((3, 2)))


def test_what_raises_the_target_counts_and_what_lowers_it_does_not():
    weights = np.full((1, 1, 3), 1 / 3)
    found = gradient_weighted(weights, np.array([[[3.0, -3.0, 0.0]]]))
    np.testing.assert_allclose(found, [[1.0, 0.0, 0.0]])


def test_rows_keep_their_sums():
    rng = np.random.default_rng(1)
    relevance = np.eye(4) + rng.random((4, 4))
    relevance[2] = np.eye(4)[2]  # a token that has taken nothing
    found = normalised(relevance)
    np.testing.assert_allclose(found.sum(axis=1), [2, 2, 1, 2])
    assert found.min() >= 0
    np.testing.assert_array_equal(found[2], np.eye(4)[2])
    np.testing.assert_array_equal(distributed(np.zeros((2, 3))), np.zeros((2, 3)))


def test_a_spliced_picture_receives_all_of_its_places_relevance():
    """With nothing taken inside the image encoder, patches share what their token has, no more and no less."""
    rng = np.random.default_rng(2)
    relevance = Relevance({"text": 6, "image": 9})
    attention = rng.random((6, 6))
    relevance.attend_self("text", attention)
    places, mixing = np.array([1, 2]), np.zeros((2, 9))
    mixing[0, 1:5], mixing[1, 5:9] = 0.25, 0.25
    relevance.splice("text", "image", places, mixing)
    found = relevance.of("text", "image")
    np.testing.assert_allclose(found[:, 1:5].sum(axis=1), relevance.of("text", "text")[:, 1])
    np.testing.assert_allclose(found.sum(axis=1), relevance.of("text", "text")[:, places].sum(axis=1))
    np.testing.assert_array_equal(found[:, 0], 0)


def test_queries_hand_on_what_they_read():
    relevance = Relevance({"text": 3, "queries": 2, "image": 4})
    rng = np.random.default_rng(4)
    relevance.attend_cross("queries", "image", rng.random((2, 4)))
    relevance.attend_self("queries", rng.random((2, 2)))
    relevance.attend_self("text", rng.random((3, 3)))
    taken = relevance.of("text", "text")[:, [0, 1]]
    relevance.splice("text", "queries", np.array([0, 1]), np.eye(2))
    expected = taken @ distributed(relevance.of("queries", "image"))
    np.testing.assert_allclose(relevance.of("text", "image"), expected)
    np.testing.assert_allclose(expected.sum(), taken.sum())


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


def test_a_whole_blip_against_transformers_own_attention(backbone):
    """Weights and gradients as transformers returns them, eagerly; the rules with lists and loops."""
    from padapter.architectures.blip import use_attention
    from padapter.backbones import TrainingExample

    picture, prompt, text = make_image(0, 24), "what color is the dog ?", "red"
    found = explain_answer(backbone, picture, prompt, text)
    side = found.sides[0]

    blip = backbone.base_model
    batch = backbone.collate([TrainingExample(picture, prompt, ((text, 1.0),))])
    use_attention(blip, "eager")
    try:
        vision = blip.vision_model(pixel_values=batch["pixel_values"].requires_grad_(), output_attentions=True)
        out = blip.text_decoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            encoder_hidden_states=vision.last_hidden_state, output_attentions=True, use_cache=False,
        )  # fmt: skip
    finally:
        use_attention(blip, "sdpa")
    first = int((batch["labels"][0] >= 0).nonzero()[0])
    log_prob = out.logits[0, first - 1].log_softmax(-1)[batch["input_ids"][0, first]]
    named = {f"image {i}": weights for i, weights in enumerate(vision.attentions)}
    for i, pair in enumerate(zip(out.attentions, out.cross_attentions, strict=True)):
        named |= {f"self {i}": pair[0], f"cross {i}": pair[1]}
    gradients = torch.autograd.grad(log_prob, list(named.values()))
    layers = [(name, name.split()[0]) for name in named]
    weights = {name: tensor.detach()[0].double().numpy() for name, tensor in named.items()}
    grads = {name: tensor[0].double().numpy() for name, tensor in zip(named, gradients, strict=True)}
    r_tt, r_ti = oracle(weights, grads, layers, batch["input_ids"].shape[1], vision.last_hidden_state.shape[1])
    np.testing.assert_allclose(side.log_probs, [log_prob.item()], rtol=1e-4)
    assert side.tokens == ("red",)
    np.testing.assert_allclose(side.relevance[0][0].ravel(), r_ti[first - 1, 1:], rtol=2e-3, atol=1e-7)
    words = (r_tt - np.eye(len(r_tt)))[first - 1, :first]
    np.testing.assert_allclose(side.word_relevance[0], words, rtol=2e-3, atol=1e-7)
    last = side.attention[-1]
    expected = weights[layers[-1][0]][:, first - 1, 1:].reshape(last.plain[0].shape)
    np.testing.assert_allclose(last.plain[0], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["projected", "bottleneck"])
def test_calibrated_weights_and_own_shares_take_part(form):
    """All that the p-adapters of a whole model compute with, and their gradients, through the loops."""
    backbone = make_backbone()
    torch.manual_seed(0)
    options = {"where": "all", "form": form, "mu": 0.3, "init_weights": False}
    backbone.model = get_peft_model(backbone.model, PAdapterConfig(**options))
    reading = read(backbone, make_image(0, 24), "what color is the dog ?", "red cat")
    first = {"vision": "image", ("decoder", False): "self", ("decoder", True): "cross"}
    layers, weights, gradients, own = [], {}, {}, {}
    for number, record in enumerate(reading.records):
        name = str(number)
        layers.append((name, first.get(record.site.part) or first[record.site.part, record.site.cross]))
        assert len(record.steps) == (2 if form == "bottleneck" else 1)
        weights[name], gradients[name], own[name] = of_steps(record.steps, reading.log_probs[1])
    assert all(pair[0].max() > 0 for pair in own.values())
    tokens = reading.records[0].plain.weights.shape[-1]
    r_tt, r_ti = oracle(weights, gradients, layers, len(reading.ids), tokens, own)
    relevance = reading.relevance(1)
    np.testing.assert_allclose(relevance.of("text", "text"), r_tt, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(relevance.of("text", "image 0"), r_ti, rtol=1e-5, atol=1e-9)
    without = oracle(weights, gradients, layers, len(reading.ids), tokens)
    assert np.abs(without[1] - r_ti).max() > 1e-3 * r_ti.max()


def test_other_answers_count_by_their_share_in_the_probability(backbone):
    """The last map is that of ``-log sum p(other)``: with one other, that of ``-log p`` of each of its tokens."""
    picture, prompt = make_image(0, 24), "is it right ?"
    found = explain_answer(backbone, picture, prompt, "yes", others=["no", "yes"]).sides[0]
    assert found.tokens == ("yes", "not no")
    reading = read(backbone, picture, prompt, "no")
    expected = [reading.relevance(number, -1.0).of("text", "image 0")[reading.row(number), 1:] for number in (0, 1)]
    np.testing.assert_allclose(found.relevance[0][1].ravel(), np.sum(expected, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.log_probs[1], -float(reading.log_probs.detach().sum()), rtol=1e-6)
    three = explain_answer(backbone, picture, prompt, "yes", others=["no", "red"]).sides[0]
    logits = [backbone.rank([picture], [prompt], ["no", "red"])[0]]
    np.testing.assert_allclose(three.log_probs[1], -np.logaddexp.reduce(logits[0]), rtol=1e-4)


def test_one_token_alone(backbone):
    picture, prompt = make_image(0, 24), "what is it ?"
    both = explain_answer(backbone, picture, prompt, "red dog").sides[0]
    for token, number in ((2, 1), ("dog", 1), ("1", 0)):
        one = explain_answer(backbone, picture, prompt, "red dog", token=token, layers=[1]).sides[0]
        assert one.tokens == (both.tokens[number],)
        np.testing.assert_allclose(one.relevance[0][0], both.relevance[0][number], rtol=1e-6)
        assert {maps.layer for maps in one.attention} == {1}
    with pytest.raises(UserError, match=r"--token: 'cat' is no token of 'red dog'.*1 'red', 2 'dog'"):
        explain_answer(backbone, picture, prompt, "red dog", token="cat")


def test_the_virtual_tokens_of_a_prefix_take_relevance_and_hand_none_on():
    backbone = make_backbone()
    picture, prompt = make_image(0, 24), "what is it ?"
    method = get_method("prefix")
    method.apply(backbone, method.parse({"num_virtual_tokens": "3"}))
    reading = read(backbone, picture, prompt, "red")
    own = [record for record in reading.records if record.site.part == "decoder" and not record.site.cross]
    longest = max(record.plain.weights.shape[3] for record in own)
    assert longest == len(reading.ids) + 3
    side = explain_answer(backbone, picture, prompt, "red").sides[0]
    assert side.word_relevance.shape == (1, len(side.words))
    assert side.relevance[0].max() > 0
