"""What is refused, by name, and what is never left behind."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_blip import PARTS, PUBLISHED, WORDS, Sizes, official, save, shapes_of, write_vocabulary
from tiny_blip import make_processor
from transformers import BertTokenizer
from typer.testing import CliRunner

from padapter.checkpoints import convert_checkpoint
from padapter.checkpoints.blip import model as conversion
from padapter.checkpoints.blip.names import layout
from padapter.checkpoints.blip.processor import wrong_ids
from padapter.checkpoints.blip.sizes import sizes_of
from padapter.checkpoints.layout import Layout, problems, together
from padapter.checkpoints.vocabulary import check_bert_ids
from padapter.cli import app
from padapter.errors import UserError

HEAD = "text_decoder.cls.predictions"


@pytest.fixture
def convert(tmp_path):
    """Saves a state (or converts a file) into ``out``; nothing else may be left beside it."""

    def run(state, **options):
        given = state if isinstance(state, Path) else save(tmp_path / "official.pth", state)
        words = {"vocab": write_vocabulary(tmp_path / "vocab.txt"), "output": str(tmp_path / "out")}
        before = sorted(tmp_path.iterdir())
        try:
            return convert_checkpoint("blip", checkpoint=str(given), **{**words, **options})
        finally:
            assert sorted({*tmp_path.iterdir()} - {tmp_path / "out"}) == [p for p in before if p.name != "out"]

    return run


def test_everything_wrong_is_named_at_once(convert, tmp_path):
    state = official("pretraining")
    state["visual_encoder.head.weight"] = torch.zeros(2)
    state["text_decoder.bert.encoder.layer.2.output.dense.weight"] = torch.zeros(2)
    state["visual_encoder_m.blocks.0.extra"] = torch.zeros(1)
    del state["visual_encoder.norm.bias"]
    for layer in (0, 1):
        del state[f"text_decoder.bert.encoder.layer.{layer}.crossattention.self.key.bias"]
    state["visual_encoder.blocks.1.mlp.fc2.weight"] = torch.zeros(128, 95)
    state["text_decoder.bert.embeddings.LayerNorm.weight"] = torch.full((64,), float("nan"))
    state[f"{HEAD}.transform.dense.bias"] = torch.zeros(64, dtype=torch.long)
    with pytest.raises(UserError) as caught:
        convert(state)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("official.pth is no official BLIP checkpoint for the caption arrangement:")
    unknown, missing, shape, integer, nan = lines[1:]
    assert "visual_encoder.head.weight" in unknown
    assert "visual_encoder_m.blocks.0.extra" in unknown
    assert missing.startswith("  missing: visual_encoder.norm.bias")
    assert "text_decoder.bert.encoder.layer.{0-2}.crossattention.self.key.bias" in missing
    fc2, other = "visual_encoder.blocks.1.mlp.fc2.weight", "text_decoder.bert.encoder.layer.2.output.dense.weight"
    assert f"wrong shape: {fc2} is (128, 95) and should be (128, 96), {other} is (2,) and should be (64, 80)" in shape
    assert integer == f"  not floating point: {HEAD}.transform.dense.bias"
    assert nan == "  with infinities or NaN: text_decoder.bert.embeddings.LayerNorm.weight"
    # Of a third layer only one entry is there, so all its others are missing.
    assert "text_decoder.bert.encoder.layer.2.intermediate.dense.weight" in missing
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", list(PARTS))
def test_each_entry_is_needed(kind):
    """Every name of the table is either moved or dropped for a reason; without it, a moved one is missing."""
    state = official(kind)
    done = layout("caption").sort(state)
    assert done.unknown == []
    assert done.foreign == {}
    assert len(done.moved) + sum(map(len, done.dropped.values())) == len(state)
    for name, target in done.moved.items():
        assert layout("caption").source_of(target) == name


def test_a_file_without_its_last_layer_is_no_smaller_published_model():
    """Twelve layers belong to width 768, so that a truncated file is noticed."""
    found = shapes_of("captioning", replace(PUBLISHED, vision_layers=11, text_layers=10))
    sizes, table = sizes_of(found), layout("caption")
    (missing,) = problems(table.sort(found), found, conversion.wanted_shapes(sizes, "caption"), table)
    assert missing.startswith("missing: ")
    assert "visual_encoder.blocks.11.norm1.weight" in missing
    assert "text_decoder.bert.encoder.layer.{10-11}.output.dense.bias" in missing


def test_a_retrieval_file_lacks_the_decoder(convert):
    state = {name: value for name, value in official("pretraining").items() if not name.startswith("text_decoder")}
    with pytest.raises(UserError, match=r"missing: text_decoder\.bert\.embeddings"):
        convert(state)


def test_question_answering_needs_its_parts(convert):
    with pytest.raises(UserError, match=r"missing: text_encoder\.embeddings"):
        convert(official("captioning"), arrangement="vqa")
    with pytest.raises(UserError, match=r"widths: .* image tower \(128\) and text encoder \(64\)"):
        convert(official("pretraining"), arrangement="vqa")


def test_odd_shapes(convert):
    with pytest.raises(UserError, match="visual_encoder is 96 wide, which is no multiple of 64"):
        convert(official("captioning", Sizes(vision=96)))
    state = official("captioning")
    state["visual_encoder.pos_embed"] = state["visual_encoder.pos_embed"][:, :-1]
    with pytest.raises(UserError, match=r"wrong shape: visual_encoder.pos_embed is \(1, 9, 128\)"):
        convert(state)
    state["visual_encoder.pos_embed"] = torch.zeros(3)
    state[f"{HEAD}.bias"] = torch.zeros(())
    with pytest.raises(UserError, match=rf"{HEAD}.bias is \(\) and should be \(46,\)"):
        convert(state)
    with pytest.raises(UserError, match="--image-size: 14 is no multiple of the model's patches of 4 pixels"):
        convert(official("captioning"), image_size=14)


def test_adapters_of_the_authors_are_called_by_name(convert):
    state = official("captioning")
    layer = "text_decoder.bert.encoder.layer.1"
    for name in ("text_laplacian_adapter_i.weight", "text_laplacian_adapter_gate.bias", "laplacian_adapter_p"):
        state[f"{layer}.attention.output.{name}"] = torch.zeros(1)
        state[f"{layer}.crossattention.output.{name}"] = torch.zeros(1)
    state[f"{layer}.output.text_ffn_adapter.2.bias"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"7 entries of adapters of the p-adapter authors' code.*laplacian_adapter_p"):
        convert(state)


def test_vocabularies_that_do_not_fit(convert, tmp_path):
    state = official("captioning")

    def vocabulary(*words):
        return write_vocabulary(tmp_path / "other.txt", list(words))

    with pytest.raises(UserError, match=r"43 tokens, with \[DEC\] and \[ENC\] 45, but CHECKPOINT embeds 46"):
        convert(state, vocab=vocabulary(*WORDS[:-1]))
    with pytest.raises(UserError, match="line 22: 'dog' stands in line 6 too"):
        convert(state, vocab=vocabulary(*WORDS[:5], "dog", *WORDS[6:]))
    with pytest.raises(UserError, match="line 44: is empty"):
        convert(state, vocab=vocabulary(*WORDS[:-1], ""))
    with pytest.raises(UserError, match=r"other.txt lacks \[SEP\]"):
        convert(state, vocab=vocabulary(*WORDS[:3], "new", *WORDS[4:]))
    with pytest.raises(UserError, match="nowhere cannot be read"):
        convert(state, vocab=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("connection", ["refused", "without a word"])
def test_without_a_vocabulary_the_hub_is_asked(convert, monkeypatch, connection):
    def offline(name, **_options):
        assert name == "google-bert/bert-base-uncased"
        if connection == "refused":
            raise OSError("no connection")
        return BertTokenizer()  # what transformers 5 makes of a hub that it cannot reach

    monkeypatch.setattr("padapter.checkpoints.vocabulary.BertTokenizer.from_pretrained", offline)
    with pytest.raises(UserError, match=r"--vocab: google-bert/bert-base-uncased is neither.*--vocab FILE"):
        convert(official("captioning"), vocab=None)


def test_ids_of_the_tokenizer_are_checked_for_any_vocabulary():
    tokenizer = make_processor().tokenizer
    assert wrong_ids(tokenizer, 46) == []
    assert wrong_ids(tokenizer, 45) == [
        "46 tokens instead of 45",
        "[DEC] is 44 instead of 43",
        "[ENC] is 45 instead of 44",
    ]
    tokenizer.bos_token = "[CLS]"
    assert wrong_ids(tokenizer, 46) == ["texts start with [CLS] instead of [DEC]"]
    assert check_bert_ids(tokenizer, 44) == []
    # As if it were BERT's own: ids and lengths of known texts are compared.
    other = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS[:5], "a", "of", "pic", "##ture"])})
    wrong = check_bert_ids(other, 30522)
    assert "[SEP] is 3 instead of 102" in wrong
    assert "correct is 1 instead of 6149" in wrong
    assert "'a picture of ' gives 6 ids instead of 5" in wrong
    assert not any(line.startswith("[PAD]") for line in wrong)


class Evil:
    """What a hostile file does when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_are_read_without_running_anything(convert, tmp_path):
    state, trap = official("captioning"), tmp_path / "trap"
    file = Path(save(tmp_path / "evil.pth", state, config=Evil(str(trap))))
    with pytest.raises(UserError, match=r"holds Python objects beside tensors \(\w+\.mkdir\).*--trust-pickle"):
        convert(file)
    assert not trap.exists()
    old = Path(tmp_path / "old.pth")
    torch.save({"model": state, "config": Evil(str(trap))}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"holds Python objects beside tensors \(\w+\.mkdir\)"):
        convert(old)
    assert not trap.exists()


