"""Prefix tuning of encoder-decoders, against attention that is written out with keys and values in front."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_image_text import save
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from padapter.architectures import AttentionSite, find_sites
from padapter.backbones import TrainingExample, load_backbone
from padapter.errors import UserError
from padapter.methods import get_method
from padapter.methods.prefix_model import STACKS

#: One family for each way in which a decoder knows positions, and each text configuration's names of sizes.
NAMES = ["blip-2 (T5)", "florence-2", "pix2struct", "vit + gpt-2", "vit + trocr"]
VIRTUAL = 3
IMAGES = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue")]
PROMPTS = ["what color is the thing ?", "is the red ?"]
EXAMPLES = [
    TrainingExample(image, prompt, (("red", 1.0), ("a blue thing", 0.5)))
    for image, prompt in zip(IMAGES, PROMPTS, strict=True)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: save(name, tmp_path_factory.mktemp("models") / str(i)) for i, name in enumerate(NAMES)}


def with_prefix(folder: Path, **how: Any) -> Any:
    backbone = load_backbone(str(folder), **how)
    method = get_method("prefix")
    torch.manual_seed(3)
    method.apply(backbone, method.parse({"num_virtual_tokens": VIRTUAL}))
    return backbone


@pytest.fixture(scope="module")
def prefixed(folders) -> Any:
    """Backbones with a prefix that no test changes."""
    return functools.cache(lambda name: with_prefix(folders[name]))


def in_front(model: Any, prefix: torch.Tensor) -> Any:
    """An attention function that puts a prefix (n, layers, 2, H, d) in front of the decoder's self-attention."""
    found = (site for site in find_sites(model).values() if isinstance(site, AttentionSite))
    sites = [site for site in found if site.part == "decoder" and not site.cross]
    order = [model.get_submodule(name) for name in sorted(site.name for site in sites)]
    assert len(order) == prefix.shape[1]
    place = {id(module): layer for layer, module in enumerate(order)}
    distances = getattr(order[0], "compute_bias", None)

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **more: Any) -> Any:
        mask, bias = attention_mask, more.get("position_bias")
        layer = place.get(id(module))
        if layer is not None:
            size, length = query.shape[0], query.shape[2]
            before = prefix[:, layer].permute(1, 2, 0, 3).expand(size, -1, -1, -1, -1)  # rows, key or value, H, n, d
            key, value = torch.cat([before[:, 0], key], 2), torch.cat([before[:, 1], value], 2)
            mask = torch.nn.functional.pad(mask, (VIRTUAL, 0))
            if bias is not None:  # the prefix stands where tokens before the text would
                bias = distances(length, length + VIRTUAL, past_seen_tokens=VIRTUAL)
        scores = query @ key.mT * scaling
        for added in (mask, bias):
            scores = scores if added is None else scores + added
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    return attend


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vit + trocr"])  # it computes attention itself
def test_it_is_keys_and_values_in_front_of_the_text(folders, name, monkeypatch):
    backbone = with_prefix(folders[name], attention="eager")
    module = backbone.training_module("sequence").eval()
    batch = backbone.collate(EXAMPLES)
    with torch.no_grad():
        found = module(**batch)["logits"]
        prefix = backbone.model.prompt_encoder["default"].embedding.weight.detach()
        model = backbone.model = backbone.model.unload()
        without = backbone.training_module("sequence").eval()(**batch)["logits"]
        heads = backbone.model.config.get_text_config().num_attention_heads
        attend = in_front(model, prefix.view(VIRTUAL, -1, 2, heads, prefix.shape[1] // 4 // heads))
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "eager", attend)
        expected = backbone.training_module("sequence").eval()(**batch)["logits"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 0.1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "pix2struct" else name for name in NAMES]
)
def test_scores_and_texts_are_those_of_whole_passes(prefixed, name, monkeypatch):
    backbone = prefixed(name)
    backbone.continuations.remembers = None
    words = ["red", "a blue thing"]
    scores = torch.tensor(backbone.rank(IMAGES, PROMPTS, words))
    assert backbone.continuations.remembers
    module = backbone.training_module("sequence").eval()
    for row, (image, prompt) in enumerate(zip(IMAGES, PROMPTS, strict=True)):
        for column, word in enumerate(words):
            with torch.no_grad():
                loss = module(**backbone.collate([TrainingExample(image, prompt, ((word, 1.0),))]))["loss"]
            assert float(scores[row, column]) == pytest.approx(-float(loss), abs=1e-4)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 2}
    writing, written = backbone.base_model.generate, []
    for cache in (True, False):
        monkeypatch.setattr(
            backbone.base_model,
            "generate",
            lambda use_cache=cache, **inputs: written.append(writing(**inputs, use_cache=use_cache)) or written[-1],
        )
        backbone.generate(IMAGES, PROMPTS, **settings)
    ids, half = [found.tolist() for found in written], len(written) // 2
    assert ids[:half] == ids[half:]


@pytest.mark.parametrize(("name", "kind"), [("florence-2", "bart"), ("vit + gpt-2", "gpt2"), ("vit + trocr", "trocr")])
def test_positions_of_the_text_stay(prefixed, name, kind):
    backbone = prefixed(name)
    backbone.continuations.remembers = True  # no trial
    decoder = backbone.base_model.get_submodule(
        STACKS["vision-encoder-decoder" if "vit" in name else "florence2", kind].path
    )
    table = decoder.get_submodule("wpe" if kind == "gpt2" else "embed_positions")
    seen: list[torch.Tensor] = []
    handle = table.register_forward_hook(lambda *call: seen.append(call[-1].reshape(-1, call[-1].shape[-1])))
    backbone.rank(IMAGES[:1], PROMPTS[:1], ["a blue thing"])
    with_it = list(seen)
    seen.clear()
    with backbone.model.disable_adapter():
        backbone.rank(IMAGES[:1], PROMPTS[:1], ["a blue thing"])
    handle.remove()
    assert len(with_it) == len(seen) == 2
    for one, other in zip(with_it, seen, strict=True):
        torch.testing.assert_close(one, other)


def test_a_saved_prefix_is_had_again(folders, prefixed, tmp_path):
    backbone = prefixed("florence-2")
    expected = backbone.rank(IMAGES, PROMPTS, ["red", "blue"])
    get_method("prefix").save(backbone, tmp_path)
    other: Any = load_backbone(str(folders["florence-2"]))
    assert other.rank(IMAGES, PROMPTS, ["red", "blue"]) != expected
    get_method("prefix").load(other, tmp_path)
    assert other.rank(IMAGES, PROMPTS, ["red", "blue"]) == expected


def test_other_decoders_are_refused_by_name(folders):
    backbone: Any = load_backbone(str(folders["vit + gpt-2"]))
    backbone.model.config.decoder.model_type = "bert"
    with pytest.raises(UserError, match=r"'vision-encoder-decoder' with text of type 'bert'.*blip-2 with t5, .*trocr"):
        get_method("prefix").apply(backbone, get_method("prefix").parse({}))
