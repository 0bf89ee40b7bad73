"""Encoder-decoders of transformers with their own processors: reading, losing, writing and ranking.

What is expected comes from transformers alone: its processor, and its forward pass with labels, one row at a time.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_image_text import ENCODER_DECODERS, a_run_from_data_to_score, save

from padapter.backbones import TrainingExample, continuations, load_backbone
from padapter.comparison.counting import skeletons_of
from padapter.data.augment import parse_augmentation
from padapter.diagnose import diagnose
from padapter.errors import UserError
from padapter.explain import explain_answer
from padapter.methods import get_method
from padapter.tasks import get_task
from padapter.training.batches import VISIT, Collator

#: Whose encoder reads a text, and whose a picture alone.
READERS = ["blip-2 (T5)", "florence-2", "instructblip (T5)"]
SILENT = ["pix2struct", "vit + gpt-2", "vit + trocr"]
NAMES = [*READERS, *SILENT]
FORCED = 1
"""The token that this suite's Florence-2 must begin with, as the published one must."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    assert set(NAMES) == ENCODER_DECODERS.keys()
    made = {name: save(name, tmp_path_factory.mktemp("models") / str(i)) for i, name in enumerate(NAMES)}
    change(made["florence-2"] / "generation_config.json", forced_bos_token_id=FORCED, no_repeat_ngram_size=2)
    return made


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def loaded(folders) -> dict[str, Any]:
    """Backbones that no test changes."""
    return {name: load_backbone(str(folder)) for name, folder in folders.items()}