def test_trusted_files_may_hold_objects(convert, tmp_path):
    file = Path(save(tmp_path / "run.pth", official("pretraining"), config=argparse.Namespace(lr=1), epoch=3))
    with pytest.raises(UserError, match=r"\(argparse\.Namespace\)"):
        convert(file)
    with pytest.warns(UserWarning, match="--trust-pickle: .* lets it run any code"):
        assert convert(file, trust_pickle=True).model == "BlipForConditionalGeneration"


def test_optimizer_and_plain_configuration_need_no_trust(convert, tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    others = {"optimizer": optimizer.state_dict(), "config": {"lr": 1e-4, "vit": "base"}, "epoch": 19}
    assert convert(Path(save(tmp_path / "run.pth", official("captioning"), **others))).notes == []


def test_what_is_no_checkpoint(convert, tmp_path):
    def written(content: bytes) -> Path:
        (tmp_path / "x.pth").write_bytes(content)
        return tmp_path / "x.pth"

    def saved(value) -> Path:
        torch.save(value, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    for trust in (False, True):
        for content, words in (
            (b"<html>not found</html>", "is not a file of torch.save: it is an HTML page"),
            (b"", r"is not a file of torch.save: it is empty \(0 bytes\)"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is not a file of torch.save: it is a Git LFS pointer"),
            (b"\x1f\x8b\x08 packed", "is not a file of torch.save: it is compressed"),
            (b".", r"is not a file of torch.save: it is text, beginning with b'\.'$"),
            (b"\xfe\xff\x00", "is not a file of torch.save: it is neither a zip archive nor a pickle"),
            (b"\x10" + bytes(7) + b'{"a":{}}', "is not a file of torch.save: it looks like a safetensors file"),
            (b"PK\x03\x04 cut off", "is damaged or cut off"),
            (b"\x80\x02.", "is damaged or cut off; fetch it again"),
        ):
            with pytest.raises(UserError, match=rf"x\.pth {words}"):
                convert(written(content), trust_pickle=trust)
    whole = Path(save(tmp_path / "whole.pth", official("captioning"))).read_bytes()
    with pytest.raises(UserError, match=r"x\.pth is damaged or cut off"):
        convert(written(whole[: len(whole) // 2]))
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.pth"):
        convert(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="is a folder"):
        convert(tmp_path)
    with pytest.raises(UserError, match=r"holds no weights under 'model' \(it holds: a, b\)"):
        convert(saved({"a": 1, "b": 2}))
    with pytest.raises(UserError, match="holds a list instead of a dictionary"):
        convert(saved([1]))
    with pytest.raises(UserError, match="not a tensor: epoch"):
        convert(saved({"model": {"epoch": 3}}))


@pytest.mark.parametrize("step", ["make_processor", "write_origin", "check_written", "check_processor"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_writing_leaves_nothing(convert, tmp_path, monkeypatch, step, stop):
    def fail(*_args, **_kwargs):
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(conversion, step, fail)
        with pytest.raises((KeyboardInterrupt, OSError)):
            convert(official("captioning"))
    assert not (tmp_path / "out").exists()
    if step == "write_origin":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("kept")
        monkeypatch.setattr(conversion, step, fail)
        with pytest.raises((KeyboardInterrupt, OSError)):
            convert(official("captioning"), overwrite=True)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_reads_back_differently_is_not_kept(convert, tmp_path, monkeypatch):
    def corrupt(folder, *_args, **_facts):
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(conversion, "write_origin", corrupt)
    with pytest.raises(RuntimeError, match=r"does not read back: different: \['\w+"):
        convert(official("captioning"))
    assert not (tmp_path / "out").exists()


def test_existing_folders(convert, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert(official("captioning"))  # an empty folder is as good as none
    assert (out / "config.json").is_file()
    with pytest.raises(UserError, match=r"DST: .* is not empty; choose another folder, or --overwrite"):
        convert(official("captioning"))
    (out / "stale.bin").write_text("")
    convert(official("captioning"), overwrite=True)
    assert not (out / "stale.bin").exists()
    inside = Path(save(out / "official.pth", official("captioning")))
    with pytest.raises(UserError, match="holds CHECKPOINT, which would go with it"):
        convert(inside, overwrite=True)
    assert inside.is_file()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        convert(official("captioning"), output=str(file))


def test_formats_and_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no format 'blib'; did you mean 'blip'"):
        convert_checkpoint("blib")
    file, words = save(tmp_path / "official.pth", official("captioning")), write_vocabulary(tmp_path / "vocab.txt")
    out = tmp_path / "models" / "blip"
    shown = CliRunner().invoke(app, ["convert", "blip", file, str(out), "--vocab", words, "--image-size", "16"])
    assert shown.exit_code == 0, shown.output
    assert "BlipForConditionalGeneration, 16 px" in shown.stdout
    assert "positions interpolated from 3 x 3 to 4 x 4 patches" in shown.stdout
    again = CliRunner().invoke(app, ["convert", "blip", file, str(out), "--vocab", words])
    assert again.exit_code == 2
    assert "error: DST:" in again.stderr
    assert CliRunner().invoke(app, ["convert", "blip"]).exit_code == 2
    for bad, message in ((("--image-size", "0"), "at least 1"), (("--arrangement", "itm"), "not one of caption, vqa")):
        shown = CliRunner().invoke(app, ["convert", "blip", file, "x", *bad])
        assert (shown.exit_code, message in shown.stderr) == (2, True)


def test_tables_read_in_both_directions():
    table = Layout({"a.{i}.{w:key|value}.x": "b.{w}.{i}", "c": "d"}, {"e{m:|_m}": "left"}, {"f.{i}": "other"})
    assert table.target_of("a.12.key.x") == "b.key.12"
    assert table.source_of("b.value.3") == "a.3.value.x"
    assert table.target_of("a.12.query.x") is None
    assert table.source_of("b.query.3") is None
    done = table.sort(["a.0.key.x", "c", "e", "e_m", "f.1", "g", "axb"])
    assert done.moved == {"a.0.key.x": "b.key.0", "c": "d"}
    assert (done.dropped, done.foreign, done.unknown) == ({"left": ["e", "e_m"]}, {"other": ["f.1"]}, ["g", "axb"])
    assert together(["x.0.w", "x.2.w", "x.1.w", "y", "x.1.b", "x.5.w"]) == ["x.{0-2,5}.w", "y", "x.1.b"]


def test_sizes_of_these_tests_differ_from_one_another():
    """So that no transposed or mistaken size can pass."""
    sizes = [Sizes().vision, Sizes().vision_mlp, Sizes().text, Sizes().text_mlp, Sizes().words, Sizes().positions]
    assert len(set(sizes)) == len(sizes)
    assert replace(Sizes(), text=64) == Sizes()
