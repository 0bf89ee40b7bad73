"""mPLUG's backbone against functions written from the model's description (tests/models/mplug_reference.py)."""

from __future__ import annotations

import copy

import mplug_reference as reference
import numpy as np
import pytest
import torch
from tiny_blip import make_image
from tiny_mplug import END, START, WORDS, make_processor, talkative, tiny
from tiny_mplug import model_of as build

from padapter.backbones import TrainingExample, ranking
from padapter.backbones.mplug import MPlugBackbone
from padapter.errors import UserError
from padapter.methods import get_method

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
QUESTIONS = ["what color is the dog?", "how many cats", "is the dog red?", "what"]
LEAD_INS = ["", "a red", "the dog is", "a"]
CANDIDATES = ["red", "a red dog", "a red cat", "two dogs", "a", "blue"]
METHODS = {
    "p-adapter": {"p": "1.4", "mu": "0.3"},
    "adapter": {},
    "lora": {},
    "prefix": {"num_virtual_tokens": "3"},
}


def ids_of(text):
    """Ids of words of the tiny vocabulary; a plural is two pieces."""
    words = text.replace("?", " ?").replace("cats", "cat ##s").replace("dogs", "dog ##s").split()
    return [WORDS.index(word) for word in words]


def lively(state):
    """Weights of a model whose decoder looks at what it attends to more than at its favourite words."""
    state = talkative(state, 1)
    for name, value in state.items():
        if "crossattention.self.value" in name or "crossattention.output.dense" in name:
            state[name] = 2 * value
    state["visual_encoder.visual.conv1.weight"] = 3 * state["visual_encoder.visual.conv1.weight"]
    words = 2 * state["text_decoder.bert.embeddings.word_embeddings.weight"]
    bias = 0.3 * state["text_decoder.cls.predictions.bias"]
    bias[END] += 2
    return state | {
        "text_decoder.bert.embeddings.word_embeddings.weight": words,
        "text_decoder.cls.predictions.decoder.weight": words,
        "text_decoder.cls.predictions.bias": bias,
        "text_decoder.cls.predictions.decoder.bias": bias,
    }


class Case:
    """A backbone in float64, and the same weights for the reference.

    Args:
        arrangement: "vqa" or "caption".
        trailing_sep: whether questions end with ``[SEP]``.
        **sizes: as for `tiny`.
    """

    def __init__(self, arrangement, *, trailing_sep=False, **sizes):
        _, state, self.sizes = tiny(arrangement, words=len(WORDS), **sizes)
        self.state = lively(state)
        self.asks, self.sep = arrangement == "vqa", trailing_sep
        model = build(self.state, self.sizes, arrangement).eval()
        self.backbone = MPlugBackbone(model, make_processor(trailing_sep=trailing_sep), "tiny-mplug")
        self.prompts = QUESTIONS if self.asks else LEAD_INS

    def read(self, image, prompt):
        """What the decoder attends to in one row (1, N, d), and what it begins with."""
        pixels = self.backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"].double()
        heads = self.sizes.heads
        states = reference.image_features(self.state, pixels, heads=heads)
        if not self.asks:
            return states, [START, *ids_of(prompt)]
        ids = torch.tensor([[START, *ids_of(prompt), *([END] if self.sep else [])]])
        mask = torch.ones_like(ids)
        text = reference.text_features(self.state, ids, mask, heads=heads)
        run, stride = self.sizes.fusion_layers, self.sizes.stride
        image, text = reference.fusion(self.state, text, states, mask, heads=heads, run=run, stride=stride)
        return torch.cat([image, text], dim=1), [START]

    def token_losses(self, image, prompt, text):
        """Of the tokens of one text, the end token last; one forward pass."""
        states, given = self.read(image, prompt)
        target = [*ids_of(text), END]
        logits = reference.decoder_logits(
            self.state, torch.tensor([[*given, *target]]), states, None, heads=self.sizes.heads
        )[0]
        return torch.stack([-logits[len(given) - 1 + i].log_softmax(-1)[token] for i, token in enumerate(target)])


@pytest.fixture(scope="module")
def cases():
    return {
        "vqa": Case("vqa"),
        "sep": Case("vqa", trailing_sep=True),
        "caption": Case("caption"),
        "bridge": Case("vqa", vision_width=12, stride=3),
    }


@pytest.fixture(params=["vqa", "sep", "caption", "bridge"])
def case(request, cases):
    return cases[request.param]


@pytest.fixture
def fresh(cases):
    """Makes copies of a case, to be changed."""
    return lambda name: copy.deepcopy(cases[name])


