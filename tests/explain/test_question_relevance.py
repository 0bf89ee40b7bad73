"""Relevance where an encoder reads the question with the picture (mPLUG), against lists and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from plain_loops import bar, bar_of, eye, of_steps, plus, times, transposed
from tiny_blip import make_image
from tiny_mplug import WORDS, make_processor, tiny

from padapter.backbones.mplug import MPlugBackbone
from padapter.errors import UserError
from padapter.explain import Relevance, explain_answer
from padapter.explain.layout import Layout
from padapter.explain.page import content
from padapter.explain.questions import side_by_side
from padapter.explain.reading import read
from padapter.explain.rules import gradient_weighted
from padapter.methods import get_method
from padapter.tuners import PAdapterConfig

QUESTION, LEAD_IN, ANSWER = "how many cats is the dog?", "the dog is", "red dog"


def oracle(weights, gradients, layers, sizes, own=None):
    """R of the text to itself, and to picture and question as one stream, with lists and loops.

    Equations (6)-(11) on two matrices: J, of picture and question to both, and T with what the text has taken from J.

    Args:
        weights: (H, N1, N2) by name.
        gradients: of the same shapes.
        layers: (name, kind), in the order of computation: "image", "question" and "text" attend to themselves, "reads
            image" is the question, "together" picture and question to both, "reads both" the text.
        sizes: tokens of picture, question and text.
        own: (shares, gradients), each (H, N1), by name.
    """
    patches, question, words = sizes
    both = patches + question
    J, T, TJ = eye(both), eye(words), [[0.0] * both for _ in range(words)]

    def placed(a, row, column):
        big = [[0.0] * both for _ in range(both)]
        for i, line in enumerate(a):
            for j, value in enumerate(line):
                big[row + i][column + j] = value
        return big

    def block(m, rows, columns):
        return [line[columns] for line in m[rows]]

    image, asked = slice(0, patches), slice(patches, both)
    for name, kind in layers:
        a, n = bar(weights[name], gradients[name]), len(weights[name][0])
        shares, slopes = (own or {}).get(name, (np.zeros((1, n)), np.zeros((1, n))))
        share = bar(shares[..., None], slopes[..., None])
        itself = [[share[i][0] * float(i == j) for j in range(n)] for i in range(n)]
        if kind in ("image", "question", "together"):
            first = patches if kind == "question" else 0
            J = plus(J, times(placed(plus(a, itself), first, first), J))
        elif kind == "reads image":
            left = transposed(bar_of(block(J, asked, asked)))
            from_image = times(left, times(a, bar_of(block(J, image, image))))
            from_question = times(a, block(J, image, asked))
            new = plus(placed(from_image, patches, 0), placed(from_question, patches, patches))
            J = plus(plus(J, new), times(placed(itself, patches, patches), J))
        elif kind == "text":
            a = plus(a, itself)
            T, TJ = plus(T, times(a, T)), plus(TJ, times(a, TJ))
        else:
            new = times(transposed(bar_of(T)), times(a, bar_of(J)))
            T, TJ = plus(T, times(itself, T)), plus(plus(TJ, new), times(itself, TJ))
    return np.array(T), np.array(TJ)


class Toy:
    """A question that reads a picture, both attending to both, and a text that reads both; attention is given."""

    sizes = (3, 2, 3)
    heads, width = 2, 3
    layers = (
        ("image", "image"), ("question", "question"), ("reading", "reads image"), ("joined", "together"),
        ("question again", "question"), ("reading again", "reads image"), ("joined again", "together"),
        ("text", "text"), ("cross", "reads both"), ("text again", "text"), ("cross again", "reads both"),
    )  # fmt: skip

    def __init__(self):
        rng = np.random.default_rng(5)
        patches, question, words = self.sizes
        both = patches + question
        shapes = {
            "image": (patches, patches), "question": (question, question), "reads image": (question, patches),
            "together": (both, both), "text": (words, words), "reads both": (words, both),
        }  # fmt: skip
        self.inputs = [rng.normal(size=(n, self.width)) for n in self.sizes]
        self.values = {name: rng.normal(size=(self.heads, self.width, self.width)) for name, _ in self.layers}
        self.last = rng.normal(size=self.width)
        self.weights = {}
        for name, kind in self.layers:
            found = rng.random((self.heads, *shapes[kind]))
            found = np.tril(found) if kind == "text" else found
            self.weights[name] = found / found.sum(-1, keepdims=True)

    def target(self, weights):
        """The output for the last word, for any weights."""
        image, question, text = (torch.from_numpy(x) for x in self.inputs)

        def attended(name, source):
            return (weights[name] @ source @ torch.from_numpy(self.values[name])).mean(0).sin()

        for name, kind in self.layers:
            both = torch.cat([image, question])
            if kind == "image":
                image = image + attended(name, image)
            elif kind == "question":
                question = question + attended(name, question)
            elif kind == "reads image":
                question = question + attended(name, image)
            elif kind == "together":
                image, question = (both + attended(name, both)).split(self.sizes[:2])
            elif kind == "text":
                text = text + attended(name, text)
            else:
                text = text + attended(name, both)
        return (text[-1] @ torch.from_numpy(self.last)) ** 2

    def slopes(self, step=1e-5):
        """Gradients of the target by finite differences."""
        found = {}
        for name, weights in self.weights.items():
            found[name] = np.zeros_like(weights)
            for place in np.ndindex(weights.shape):
                pair = []
                for sign in (1, -1):
                    changed = weights.copy()
                    changed[place] += sign * step
                    pair.append(self.target(torch_of({**self.weights, name: changed})).item())
                found[name][place] = (pair[0] - pair[1]) / (2 * step)
        return found


def torch_of(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def follow(layers, bars, sizes):
    """The rules that are tested, on streams of the toy."""
    relevance = Relevance(dict(zip(("image", "question", "text"), sizes, strict=True)))
    both = ("image", "question")
    for name, kind in layers:
        if kind == "reads image":
            relevance.attend_cross("question", "image", bars[name])
        elif kind == "reads both":
            relevance.attend_cross("text", both, bars[name])
        else:
            relevance.attend_self(both if kind == "together" else kind, bars[name])
    return relevance


def test_two_streams_that_are_joined_now_and_then():
    toy = Toy()
    expected = oracle(toy.weights, toy.slopes(), toy.layers, toy.sizes)
    weights = {name: tensor.requires_grad_() for name, tensor in torch_of(toy.weights).items()}
    gradients = torch.autograd.grad(toy.target(weights), list(weights.values()))
    bars = {
        name: gradient_weighted(toy.weights[name], gradient.numpy())
        for name, gradient in zip(weights, gradients, strict=True)
    }
    relevance = follow(toy.layers, bars, toy.sizes)
    np.testing.assert_allclose(relevance.of("text", "text"), expected[0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(relevance.of("text", ("image", "question")), expected[1], rtol=1e-5, atol=1e-9)
    assert relevance.of("text", "image")[-1].min() > 0
    assert relevance.of("text", "question")[-1].min() > 0


def test_a_stream_in_two_parts_is_the_same_stream():
    """However a stream is cut, the blocks are those of the whole, third streams and own shares included."""
    rng = np.random.default_rng(6)
    whole = Relevance({"both": 5, "text": 3, "other": 2})
    parts = Relevance({"one": 2, "two": 3, "text": 3, "other": 2})
    steps = [
        ("attend_self", ("both",), (5, 5)), ("attend_cross", ("both", "other"), (5, 2)),
        ("attend_cross", ("text", "both"), (3, 5)), ("attend_cross", ("both", "text"), (5, 3)),
        ("attend_self", ("both",), (5, 5)), ("attend_self", ("text",), (3, 3)),
        ("attend_cross", ("text", "both"), (3, 5)),
    ]  # fmt: skip
    for rule, streams, shape in steps:
        attention, own = rng.random(shape), rng.random(shape[0])
        getattr(whole, rule)(*streams, attention, own)
        cut = [("one", "two") if stream == "both" else stream for stream in streams]
        getattr(parts, rule)(*cut, attention, own)
    for s in ("both", "text"):
        for q in ("both", "text", "other"):
            one, other = (("one", "two") if stream == "both" else stream for stream in (s, q))
            np.testing.assert_allclose(parts.of(one, other), whole.of(s, q), rtol=1e-12)
    np.testing.assert_array_equal(parts.of("two", "one"), whole.of("both", "both")[2:, :2])


def make_backbone(arrangement, *, trailing_sep=False, **sizes):
    model, _, _ = tiny(arrangement, words=len(WORDS), **sizes)
    return MPlugBackbone(model.eval(), make_processor(trailing_sep=trailing_sep), "tiny-mplug")


#: One layer of each kind but two of the decoder's.
SMALL = {"vision_layers": 1, "text_layers": 1, "fusion_layers": 3, "fusion_built": 4, "stride": 2}
CASES = {
    "vqa": ("vqa", {"stride": 2}),
    "bridge": ("vqa", {"vision_width": 12, "stride": 1, "fusion_layers": 2, "fusion_built": 3, "trailing_sep": True}),
    "unconnected": ("vqa", {"stride": 9}),
    "caption": ("caption", {}),
}


def kind_of(name, rows, question):
    """What a module of this name attends to, from how many tokens."""
    crosses = ".crossattention." in name
    if name.startswith("vision_model"):
        return "image"
    if name.startswith("text_decoder"):
        return "reads both" if crosses else "text"
    if name.startswith("text_encoder"):
        return "question"
    return "reads image" if crosses else "question" if rows == question else "together"


def eagerly(backbone, picture, prompt, text):
    """What the model itself returns, eagerly: log-probabilities, weights by name with a graph, ids of both texts."""
    model, tokenizer = backbone.base_model, backbone.processor.tokenizer
    pixels = backbone.processor.image_processor([picture], return_tensors="pt")["pixel_values"].double()
    given = [] if backbone.asks else tokenizer(prompt, add_special_tokens=False).input_ids
    target = tokenizer(text, add_special_tokens=False).input_ids
    answer = torch.tensor([[backbone.start_id, *given, *target, backbone.end_id]])
    question = torch.zeros(1, 0, dtype=torch.long)
    inputs = {"input_ids": answer}
    if backbone.asks:
        ending = [backbone.end_id] if tokenizer.trailing_sep else []
        ids = [backbone.start_id, *tokenizer(prompt, add_special_tokens=False).input_ids, *ending]
        question = torch.tensor([ids])
        inputs = {"input_ids": question, "decoder_input_ids": answer}
    weights, hooks = {}, []
    for name, module in model.named_modules():
        if type(module).__name__ in ("MPlugTextAttention", "MPlugVisionAttention"):
            hooks.append(module.register_forward_hook(lambda m, a, out, name=name: weights.__setitem__(name, out[1])))
    model.set_attn_implementation("eager")
    try:
        logits = model(pixel_values=pixels, **inputs).logits[0]
    finally:
        model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()
    first = 1 + len(given)
    log_probs = [logits[first - 1 + i].log_softmax(-1)[token] for i, token in enumerate(target)]
    return log_probs, weights, question[0].tolist(), answer[0].tolist(), first


@pytest.mark.parametrize("case", ["vqa", "bridge", "caption", pytest.param("unconnected", marks=pytest.mark.slow)])
def test_a_whole_mplug_against_its_own_eager_attention(case):
    arrangement, sizes = CASES[case]
    backbone, picture = make_backbone(arrangement, **sizes), make_image(0, 24)
    prompt = QUESTION if backbone.asks else LEAD_IN
    side = explain_answer(backbone, picture, prompt, ANSWER).sides[0]
    log_probs, named, question, answer, first = eagerly(backbone, picture, prompt, ANSWER)
    patches = next(iter(named.values())).shape[-1]
    weights = {name: tensor.detach()[0].numpy() for name, tensor in named.items()}
    layers = [(name, kind_of(name, tensor.shape[2], len(question))) for name, tensor in named.items()]
    kinds = {kind for _, kind in layers}
    assert ("together" in kinds) == (case in ("vqa", "bridge"))
    tokenizer = backbone.processor.tokenizer
    assert side.words == tuple(tokenizer.convert_ids_to_tokens(question + answer[:first]))
    np.testing.assert_allclose(side.log_probs, [x.item() for x in log_probs], rtol=1e-5)
    for number, log_prob in enumerate(log_probs):
        gradients = torch.autograd.grad(log_prob, list(named.values()), retain_graph=True)
        slopes = {name: tensor[0].numpy() for name, tensor in zip(named, gradients, strict=True)}
        T, TJ = oracle(weights, slopes, layers, (patches, len(question), len(answer)))
        row = first - 1 + number
        np.testing.assert_allclose(side.relevance[0][number].ravel(), TJ[row, 1:patches], rtol=1e-4, atol=1e-9)
        words = [*TJ[row, patches:], *(T[row, :first] - np.eye(len(answer))[row, :first])]
        np.testing.assert_allclose(side.word_relevance[number], words, rtol=1e-4, atol=1e-9)
        assert side.word_relevance[number][: len(question)].sum() > 0 or not question

    seen = {name: kind for name, kind in layers if kind not in ("question", "text")}
    assert [one.name for one in side.attention] == list(seen)
    rows = [first - 1 + number for number in range(len(log_probs))]
    queries = {"image": slice(None), "reads image": slice(None), "together": slice(patches, None), "reads both": rows}
    for one in side.attention:
        found = weights[one.name][:, queries[seen[one.name]], 1:patches].mean(axis=1)
        np.testing.assert_allclose(one.plain[0].reshape(found.shape), found, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("form", ["projected", pytest.param("bottleneck", marks=pytest.mark.slow)])
def test_calibrated_weights_and_own_shares_of_every_part_take_part(form):
    backbone = make_backbone("vqa", **SMALL)
    torch.manual_seed(0)
    options = {"where": "all", "form": form, "mu": 0.3, "init_weights": False}
    backbone.model = get_peft_model(backbone.model, PAdapterConfig(**options)).double()
    reading = read(backbone, make_image(0, 24), QUESTION, ANSWER)
    layers, weights, gradients, own = [], {}, {}, {}
    for record in reading.records:
        name = record.site.name
        layers.append((name, kind_of(name, record.plain.weights.shape[2], len(reading.question))))
        assert len(record.steps) == (2 if form == "bottleneck" else 1)
        weights[name], gradients[name], own[name] = of_steps(record.steps, reading.log_probs[1])
    assert {kind for _, kind in layers} == {kind for _, kind in Toy.layers}
    assert all(pair[0].max() > 0 for pair in own.values())
    sizes = reading.records[0].plain.weights.shape[-1], len(reading.question), len(reading.ids)
    T, TJ = oracle(weights, gradients, layers, sizes, own)
    relevance = reading.relevance(1)
    np.testing.assert_allclose(relevance.of("text", "text"), T, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(relevance.of("text", ("image 0", "question")), TJ, rtol=1e-5, atol=1e-9)
    without = oracle(weights, gradients, layers, sizes)
    assert np.abs(without[1] - TJ).max() > 1e-3 * TJ.max()

    found = explain_answer(backbone, make_image(0, 24), QUESTION, ANSWER, token=2)
    for one in found.sides[0].attention:
        assert one.calibrated is not None
        record = next(record for record in reading.records if record.site.name == one.name)
        step = record.messages[0].step
        if one.part == "fusion":
            asked = slice(-len(reading.question), None)
            np.testing.assert_allclose(one.own, step.own[0, :, asked].mean(-1).detach(), rtol=1e-6)
            shown = step.weights[0, :, asked, 1 : sizes[0]].mean(1).detach()
            np.testing.assert_allclose(one.calibrated[0].reshape(shown.shape), shown, rtol=1e-6)
    labels = [module["label"] for module in content(found)["modules"]]
    assert "question, layer 0, reads the picture" in labels
    assert "question, layer 2, reads the picture and itself" in labels
    assert len(set(labels)) == len(labels)


def test_a_changed_patch_changes_its_own_token_and_no_other():
    """Before the first layer of the image encoder; a picture of the model's own size is not resized."""
    backbone = make_backbone("vqa", **SMALL)
    pixels = np.asarray(make_image(0, 8))
    before = read(backbone, Image.fromarray(pixels), QUESTION, "red")
    for row, column in ((0, 1), (1, 0)):
        changed = pixels.copy()
        changed[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] ^= 255
        after = read(backbone, Image.fromarray(changed), QUESTION, "red", before.layout)
        one, other = (reading.records[0].call.value[0].detach() for reading in (before, after))
        (grid,) = before.layout.grids((one - other).abs().amax(dim=(0, 2)).numpy())
        assert np.argwhere(grid > 1e-9).tolist() == [[row, column]]