def picture(seed: int = 0, size: tuple[int, int] = (20, 30)) -> Image.Image:
    values = torch.randint(0, 255, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


EXAMPLES = [
    TrainingExample(picture(0), "what color is the thing ?", (("red", 0.75), ("blue green", 0.25))),
    TrainingExample(picture(1, (40, 16)), "is the red ?", (("yes", 1.0),)),
    TrainingExample(picture(2, (9, 9)), "how many ?", (("a red thing", 2.0), ("1", 0.5), ("yes no", 0.25))),
]
IMAGES, PROMPTS = [x.image for x in EXAMPLES], [x.prompt for x in EXAMPLES]


def inputs_of(backbone: Any, name: str, image: Image.Image, prompt: str) -> tuple[dict[str, Any], list[int]]:
    """What transformers' processor makes of a row, and the tokens that the decoder is given behind its start token."""
    processor = backbone.processor
    if name in READERS:
        read = processor(images=[image], text=[prompt], return_tensors="pt")
        return dict(read), [FORCED] if name == "florence-2" else []
    read = processor.image_processor([image], return_tensors="pt")
    return dict(read), processor.tokenizer(prompt, add_special_tokens=False).input_ids


@torch.no_grad()
def log_probs(backbone: Any, name: str, image: Image.Image, prompt: str, text: str) -> torch.Tensor:
    """Of each token of a text and the end token, by the model's own forward pass with labels."""
    inputs, given = inputs_of(backbone, name, image, prompt)
    answer = [*backbone.processor.tokenizer(text, add_special_tokens=False).input_ids, 2]
    labels = torch.tensor([[*given, *answer]])
    output = backbone.model(**inputs, labels=labels)
    found = output.logits[0].log_softmax(-1).gather(1, labels.T)[:, 0]
    torch.testing.assert_close(output.loss, -found.mean())  # labels stand where their logits are
    return found[len(given) :]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.in_turn("reduction")
def test_loss_is_that_of_transformers_row_by_row(loaded, name, reduction):
    backbone = loaded[name]
    rows = [(w, -log_probs(backbone, name, x.image, x.prompt, text)) for x in EXAMPLES for text, w in x.targets]
    total = sum(weight * losses.sum() for weight, losses in rows)
    count = len(EXAMPLES) if reduction == "sequence" else sum(weight * len(losses) for weight, losses in rows)
    batch = backbone.collate(EXAMPLES)
    with torch.no_grad():
        found = backbone.training_module(reduction).eval()(**batch)
    torch.testing.assert_close(found["loss"], total / count, atol=1e-5, rtol=1e-5)
    labels = batch["labels"][:, 1:][batch["labels"][:, 1:] >= 0]
    rowwise = found["logits"].log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(-rowwise, torch.cat([losses for _, losses in rows]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_teaches_the_encoder(loaded, name):
    """Answers to one question share a pass of the encoder: the gradient is that of a pass for each."""
    backbone = copy.copy(loaded[name])
    backbone.model = copy.deepcopy(backbone.model)
    method = get_method("lora")
    method.apply(backbone, method.parse({"r": 2, "part": "both"}))
    for parameter in backbone.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0.0
    module, examples = backbone.training_module("sequence").eval(), EXAMPLES[:2]
    module(**backbone.collate(examples))["loss"].backward()
    parameters = [p for p in backbone.model.parameters() if p.requires_grad]
    together = [p.grad.clone() for p in parameters]
    backbone.model.zero_grad()
    for x in examples:
        for text, weight in x.targets:
            single = backbone.collate([TrainingExample(x.image, x.prompt, ((text, weight),))])
            (module(**single)["loss"] / len(examples)).backward()
    assert all(gradient.any() for gradient in together)
    for gradient, parameter in zip(together, parameters, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_with_several_answers_is_encoded_once(loaded, name, monkeypatch):
    backbone = loaded[name]
    encoder = backbone.model.get_submodule(backbone.parts["image"].removesuffix(".layers").removesuffix(".layer"))
    rows: list[int] = []
    inner = next(m for m in encoder.modules() if isinstance(m, torch.nn.Linear))
    handle = inner.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    with torch.no_grad():
        backbone.training_module("sequence").eval()(**backbone.collate(EXAMPLES[2:]))
        assert len(rows) == 1
        backbone.continuations.remembers = True
        backbone.rank(IMAGES[:1], PROMPTS[:1], ["red", "blue green", "yes"])
    handle.remove()
    assert len(rows) == 2


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_candidates_are_those_of_a_pass_for_each(loaded, name, monkeypatch):
    backbone = loaded[name]
    words, rows = ["red", "blue green", "a yes 1", "no"], list(zip(IMAGES[:2], PROMPTS[:2], strict=True))
    monkeypatch.setattr(continuations, "CHUNK", 3)
    expected = [[log_probs(backbone, name, image, prompt, word) for word in words] for image, prompt in rows]
    sums = torch.tensor([[float(found.sum()) for found in row] for row in expected])
    backbone.continuations.remembers = None
    scores = torch.tensor(backbone.rank(IMAGES[:2], PROMPTS[:2], words))
    assert backbone.continuations.remembers
    torch.testing.assert_close(scores, sums, atol=1e-4, rtol=1e-4)
    lengths = torch.tensor([len(found) for found in expected[0]])
    normalised = torch.tensor(backbone.rank(IMAGES[:1], PROMPTS[:1], words, length_normalized=True)[0])
    torch.testing.assert_close(normalised, sums[0] / lengths, atol=1e-4, rtol=1e-4)
    best = torch.tensor(backbone.rank(IMAGES[:1], PROMPTS[:1], words, k=2)[0])
    firsts = torch.tensor([float(found[0]) for found in expected[0]]).topk(2).indices.sort().values
    assert best.isfinite().nonzero()[:, 0].tolist() == firsts.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.in_turn("beams")
def test_writing_is_what_the_model_itself_writes(loaded, name, beams):
    backbone, settings = loaded[name], {"num_beams": beams, "length_penalty": 0.0}
    prompts = PROMPTS if name in READERS else ["", "a", "a red"]
    expected = []
    for image, prompt in zip(IMAGES, prompts, strict=True):
        inputs, given = inputs_of(backbone, name, image, prompt)
        before = len(given)
        if name in SILENT:
            inputs["decoder_input_ids"] = torch.tensor([[backbone.model.config.decoder_start_token_id, *given]])
            before = 0
        # A token that is forced counts for transformers, and not here.
        lengths = {"max_new_tokens": 6 + before, "min_new_tokens": 3 + before}
        ids = backbone.model.generate(**inputs, do_sample=False, **lengths, **settings)[0, 1 + len(given) :]
        expected.append(backbone.processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    settings |= {"max_new_tokens": 6, "min_new_tokens": 3}
    assert backbone.generate(IMAGES, prompts, **settings) == expected


def test_the_encoder_reads_the_prompt_and_the_decoder_what_it_is_given(loaded):
    tokenizer = loaded["florence-2"].processor.tokenizer
    found = {name: tokenizer.decode(loaded[name].prompt_ids(loaded[name].collate(EXAMPLES[1:2]))) for name in NAMES}
    image = "<image>"
    assert found == {
        "blip-2 (T5)": " ".join([*[image] * 3, "is the red ? <pad>"]),
        "instructblip (T5)": " ".join([*[image] * 3, "is the red ? <pad>"]),
        "florence-2": " ".join([*[image] * 17, "<s> is the red ? </s> </s> <s>"]),
        "pix2struct": "<pad> is the red ?",
        "vit + gpt-2": "<s> is the red ?",
        "vit + trocr": "<s> is the red ?",
    }
    lead_ins = {name: backbone.lead_in for name, backbone in loaded.items()}
    assert lead_ins == {**dict.fromkeys(READERS), **dict.fromkeys(SILENT, ""), "florence-2": "<CAPTION>"}


@pytest.mark.parametrize("name", SILENT)
def test_who_reads_no_text_is_not_asked(folders, name):
    with pytest.raises(UserError, match=r"nothing can be asked; it can be trained to write captions"):
        load_backbone(str(folders[name]), asks=True)
    assert load_backbone(str(folders[name]), asks=False).generate([picture()], [""], max_new_tokens=2)


@pytest.fixture
def headed(tmp_path, monkeypatch) -> Any:
    """A Pix2Struct that was trained with questions over its pictures; the hub's font is matplotlib's here."""
    from matplotlib import font_manager
    from transformers.models.pix2struct import image_processing_pil_pix2struct as module

    class Hub:
        def hf_hub_download(self, *_: Any) -> str:
            return font_manager.findfont("DejaVu Sans")

    save("pix2struct", tmp_path)
    path = tmp_path / "processor_config.json"
    kept = json.loads(path.read_text())
    change(path, image_processor={**kept["image_processor"], "is_vqa": True})
    monkeypatch.setattr(module, "hf_api", Hub)
    return load_backbone(str(tmp_path), asks=True)


def test_a_header_over_the_picture_asks(headed, monkeypatch):
    batch = headed.collate(EXAMPLES[:2])
    for row, (image, prompt) in enumerate(zip(IMAGES[:2], PROMPTS[:2], strict=True)):
        expected = headed.processor(images=[image], text=prompt, return_tensors="pt", max_patches=12)
        torch.testing.assert_close(batch["flattened_patches"][row], expected["flattened_patches"][0])
    assert headed.prompt_ids(batch) == [0]
    assert headed.lead_in is None
    other = headed.collate([TrainingExample(IMAGES[0], "is the red ?", (("red", 1.0),))])
    assert not torch.equal(other["flattened_patches"][0], batch["flattened_patches"][0])

    def absent(*_: Any, **__: Any) -> None:
        raise OSError("offline\nand more")

    monkeypatch.setattr(headed.processor.image_processor, "_preprocess_image_like_inputs", absent)
    with pytest.raises(UserError, match=r"font for them cannot be had \(offline\)"):
        headed.collate(EXAMPLES[:1])


def test_other_kinds_are_refused_by_name(tmp_path, folders):
    for file in folders["vit + trocr"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path / "config.json", model_type="udop")
    with pytest.raises(UserError, match=r"encoder-decoder of type 'udop'.*blip-2, florence2, instructblip"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_counted_by_its_configuration(loaded, name):
    skeleton = skeletons_of(loaded[name].model.config)("meta")
    assert (skeleton.parts, skeleton.projections) == (loaded[name].parts, loaded[name].projections)


@pytest.mark.parametrize("name", ["florence-2", "vit + gpt-2"])
def test_padding_is_no_node_of_their_graphs(loaded, name):
    backbone = loaded[name]
    rows = [TrainingExample(x.image, x.prompt, x.targets[:1]) for x in EXAMPLES]
    alone, together = (diagnose(backbone, rows, points=0, batch_size=size, where="all") for size in (1, 3))
    singles = [backbone.collate([row]) for row in rows]
    nodes = {"decoder": sum(one["input_ids"].shape[1] - 1 for one in singles)}
    if name == "florence-2":
        nodes["text_encoder"] = sum(one["encoder_input_ids"].shape[1] for one in singles)
    for part, count in nodes.items():
        layers = [layer for layer in together.layers if layer.part == part]
        assert layers
        assert {int(layer.before.plain.entropy.count[0]) for layer in layers} == {count}
    one, other = ([record["mean"] for record in found.numbers()] for found in (alone, together))
    torch.testing.assert_close(torch.tensor(one, dtype=float), torch.tensor(other, dtype=float), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("blip-2 (T5)", "blip-2"), ("pix2struct", "pix2struct")])
def test_explain_refuses_them(loaded, name, kind):
    with pytest.raises(UserError, match=f"cannot follow how this model of type '{kind}'.*: it is an encoder-decoder"):
        explain_answer(loaded[name], IMAGES[0], PROMPTS[0], "red")


def test_what_is_missing_or_too_long_is_said(folders):
    backbone: Any = load_backbone(str(folders["florence-2"]))
    backbone.max_length = 24
    with pytest.raises(UserError, match=r"prompt with its image tokens has 25 tokens, but .* reads 24"):
        backbone.generate(IMAGES[:1], PROMPTS[:1], max_new_tokens=3)
    with pytest.raises(UserError, match="no room"):
        backbone.generate(IMAGES[1:2], [""], max_new_tokens=23)
    backbone = load_backbone(str(folders["blip-2 (T5)"]))
    backbone.processor.num_query_tokens = None
    with pytest.raises(UserError, match=r"puts no image token \(90\) in front of a prompt"):
        backbone.collate(EXAMPLES)
    backbone = load_backbone(str(folders["vit + gpt-2"]))
    backbone.model.generation_config.decoder_start_token_id = None
    with pytest.raises(UserError, match="Set decoder_start_token_id"):
        type(backbone)(backbone.model, backbone.processor, "mine")


@pytest.mark.parametrize(
    "name",
    [name if name in ("florence-2", "vit + gpt-2") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
@pytest.mark.parametrize("method", ["p-adapter", "adapter", "lora", "full", "prefix"])
@pytest.mark.in_turn("method")
def test_a_run_from_data_to_score(folders, tmp_path, name, method):
    task = {"florence-2": "entailment"}.get(name, "vqa") if name in READERS else "caption"
    a_run_from_data_to_score(folders[name], tmp_path / "run", task, method)


@pytest.mark.parametrize("name", ["florence-2", "pix2struct", "vit + gpt-2"])
def test_what_decides_pixels_can_be_written_down_and_had_again(folders, name):
    backbone: Any = load_backbone(str(folders[name]))
    record = json.loads(json.dumps(backbone.preprocessing()))
    expected = backbone.read(picture(), "what color")
    own = backbone.processor.image_processor
    other = {"max_patches": 6} if name == "pix2struct" else {"image_mean": [0.9, 0.9, 0.9]}
    backbone.processor.image_processor = type(own).from_dict({**own.to_dict(), **other})
    assert backbone.preprocessing() != record
    backbone.preprocess_as(record)
    assert backbone.preprocessing() == record
    found = backbone.read(picture(), "what color")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["blip-2 (T5)", "pix2struct"])
def test_training_pictures_are_changed_at_their_own_size(loaded, name):
    backbone = loaded[name]
    row = {"image": picture(0, (40, 60)), "question": "what color is it", "answers": ["red"], VISIT: (0, 3)}
    plain, turned = (
        Collator(backbone, get_task("vqa"), parse_augmentation(text), seed=1)([row])
        for text in ("none", "rotate:degrees=30:p=1")
    )
    pixels = "flattened_patches" if name == "pix2struct" else "pixel_values"
    assert turned[pixels].shape == plain[pixels].shape
    assert not torch.equal(turned[pixels], plain[pixels])
