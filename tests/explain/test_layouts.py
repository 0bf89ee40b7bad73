"""Where the tokens of a picture are, of every family: against what a changed patch changes, and dense computations."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import get_peft_model
from PIL import Image
from transformers import AutoProcessor

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

from tiny_blip import make_backbone
from tiny_families import FAMILIES, make_family
from tiny_image_text import TEMPLATE, tokenizer
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from padapter.architectures import attention_sites
from padapter.errors import UserError
from padapter.explain import explain_answer
from padapter.explain.layout import Layout, _connector
from padapter.explain.picture import attend_picture
from padapter.explain.reading import read
from padapter.explain.rules import Relevance
from padapter.explain.tracing import NOWHERE, SEVERAL, destinations, owners
from padapter.tuners import PAdapterConfig

#: Width and height at which no processor resizes, so that patches end where pixels do.
CASES = {
    "llava": (16, 16), "paligemma": (16, 16), "idefics3": (16, 16), "qwen2-vl": (16, 16), "qwen2-vl wide": (32, 8),
    "blip-2 (OPT)": (16, 16), "idefics3 split": (32, 16), "gemma3": (16, 16), "git": (16, 16), "instructblip": (16, 16),
    "internvl": (32, 16), "kosmos-2": (16, 16), "llava-next": (32, 16), "llava-onevision": (16, 32),
    "mllama": (32, 16), "qwen2.5-vl": (32, 32), "qwen3-vl": (64, 16), "smolvlm": (16, 16), "blip": (16, 16),
}  # fmt: skip
VIEWS = {"idefics3 split": 3, "internvl": 3, "llava-next": 3, "llava-onevision": 3, "mllama": 2}
PROMPT = "what color is it ?"


def _idefics3_split():
    images = tf.Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    return tf.Idefics3Processor(
        image_processor=images, tokenizer=tokenizer(), image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    made = {}

    def get(case):
        name = case.removesuffix(" wide").removesuffix(" split")
        if case not in made and case == "blip":
            made[case] = make_backbone()
        if case not in made:
            processor = _idefics3_split() if case.endswith("split") else FAMILIES[name]()
            if name.startswith("blip-2"):  # its processor works only once it has been saved and loaded
                folder = tmp_path_factory.mktemp("processor")
                processor.save_pretrained(folder)
                processor = AutoProcessor.from_pretrained(folder)
            made[case] = make_family(name, processor)
        return made[case]

    return get


@pytest.fixture(scope="session")
def layouts(families):
    """Noise of a family's size, and where its tokens are."""
    made = {}

    def get(case):
        if case not in made:
            pixels = noise(*CASES[case])
            made[case] = pixels, read(families(case), Image.fromarray(pixels), PROMPT, "red").layout
        return made[case]

    return get