def test_a_prefix_and_other_labels():
    backbone, picture = make_backbone("vqa", **SMALL), make_image(0, 24)
    method = get_method("prefix")
    method.apply(backbone, method.parse({"num_virtual_tokens": "3"}))
    reading = read(backbone, picture, QUESTION, "yes")
    own = [record for record in reading.records if record.site.part == "decoder" and not record.site.cross]
    assert {record.plain.weights.shape[3] for record in own} == {len(reading.ids) + 3}
    side = explain_answer(backbone, picture, QUESTION, "yes", others=["no"]).sides[0]
    assert side.tokens == ("yes", "not no")
    assert side.word_relevance.shape == (2, len(side.words))
    other = read(backbone, picture, QUESTION, "no")
    found = [other.relevance(number, -1.0).of("text", "question")[other.row(number)] for number in (0, 1)]
    np.testing.assert_allclose(side.word_relevance[1][: len(other.question)], np.sum(found, axis=0), rtol=1e-6)


def test_picture_and_question_may_stand_in_any_order():
    """Where the tokens of each stream are, for two streams of the picture; what is not there is refused."""
    nothing = np.zeros(0, dtype=np.int64)
    places = {"joined": np.array([4, 1, 0]), "short": np.array([2, -1, 0])}
    keys = {"picture": np.array([1, 0, 2])}
    layout = Layout((), (), np.array([0, 1, 0]), {}, keys, nothing, nothing, {}, 0, places)
    streams, order = side_by_side(layout, "joined", 5, 2)
    assert streams == ("image 0", "image 1", "question")
    assert order.tolist() == [4, 0, 1, 2, 3]
    assert side_by_side(layout, "picture", 3, 2) is None
    assert side_by_side(layout, "joined", 5, 0) is None
    assert side_by_side(layout, "elsewhere", 5, 2) is None
    for name, tokens in (("joined", 6), ("short", 4)):
        with pytest.raises(UserError, match=f"'{name}' works on {tokens} tokens, which are not those of the picture"):
            side_by_side(layout, name, tokens, 2)


def test_a_model_that_joins_other_streams_is_refused():
    """A decoder that attends to picture and question without the class token: as many keys as no known streams have."""
    backbone = make_backbone("vqa", **SMALL)
    attended = backbone.attended

    def cut(model, states, fields):
        both, mask = attended(model, states, fields)
        return both[:, 1:], mask[:, 1:]

    backbone.attended = cut
    message = (
        r"text_decoder.*crossattention.* 13 tokens, which are not those of the picture, 5, and of the question, 9;"
    )
    with pytest.raises(UserError, match=message):
        explain_answer(backbone, make_image(0, 24), QUESTION, ANSWER)
