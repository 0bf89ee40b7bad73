from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
import torch
from tiny_blip import make_backbone, make_model, make_processor, save_tiny
from transformers import BertConfig, BertTokenizer, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from padapter.architectures.blip import FUSED
from padapter.backbones import BACKBONES, BlipBackbone, load_backbone
from padapter.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "tiny")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_saved_model_is_read_back(folder, images):
    loaded, original = load_backbone(folder), make_backbone()
    assert isinstance(loaded, BlipBackbone)
    assert loaded.name == folder
    assert loaded.model.name_or_path == folder
    assert (loaded.start_id, loaded.end_id, loaded.pad_id, loaded.max_length) == (44, 3, 0, 40)
    prompts = ["what color is the dog?"] * 4
    assert loaded.generate(images, prompts) == original.generate(images, prompts)


def test_the_image_processor_needs_no_torchvision(folder):
    assert type(load_backbone(folder).processor.image_processor) is BlipImageProcessorPil


def test_attention_is_fused_unless_asked(folder):
    found = {}
    for attention in (None, "sdpa", "eager"):
        backbone = load_backbone(folder) if attention is None else load_backbone(folder, attention=attention)
        found[attention] = {type(module) for module in backbone.model.modules()} & {*FUSED.keys(), *FUSED.values()}
    assert found == {None: {*FUSED.values()}, "sdpa": {*FUSED.values()}, "eager": {*FUSED.keys()}}
    with pytest.raises(UserError, match="attention 'flash' is not one of sdpa, eager"):
        load_backbone(folder, attention="flash")


def test_weights_are_float32_unless_asked(folder, tmp_path):
    half = tmp_path / "half"
    make_model().half().save_pretrained(str(half))
    make_processor().save_pretrained(str(half))
    assert {p.dtype for p in load_backbone(str(half)).model.parameters()} == {torch.float32}
    assert {p.dtype for p in load_backbone(folder, dtype="bfloat16").model.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="dtype 'int8'"):
        load_backbone(folder, dtype="int8")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "../x"])
def test_a_wrong_path(name):
    with pytest.raises(UserError, match="there is no such folder"):
        load_backbone(name)


def test_a_file_or_a_folder_without_a_model(folder, tmp_path):
    with pytest.raises(UserError, match="is a file"):
        load_backbone(f"{folder}/config.json")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_backbone(str(tmp_path))


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is a PEFT adapter, not a model"):
        load_backbone(str(tmp_path))


def test_an_unknown_family_lists_the_known_ones(tmp_path):
    BertConfig().save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"type 'bert', which is no image-text.*Known model types: .*blip, .*llava, "):
        load_backbone(str(tmp_path))
    assert list(BACKBONES) == ["blip", "mplug"]


def test_a_hub_id_while_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder here nor a model that can be fetched"):
        load_backbone("someone/some-model-that-is-not-cached")


def test_another_blip_model_lacks_no_weight_silently(tmp_path):
    config = make_model().config
    BlipForQuestionAnswering(config).save_pretrained(str(tmp_path))
    make_processor().save_pretrained(str(tmp_path))
    loaded = load_backbone(str(tmp_path))  # has image tower and decoder; its text encoder is not used
    assert loaded.generate([], []) == []
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "crossattention" not in k or not k.startswith("text_decoder")},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"not a BLIP captioning model.*are missing"):
        load_backbone(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    make_model().save_pretrained(str(tmp_path))
    processor = make_processor()
    processor.tokenizer = BertTokenizer(
        vocab={w: i for i, w in enumerate(["a", "b", "[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    )
    processor.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="tokenizer disagree: end token 3"):
        load_backbone(str(tmp_path))


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    make_model().save_pretrained(str(tmp_path))
    processor = make_processor()
    processor.tokenizer.add_tokens(["new", "words"])
    processor.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="embeds 46 tokens, but its tokenizer has 48"):
        load_backbone(str(tmp_path))


def test_an_image_processor_of_another_size_is_refused(folder, tmp_path):
    edit(tmp_path / "tiny" / "processor_config.json", lambda c: c["image_processor"]["size"].update(height=32))
    with pytest.raises(UserError, match=r"16 x 16.*32 x 16"):
        load_backbone(folder)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    make_model().save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("length", [1, 41])
def test_max_length_beyond_the_positions_is_refused(length):
    with pytest.raises(UserError, match="between 2 and 40"):
        BlipBackbone(make_model(), make_processor(), "tiny", max_length=length)


def test_a_damaged_weight_file_is_refused(folder, tmp_path):
    weights = tmp_path / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(folder)


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    edit(tmp_path / "tiny" / "config.json", lambda c: c["text_config"].update(intermediate_size=80))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(folder)


def test_a_built_in_name_is_its_folder(folder, monkeypatch):
    monkeypatch.setattr("padapter.backbones.loading.builtin_path", lambda name: {"shapes-blip": folder}.get(name))
    assert load_backbone("shapes-blip").model.name_or_path == "shapes-blip"


def test_a_built_in_model_without_files_says_so(monkeypatch):
    def missing(name):
        raise FileNotFoundError("not in this installation")

    monkeypatch.setattr("padapter.backbones.loading.builtin_path", missing)
    with pytest.raises(UserError, match="not in this installation"):
        load_backbone("shapes-blip")


def test_the_command_line_offers_what_backbones_take():
    """Two constants, because options import no torch and backbones no options."""
    from padapter import options
    from padapter.backbones import base

    assert options.ATTENTIONS == base.ATTENTIONS