def noise(width, height, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def moved(one, other):
    """Which keys (B, N) of two records have other values."""
    return ((one.call.value - other.call.value).detach().abs().amax(dim=(1, 3)) > 1e-4).numpy()


def changes(before, after):
    """Names of attention modules that are called once or more, with what moved in each of their calls."""
    found = {}
    for one, other in zip(before.records, after.records, strict=True):
        found.setdefault(one.site, []).append(moved(one, other))
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_changed_patch_changes_its_own_tokens_and_no_others(families, layouts, case):
    """With nothing exchanged by attention every patch goes its own way: windows, merging, cropping, the text."""
    backbone, (pixels, layout) = families(case), layouts(case)
    assert len(layout.views) == VIEWS.get(case, 1)
    silent = copy.copy(backbone)
    silent.model = copy.deepcopy(backbone.model)
    for site in attention_sites(silent.model):
        for parameter in site.output().parameters():
            torch.nn.init.zeros_(parameter)
    before = read(silent, Image.fromarray(pixels), PROMPT, "red", layout)
    # The smallest view, a tile: a whole picture besides tiles sees every change of theirs.
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (view.box for view in layout.views)]
    number = int(np.argmin(areas))
    view, tokens = layout.views[number], layout.patches[number]
    left, top, right, bottom = view.box
    across, down = (right - left) / view.columns, (bottom - top) / view.rows
    for row, column in {(0, 1), (0, view.columns - 1), (view.rows - 1, view.columns // 2)}:
        changed = pixels.copy()
        x, y = round(left + column * across), round(top + row * down)
        changed[y : y + round(down), x : x + round(across)] ^= 255
        found = changes(before, read(silent, Image.fromarray(changed), PROMPT, "red", layout))
        vision = [(site, calls) for site, calls in found.items() if site.part == "vision"]
        first = np.zeros(len(layout.streams), dtype=bool)
        for seen, moves in zip(layout.vision[vision[0][0].name], vision[0][1], strict=True):
            first[seen] = moves
        np.testing.assert_array_equal(np.flatnonzero(first[tokens.ravel()]), [row * view.columns + column])
        for site, calls in vision:
            for seen, moves in zip(layout.vision[site.name], calls, strict=True):
                np.testing.assert_array_equal(moves, first[seen])
        for site, (moves,) in ((site, calls) for site, calls in found.items() if site.part != "vision"):
            if site.cross:
                reached = layout.keys[site.name][first]
            elif site.part == "decoder":
                reached = layout.columns[first]
            else:
                continue
            expected = np.zeros(moves.shape[1], dtype=bool)
            expected[reached[reached >= 0]] = True
            np.testing.assert_array_equal(moves[0], expected)


@pytest.mark.parametrize("case", CASES)
def test_every_family_is_explained(families, case):
    picture = Image.fromarray(noise(30, 20, seed=2))
    found = explain_answer(families(case), picture, PROMPT, "red blue")
    side = found.sides[0]
    assert side.tokens == ("red", "blue")
    for view, maps in zip(found.views, side.relevance, strict=True):
        assert maps.shape == (2, view.rows, view.columns)
        assert maps.min() >= 0
    assert min(sum(maps.sum(axis=(1, 2)) for maps in side.relevance)) > 0
    pixels = found.on_picture()
    assert pixels.shape == (20, 30)
    covered = sum((m.sum(0) * v.coverage(30, 20)).sum() for m, v in zip(side.relevance, found.views, strict=True))
    np.testing.assert_allclose(pixels.sum(), covered)
    assert ("<image>" in side.words) == (case in ("mllama", "kosmos-2"))  # where it is a word that is read
    assert "what" in side.words
    # a word has a part of its own where the answer reads the text directly
    assert side.word_relevance.shape == (2, len(side.words))
    streams = 1 if case == "mllama" else len(found.views)
    for one in (one for one in side.attention if one.layer != 0):  # Gemma 3's first sees the last tokens only
        total = sum(grid.sum(axis=(1, 2)) for grid in one.plain)
        assert (total > 0).all()
        assert (total <= (streams if one.part == "vision" else 1) + 1e-5).all()


@pytest.mark.parametrize("case", CASES)
def test_what_the_text_takes_is_what_its_patches_have(layouts, case):
    """Shares of the picture's tokens in what holds them sum to 1 over all streams; and streams part the tokens."""
    _, layout = layouts(case)
    streams = range(len(layout.images))
    together = np.concatenate([layout.members(number) for number in streams])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(layout.streams)))
    for parts in (layout.columns, *layout.keys.values()):
        size = int(parts.max()) + 1
        shares = sum(layout.mixing(parts, size, number).sum(axis=1) for number in streams)
        np.testing.assert_allclose(shares, np.isin(np.arange(size), parts))
    everywhere = np.concatenate([tokens.ravel() for tokens in layout.patches])
    assert len(np.unique(everywhere)) == len(everywhere)
    if case in ("llava-next", "llava-onevision"):  # a line of tiles ends with a token of no patch
        held = np.unique(layout.columns[layout.columns >= 0])
        assert set(range(held[0], held[-1] + 2)) - set(held)