@pytest.fixture
def images():
    return [make_image(seed, side=2) for seed in range(4)]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_the_loss_is_that_of_separate_sequences(case, images, reduction):
    """Weighted token losses without label smoothing, one unpadded forward for each answer."""
    answers = [(("red", 0.75), ("a blue dog", 0.25)), (("two", 1.0),), (("yes", 0.5),), (("a cat", 2.0),)]
    examples = [TrainingExample(*row) for row in zip(images, case.prompts, answers, strict=True)]
    loss = case.backbone.training_module(reduction)(**case.backbone.collate(examples))["loss"]
    separate = [
        (weight, case.token_losses(example.image, example.prompt, text))
        for example in examples
        for text, weight in example.targets
    ]
    total = sum(weight * losses.sum() for weight, losses in separate)
    count = len(images) if reduction == "sequence" else sum(weight * len(losses) for weight, losses in separate)
    torch.testing.assert_close(loss, total / count, **TOLERANCE)


@pytest.mark.parametrize("tokens", [(512, 128), (9, 4)], ids=str)
def test_ranks_are_those_of_one_forward_per_candidate(case, images, monkeypatch, tokens):
    monkeypatch.setattr(ranking, "PASS_TOKENS", tokens[0])
    monkeypatch.setattr(ranking, "TREE_TOKENS", tokens[1])
    wanted = torch.stack(
        [
            torch.stack([-case.token_losses(image, prompt, text).sum() for text in CANDIDATES])
            for image, prompt in zip(images, case.prompts, strict=True)
        ]
    )
    found = torch.tensor(case.backbone.rank(images, case.prompts, CANDIDATES), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    assert found.std() > 0.1
    lengths = torch.tensor([len(ids_of(text)) + 1 for text in CANDIDATES])
    normalised = case.backbone.rank(images, case.prompts, CANDIDATES, length_normalized=True)
    torch.testing.assert_close(torch.tensor(normalised, dtype=torch.float64), wanted / lengths, **TOLERANCE)
    some = torch.tensor(case.backbone.rank(images, case.prompts, CANDIDATES, k=4), dtype=torch.float64)
    assert some.isfinite().sum(1).tolist() == [4] * 4
    torch.testing.assert_close(some[some.isfinite()], wanted[some.isfinite()], **TOLERANCE)


@pytest.mark.parametrize(("beams", "alpha"), [(1, None), (3, None), (3, 1.5)])
def test_texts_are_those_of_the_published_search(case, images, beams, alpha):
    options = {"num_beams": beams, "max_new_tokens": 5, "min_new_tokens": 2, "length_penalty": alpha}
    wanted = []
    for image, prompt in zip(images, case.prompts, strict=True):
        states, given = case.read(image, prompt)
        (_, ids), *_ = reference.beam_search(
            case.state, states, None, heads=case.sizes.heads, prompt=given, end=END, beams=beams,
            alpha=alpha or 0.6, least=2, most=5,
        )  # fmt: skip
        wanted.append(case.backbone.spoken(torch.tensor([ids[len(given) :]]))[0])
    assert case.backbone.generate(images, case.prompts, **options) == wanted
    alone = [case.backbone.generate([i], [p], **options)[0] for i, p in zip(images, case.prompts, strict=True)]
    assert alone == wanted
    if case.sizes.vision_width == case.sizes.width:
        assert len(set(wanted)) > 1  # the model does look at its input


def test_rows_do_not_depend_on_their_batch(case, images):
    batch = torch.tensor(case.backbone.rank(images, case.prompts, CANDIDATES))
    alone = [case.backbone.rank([i], [p], CANDIDATES)[0] for i, p in zip(images, case.prompts, strict=True)]
    torch.testing.assert_close(batch, torch.tensor(alone), **TOLERANCE)


def test_every_image_and_every_question_about_it_is_read_once(cases, images):
    backbone, rows = cases["vqa"].backbone, {"seen": [], "asked": [], "crossed": []}
    model = backbone.base_model
    hooks = [
        model.vision_model.register_forward_pre_hook(
            lambda _m, _a, kw: rows["seen"].append(len(kw["pixel_values"])), with_kwargs=True
        ),
        model.text_encoder.register_forward_pre_hook(lambda _m, args: rows["asked"].append(len(args[0]))),
        model.text_decoder.bert.encoder.layer[0].crossattention.self.key.register_forward_hook(
            lambda _m, args, _o: rows["crossed"].append(len(args[0]))
        ),
    ]
    one, two = images[:2]
    asked = ([one, one, two, one, two], ["what", "is", "what", "what", "is the"])
    backbone.rank(*asked, CANDIDATES)
    backbone.generate(*asked, num_beams=3, max_new_tokens=4)
    for hook in hooks:
        hook.remove()
    assert rows == {"seen": [2, 2], "asked": [4, 4], "crossed": [4, 4]}


@pytest.mark.parametrize("arrangement", ["vqa", "caption"])
@pytest.mark.parametrize("name", METHODS)
def test_adapted_models_rank_write_and_train_as_one(fresh, images, name, arrangement):
    """Ranks against a full forward of the decoder per candidate; the loss against the ranks."""
    case = fresh(arrangement)
    backbone, method = case.backbone, get_method(name)
    before = torch.tensor(backbone.rank(images, case.prompts, CANDIDATES))
    method.apply(backbone, method.parse(METHODS[name]))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in backbone.model.named_parameters():
            if parameter.requires_grad and "_p." not in parameter_name and "_mu." not in parameter_name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    backbone.model.double().eval()
    found = torch.tensor(backbone.rank(images, case.prompts, CANDIDATES), dtype=torch.float64)
    assert (found - before).abs().max() > 1e-2
    with torch.no_grad():
        for row, (image, prompt) in enumerate(zip(images, case.prompts, strict=True)):
            states, given = case.read(image, prompt)  # the image and the question are read as before
            for column, text in enumerate(CANDIDATES):
                target = [*ids_of(text), END]
                ids = torch.tensor([[*given, *target]])
                logits = backbone.decoder(ids, encoder_hidden_states=states).logits[0].log_softmax(-1)
                score = sum(logits[len(given) - 1 + i, token] for i, token in enumerate(target))
                torch.testing.assert_close(found[row, column], score, rtol=1e-6, atol=1e-6)
        examples = [
            TrainingExample(i, p, ((text, 1.0),)) for i, p, text in zip(images, case.prompts, CANDIDATES, strict=False)
        ]
        loss = backbone.training_module("sequence")(**backbone.collate(examples))["loss"]
    torch.testing.assert_close(loss, -found.diagonal()[:4].mean(), rtol=1e-6, atol=1e-6)
    options = {"num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 1}
    texts = backbone.generate(images, case.prompts, **options)
    assert texts == [backbone.generate([i], [p], **options)[0] for i, p in zip(images, case.prompts, strict=True)]


def test_adapters_in_all_that_reads_questions_learn_and_leave_rows_apart(fresh, images):
    """Padding of a shorter question is no node of any graph; captions have no such parts."""
    case, method = fresh("vqa"), get_method("p-adapter")
    options = method.parse({"p": "1.4", "mu": "0.3", "where": "text_encoder,fusion,decoder"})
    method.apply(case.backbone, options)
    case.backbone.model.double().eval()
    generator = torch.Generator().manual_seed(5)
    trained = {name: value for name, value in case.backbone.model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name, value in trained.items():
            if "_p." not in name and "_mu." not in name:
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    batch = torch.tensor(case.backbone.rank(images, case.prompts, CANDIDATES))
    alone = [case.backbone.rank([i], [p], CANDIDATES)[0] for i, p in zip(images, case.prompts, strict=True)]
    torch.testing.assert_close(batch, torch.tensor(alone), **TOLERANCE)
    examples = [TrainingExample(i, p, (("a red dog", 1.0),)) for i, p in zip(images, case.prompts, strict=True)]
    case.backbone.training_module("sequence")(**case.backbone.collate(examples))["loss"].backward()
    assert {name.split(".")[2] for name in trained} == {"text_encoder", "fusion_encoder", "text_decoder"}
    assert [name for name, value in trained.items() if value.grad is None] == []
    with pytest.raises(UserError, match="fusion"):
        method.apply(fresh("caption").backbone, method.parse({"where": "fusion"}))


def test_prompts_go_to_the_encoder_or_to_the_decoder(cases, images):
    def rows(name, prompt):
        batch = cases[name].backbone.collate([TrainingExample(images[0], prompt, (("red", 1.0),))])
        tokenizer = cases[name].backbone.processor.tokenizer
        return {
            key: " ".join(tokenizer.convert_ids_to_tokens(batch[key][0]))
            for key in ("question_ids", "input_ids")
            if key in batch
        }

    assert rows("vqa", "what color?") == {"question_ids": "[CLS] what color ?", "input_ids": "[CLS] red [SEP]"}
    assert rows("sep", "what")["question_ids"] == "[CLS] what [SEP]"
    assert rows("vqa", "is [SEP] it")["question_ids"].count("[SEP]") == 0
    batch = cases["vqa"].backbone.collate([TrainingExample(images[0], "what color", (("red", 1.0),))])
    prompt = cases["vqa"].backbone.processor.tokenizer.convert_ids_to_tokens(cases["vqa"].backbone.prompt_ids(batch))
    assert prompt == ["[CLS]", "what", "color", "[CLS]"]
    assert rows("caption", "a") == {"input_ids": "[CLS] a red [SEP]"}
    assert rows("caption", "") == {"input_ids": "[CLS] red [SEP]"}


def test_long_questions_lose_their_beginning(fresh, images):
    backbone = fresh("sep").backbone
    backbone.max_length = 5
    batch = backbone.collate(
        [TrainingExample(images[0], prompt, (("a red dog", 1.0),)) for prompt in ("what color is the dog", "what")]
    )
    tokenizer = backbone.processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(batch["question_ids"][0]) == ["[CLS]", "is", "the", "dog", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["[CLS]", "a", "red", "dog", "[SEP]"]
    assert batch["question_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert (backbone.cut_prompts, backbone.cut_targets) == (1, 0)


@pytest.mark.parametrize("name", ["vqa", "bridge", "caption"])
def test_kept_features_give_the_same_numbers(fresh, name, images, tmp_path):
    """Float32, since what is kept is half as precise; and they are those of the encoder, before the bridge."""

    def make():
        case = fresh(name)
        case.backbone.model.float().requires_grad_(False)
        return case

    plain, losses = make(), []
    arrays = [np.asarray(image) for image in images]

    def loss(backbone):
        examples = [
            TrainingExample(backbone.picture(array), prompt, (("red", 1.0),))
            for array, prompt in zip(arrays, plain.prompts, strict=True)
        ]
        return backbone.training_module("token")(**backbone.collate(examples))["loss"].item()

    for turn in range(2):
        backbone = make().backbone
        backbone.cache_features(tmp_path, precision="fp32", training=True)
        losses.append(loss(backbone))
        assert (backbone.features.kept, backbone.features.computed) == ((4, 0) if turn else (0, 4))
        ranked = backbone.rank(images, plain.prompts, CANDIDATES)
        assert np.allclose(ranked, plain.backbone.rank(images, plain.prompts, CANDIDATES), atol=0.05)
    assert losses[0] == losses[1] == pytest.approx(loss(plain.backbone), rel=1e-2)


def test_features_of_an_encoder_with_dropout_are_kept_for_answers_only(fresh, tmp_path):
    case = fresh("vqa")
    case.backbone.base_model.vision_model.config.attention_dropout = 0.1
    case.backbone.model.requires_grad_(False)
    with pytest.raises(UserError, match=r"\(attention_dropout 0\.1 of vision_config.*config\.json.*--image-dropout 0"):
        case.backbone.cache_features(tmp_path, precision="fp32", training=True)
    case.backbone.cache_features(tmp_path, precision="fp32", training=False)
    assert case.backbone.features is not None


def test_the_frozen_image_encoder_builds_no_graph(fresh, images):
    case = fresh("bridge")
    backbone, seen = case.backbone, []
    batch = backbone.collate([TrainingExample(images[0], "what", (("red", 1.0),))])
    backbone.base_model.vision_model.requires_grad_(False)
    backbone.base_model.bridge.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    backbone.training_module("sequence")(**batch)["loss"].backward()
    ((states, bridged),) = seen
    assert not states.requires_grad
    assert bridged.requires_grad
    assert backbone.base_model.bridge.dense.weight.grad.abs().sum() > 0


def test_nothing_that_is_trained_stays_without_a_gradient(fresh, images):
    """In full fine-tuning, of the model that answers and of the one that writes captions."""
    for arrangement in ("vqa", "caption"):
        case = fresh(arrangement)
        backbone = case.backbone
        full = get_method("full")
        full.apply(backbone, full.parse({}))
        examples = [TrainingExample(i, p, (("red dog", 1.0),)) for i, p in zip(images, case.prompts, strict=True)]
        backbone.training_module("token")(**backbone.collate(examples))["loss"].backward()
        silent = [name for name, value in backbone.model.named_parameters() if value.grad is None]
        assert silent == []
        names = {name.split(".")[0] for name, _ in backbone.model.named_parameters()}
        assert ("fusion_encoder" in names) == (arrangement == "vqa")


def test_answers_read_like_those_of_the_published_evaluation(cases):
    backbone = cases["vqa"].backbone
    ids = torch.tensor([[WORDS.index(word) for word in ("a", "dog", "##s", ".", "[SEP]", "[PAD]")]])
    assert backbone.spoken(ids) == ["a dogs."]