def test_windows_as_one_dense_attention_with_a_mask(families, monkeypatch):
    """Relevance through windows is that of the same model with one dense attention, masked by the windows.

    The dense attention is written here, windows told by transformers' own `cu_seqlens`; its weights are (H, N, N), zero
    outside windows. Behind it the rules are applied to whole matrices.
    """
    backbone = families("qwen2.5-vl")
    picture = Image.fromarray(noise(44, 20))  # windows of different sizes
    reading = read(backbone, picture, PROMPT, "red")
    (module,) = {r.site.name for r in reading.records if r.site.part == "vision" and r.plain.weights.shape[-1] < 72}
    sizes = [r.plain.weights.shape[-1] for r in reading.records if r.site.name == module]
    assert len(sizes) > 1
    assert len(set(sizes)) > 1
    dense = []

    def forward(self, hidden_states, cu_seqlens, rotary_pos_emb=None, position_embeddings=None, **kwargs):
        length = hidden_states.shape[0]
        q, k, v = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 2, 0, 3)
        cos, sin = position_embeddings
        q, k = qwen.apply_rotary_pos_emb_vision(q.transpose(0, 1), k.transpose(0, 1), cos, sin)
        scores = q.transpose(0, 1) @ k.transpose(0, 1).mT * self.scaling
        window = torch.bucketize(torch.arange(length), cu_seqlens[1:], right=True)
        weights = scores.masked_fill(window[:, None] != window[None], float("-inf")).softmax(-1)
        dense.append(weights)
        return self.proj((weights @ v).transpose(0, 1).reshape(length, -1))

    monkeypatch.setattr(qwen.Qwen2_5_VLVisionAttention, "forward", forward)
    other = read_plainly(backbone, picture, "red")
    gradients = torch.autograd.grad(other, dense, retain_graph=True)
    expected = np.eye(dense[0].shape[-1])
    for weights, gradient in zip(dense, gradients, strict=True):
        bar = (weights * gradient).clamp(min=0).mean(0).detach().double().numpy()
        expected = expected + bar @ expected
    np.testing.assert_allclose(float(reading.log_probs[0].detach()), float(other.detach()), rtol=1e-5)
    found = reading.relevance(0).of("image 0", "image 0")
    assert np.abs(expected - np.eye(len(expected))).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def read_plainly(backbone, picture, text):
    """log p of the first token of a text, from the model's own forward pass."""
    from padapter.backbones import TrainingExample

    batch = backbone.collate([TrainingExample(picture, PROMPT, ((text, 1.0),))])
    batch["pixel_values"].requires_grad_()
    labels = batch["labels"][0]
    at = int((labels >= 0).nonzero()[0])
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "weights", "image_index")}
    return backbone.model(**inputs, use_cache=False).logits[0, at - 1].log_softmax(-1)[labels[at]]


def test_a_module_that_sees_its_tokens_in_another_order(families):
    """As shifted windows do: around one layer tokens are turned round, which changes nothing that a model computes."""
    backbone, picture = families("paligemma"), Image.fromarray(noise(30, 20))
    plain = read(backbone, picture, PROMPT, "red")
    turned = copy.copy(backbone)
    turned.model = copy.deepcopy(backbone.model)
    (layer,) = (m for name, m in turned.model.named_modules() if name.endswith("encoder.layers.1"))
    layer.register_forward_pre_hook(lambda _, args: (args[0].roll(1, dims=1), *args[1:]))
    layer.register_forward_hook(lambda _, args, output: output.roll(-1, dims=1))
    other = read(turned, picture, PROMPT, "red")
    (name,) = (name for name in other.layout.vision if ".layers.1." in name)
    np.testing.assert_array_equal(plain.layout.vision[name][0], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(other.layout.vision[name][0], [[3, 0, 1, 2]])
    torch.testing.assert_close(other.log_probs, plain.log_probs)
    one, another = (reading.relevance(0).of("image 0", "image 0") for reading in (plain, other))
    assert np.abs(one - np.eye(4)).max() > 0
    np.testing.assert_allclose(another, one, rtol=1e-4, atol=1e-9)


def test_blocks_are_put_where_their_tokens_are():
    """Calls and rows of one module against loops over pairs of tokens; two streams, tokens out of order."""
    rng = np.random.default_rng(0)
    streams = np.array([0, 1, 0, 0, 1, 0, 0])
    seen = (np.array([[5, 0], [1, 4]]), np.array([[6, 3]]))
    empty = np.zeros(0, dtype=np.int64)
    layout = Layout((), (), streams, {"m": seen}, {}, np.full(7, NOWHERE), empty, {}, 0)
    calls = [(rng.random((len(n), 2, 2)), rng.random((len(n), 2))) for n in seen]
    relevance = Relevance({"text": 1, **layout.sizes})
    start = rng.random((5, 5))
    relevance.attend_self("image 0", start)
    attend_picture(relevance, layout, "m", calls)
    whole = np.zeros((7, 7))
    for numbers, (attention, own) in zip(seen, calls, strict=True):
        for tokens, block, shares in zip(numbers, attention, own, strict=True):
            for i, one in enumerate(tokens):
                whole[one, one] += shares[i]
                for j, another in enumerate(tokens):
                    whole[one, another] += block[i, j]
    zero, one = np.flatnonzero(streams == 0), np.flatnonzero(streams == 1)
    expected = np.eye(5) + start
    expected = expected + whole[np.ix_(zero, zero)] @ expected
    np.testing.assert_allclose(relevance.of("image 0", "image 0"), expected)
    np.testing.assert_allclose(relevance.of("image 1", "image 1"), np.eye(2) + whole[np.ix_(one, one)])
    with pytest.raises(UserError, match="called otherwise"):
        attend_picture(relevance, layout, "m", calls[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_destinations_are_those_of_the_dense_jacobian(dtype):
    """Tokens that are permuted, merged, dropped and, two of them, given to two outputs."""
    torch.manual_seed(0)
    leaf = torch.zeros(2, 20, 3, 2, dtype=dtype, requires_grad=True)
    flat = (leaf.reshape(40, 6) @ torch.randn(6, 8, dtype=dtype) + torch.randn(8, dtype=dtype)).tanh()
    merged = flat[torch.randperm(40)[:32]].reshape(16, 2, 8).mean(dim=1)
    outputs = torch.cat([merged, merged[:1] * 0.5 + merged[1:2]])[None, None]  # the last one takes from two others
    (found,) = destinations([(outputs, np.arange(17)[None])], [leaf])
    expected = np.full(40, NOWHERE)
    for number in range(17):
        (gradient,) = torch.autograd.grad(outputs[0, 0, number].sum(), leaf, retain_graph=True)
        touched = (gradient.reshape(40, 6) != 0).any(dim=1).numpy()
        expected[touched] = np.where(expected[touched] == NOWHERE, number, SEVERAL)
    assert {NOWHERE, SEVERAL} < set(expected)
    np.testing.assert_array_equal(found.ravel(), expected)
    entries = owners([(outputs, np.arange(17)[None])], leaf)
    np.testing.assert_array_equal(entries.reshape(40, 6), np.repeat(expected[:, None], 6, axis=1))


@pytest.mark.parametrize("case", ["qwen2.5-vl", "mllama", "instructblip", "git"])
def test_adapters_change_nothing_but_the_maps(families, layouts, case):
    """With p-adapters everywhere: the layout of the model without, and their weights and own shares beside it."""
    adapted, (pixels, layout) = copy.copy(families(case)), layouts(case)
    torch.manual_seed(0)
    options = PAdapterConfig(where="all", mu=0.3, init_weights=False)
    adapted.model = get_peft_model(copy.deepcopy(adapted.model), options)
    reading = read(adapted, Image.fromarray(pixels), PROMPT, "red")
    assert reading.layout.views == layout.views
    np.testing.assert_array_equal(reading.layout.columns, layout.columns)
    np.testing.assert_array_equal(reading.layout.queries, layout.queries)
    (side,) = explain_answer(adapted, Image.fromarray(pixels), PROMPT, "red").sides
    (plain,) = explain_answer(families(case), Image.fromarray(pixels), PROMPT, "red").sides
    assert not np.allclose(side.relevance[0], plain.relevance[0], rtol=1e-3)
    assert {one.part for one in side.attention} >= {"vision"}
    for one, other in zip(side.attention, plain.attention, strict=True):
        assert one.name == other.name
        assert other.calibrated is None
        heads = one.plain[0].shape[0]
        assert one.own.shape == (heads,)
        assert (one.own > 0).all()
        assert [grid.shape for grid in one.calibrated] == [grid.shape for grid in other.plain]


@pytest.mark.parametrize("case", ["qwen2.5-vl", "llava"])
def test_in_half_precision_as_well(families, case):
    backbone, picture = copy.copy(families(case)), Image.fromarray(noise(44, 20))
    one = read(backbone, picture, PROMPT, "red").layout
    backbone.model = copy.deepcopy(backbone.model).bfloat16()
    other = read(backbone, picture, PROMPT, "red").layout
    assert one.views == other.views
    np.testing.assert_array_equal(one.columns, other.columns)
    for tokens, again in zip(one.patches, other.patches, strict=True):
        np.testing.assert_array_equal(tokens, again)
    for name, calls in one.vision.items():
        for seen, again in zip(calls, other.vision[name], strict=True):
            np.testing.assert_array_equal(seen, again)


def test_tokens_made_fewer_by_interpolation_are_refused(families):
    backbone = families("llava-onevision shrunk")
    with pytest.raises(UserError, match=r"this model of type 'llava_onevision'.*by interpolation.*smaller"):
        explain_answer(backbone, Image.fromarray(noise(32, 32)), PROMPT, "red")


def test_an_image_encoder_without_known_attention_is_refused(families, monkeypatch):
    monkeypatch.setattr(
        "padapter.explain.tracing.attention_sites",
        lambda model: [site for site in attention_sites(model) if site.part != "vision"],
    )
    with pytest.raises(UserError, match=r"of type 'llava' reads the picture: its image encoder has no attention that"):
        explain_answer(families("llava"), Image.fromarray(noise(16, 16)), PROMPT, "red")


def test_a_picture_that_does_not_arrive_is_refused(families, layouts, monkeypatch):
    """A Q-Former whose tokens are not found in the text: better than relevance of zero everywhere."""
    backbone, (pixels, _) = families("instructblip"), layouts("instructblip")

    def nowhere(modules, text):
        rows, queries = _connector(modules, text)
        return rows, np.full_like(queries, NOWHERE)

    monkeypatch.setattr("padapter.explain.layout._connector", nowhere)
    with pytest.raises(UserError, match=r"of type 'instructblip'.*no patch reaches its text"):
        explain_answer(backbone, Image.fromarray(pixels), PROMPT, "red")


def test_attention_that_is_not_reached_is_noticed(families, monkeypatch):
    """An image encoder half of which exchanges tokens by means that padapter does not know."""
    monkeypatch.setattr(
        "padapter.explain.tracing.attention_sites",
        lambda model: [site for site in attention_sites(model) if site.part != "vision" or ".0." in site.name],
    )
    with pytest.raises(UserError, match=r"a patch has a part in several positions of the text"):
        explain_answer(families("gemma3"), Image.fromarray(noise(16, 16)), PROMPT, "red")
