"""The page shows what the model sees, and nothing in data becomes HTML."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padapter.data.fit import fit
from padapter.preview import PreviewOptions
from padapter.preview.page import preview, render, write_preview

sys.path.insert(0, str(Path(__file__).parent.parent / "backbones"))

SCRIPT = "<script>alert(1)</script> what is <b>this</b> ?"


def folder_of(root: Path, **splits) -> Path:
    """Pictures 0.png to 5.png, and rows by split; 9.png has the bytes of 0.png."""
    for number in range(6):
        values = np.arange(16 * 20 * 3, dtype=np.uint8).reshape(16, 20, 3) + number
        Image.fromarray(values).save(root / f"{number}.png")
    (root / "9.png").write_bytes((root / "0.png").read_bytes())
    for split, rows in splits.items():
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def asked(number, question="what is it ?", answer="red", **more):
    return {"image": f"{number}.png", "question": question, "answer": answer, **more}


def options(folder, **changes):
    return PreviewOptions(**{"data": str(folder), "output": str(folder / "page.html"), **changes})


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def test_nothing_in_data_becomes_html(tmp_path):
    evil = '"><img src=x onerror=alert(2)>'
    rows = [
        asked(0, SCRIPT, [evil, "</style><script>"], id=f"</title>{evil}"),
        asked(1, id="x"),
        asked("<i>missing", id="y"),
    ]
    folder = folder_of(tmp_path, train=rows)
    page = Page(render(preview(options(folder))))
    assert not {"script", "b", "i"} & set(page.tags) - {"b"}
    assert page.tags.count("img") == 4  # two rows, two pictures each
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    whole = " ".join(page.texts)
    assert "<script>alert1</script> what is <b>this</b>?" in whole  # the prompt, as the task cleans it
    assert SCRIPT in whole  # the row as it is
    assert evil in whole
    assert f"row </title>{evil}" in whole
    assert "<i>missing.png: image not found" in whole


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = Page(render(preview(options(folder_of(tmp_path, train=[asked(0), asked(1)])))))
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert links
    assert all(link.startswith("data:") for link in links)
    text = render(preview(options(tmp_path)))
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_prompt_targets_and_weights_are_the_tasks_own(tmp_path):
    folder = folder_of(tmp_path, train=[asked(0, "WHAT is it", ["red", "red", "blue"])])
    [sample] = preview(options(folder, prompt="Question: {question} Answer: ")).cards["train"]
    assert sample.prompt == "Question: what is it? Answer: "
    assert [(target.text, round(target.weight, 3)) for target in sample.targets] == [("red", 0.667), ("blue", 0.333)]
    assert sample.fields == [("question", "WHAT is it"), ("answers", "red | red | blue")]
    text = render(preview(options(folder, prompt=" {question} ")))
    assert text.count('title="1 spaces">␣') == 4  # both ends, of the template and of the row


def test_counts(tmp_path):
    train = [asked(n % 3, f"is it {n} ?", "yes" if n else "no") for n in range(4)]
    test = [asked(4, "how many are there ?", "two"), asked(5, "is it ?", "yes"), asked(5, "", "yes")]
    found = preview(options(folder_of(tmp_path, train=train, test=test)))
    assert [(s.name, s.rows, s.usable, s.pictures, s.answers, s.unseen) for s in found.splits] == [
        ("train", 4, 4, 3, 2, None),
        ("test", 3, 2, 2, 2, 1),
    ]
    charts = {chart.title: chart for chart in found.charts}
    answers = charts["Most frequent answers"].bars
    assert [(bar.label, bar.count, bar.size) for bar in answers] == [("yes", 4, 100), ("no", 1, 25), ("two", 1, 25)]
    assert [(bar.label, bar.count) for bar in charts["How questions begin"].bars] == [("is it", 5), ("how many", 1)]
    lengths = charts["Words per question"]
    assert [(bar.label, bar.count) for bar in lengths.bars if bar.count] == [("3", 1), ("4", 4), ("5", 1)]
    assert "Median 4, longest 5. None exceeds 20." in lengths.text
    assert found.problems == [f"{tmp_path / 'test.jsonl'}, line 3: question: is missing or empty"]


def test_long_texts_are_counted_as_cut(tmp_path):
    rows = [{"image": "0.png", "caption": "word " * 40}, {"image": "1.png", "captions": ["short one", "another"]}]
    found = preview(options(folder_of(tmp_path, train=rows)))
    chart = next(chart for chart in found.charts if chart.kind == "columns")
    assert "longest 40; each bar is 3 words wide. 1 of 3 are longer than 30 words and are cut." in chart.text
    assert sum(bar.count for bar in chart.bars) == 3
    assert [chart.title for chart in found.charts] == ["How captions begin", "Words per caption"]


def test_pictures_in_two_splits(tmp_path):
    folder = folder_of(tmp_path, train=[asked(0), asked(1), asked(2)], test=[asked(1), asked(9), asked(4)])
    shared = preview(options(folder)).shared
    assert [(same.count, same.some, same.by_content) for same in shared] == [
        (1, ["1.png"], False),
        (1, ["0.png = 9.png"], True),
    ]
    assert "also stands in test under another name: 0.png = 9.png" in " ".join(render(preview(options(folder))).split())
    assert preview(options(folder, split="test")).shared == []


def test_rows_are_chosen_by_the_seed_from_all_splits(tmp_path):
    train = [asked(n % 6, f"question {n}") for n in range(40)]
    folder = folder_of(tmp_path, train=train, test=train[:3])
    chosen = {seed: preview(options(folder, rows=10, seed=seed)).cards for seed in (0, 1)}
    assert {split: len(cards) for split, cards in chosen[0].items()} == {"train": 7, "test": 3}
    ids = {seed: [card.id for card in cards["train"]] for seed, cards in chosen.items()}
    assert ids[0] != ids[1]
    assert ids[0] == [card.id for card in preview(options(folder, rows=10)).cards["train"]]
    assert len(preview(options(folder, rows=99)).cards["train"]) == 40


def test_without_a_model_the_picture_is_squashed(tmp_path):
    [sample] = preview(options(folder_of(tmp_path, train=[asked(0)]))).cards["train"]
    assert (sample.original.says, [square.says for square in sample.squares]) == ("20 x 16", ["224 x 224"])
    assert opened(sample.original).tobytes() == Image.open(tmp_path / "0.png").tobytes()  # small ones bit for bit


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_size_and_shape_are_those_of_the_options_with_and_without_a_model(tmp_path, model, resize):
    """A red picture with a blue left half, twice as wide as high: only the padded one has grey margins."""
    folder = folder_of(tmp_path, train=[asked(0)])
    wide = Image.new("RGB", (64, 32), (250, 0, 0))
    wide.paste((0, 0, 250), (0, 0, 32, 32))
    wide.save(folder / "0.png")
    expected = np.asarray(fit(wide, (48, 48), resize, fill=(123, 117, 104)), dtype=int)
    for which in (None, model):
        found = preview(options(folder, model=which and str(which), image_size=48, resize=resize))
        (card,) = found.cards["train"]
        (square,) = card.squares
        shown = np.asarray(opened(square), dtype=int)
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).mean() < 2
        if which is None:
            assert {"squash": "squashed, 48 x 48", "crop": "cropped", "pad": "padded"}[resize] in render(found)


def opened(thumbnail) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(thumbnail.uri.partition(",")[2])))


def test_a_picture_that_turns_out_damaged(tmp_path):
    folder = folder_of(tmp_path, train=[asked(0), asked(1)])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    good = (folder / "1.png").read_bytes()
    middle = len(good) // 2
    (folder / "1.png").write_bytes(good[:middle] + bytes(20) + good[middle + 20 :])
    _, sample = preview(options(folder)).cards["train"]
    assert sample.original is None
    assert "1.png: is damaged" in sample.problem
    assert sample.problem in Page(render(preview(options(folder)))).texts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_blip import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model"))


def test_the_model_reads_the_rows(tmp_path, model):
    """Pixels and tokens are those of a training batch."""
    from padapter.backbones import TrainingExample, load_backbone
    from padapter.data import open_image

    folder = folder_of(tmp_path, train=[asked(0, "what color is the dog ?", ["red", "two cats"])])
    found = preview(options(folder, model=str(model)))
    [sample] = found.cards["train"]
    backbone = load_backbone(str(model))
    batch = backbone.collate(
        [TrainingExample(open_image(folder / "0.png"), "what color is the dog?", (("red", 0.5), ("two cats", 0.5)))]
    )
    assert sample.seen.prompt_tokens + sample.seen.target_tokens[0] == int(batch["attention_mask"][0].sum())
    assert [target.tokens for target in sample.targets] == (batch["labels"] >= 0).sum(dim=1).tolist() == [2, 4]
    assert not sample.seen.prompt_cut
    assert sample.seen.text.endswith("red [SEP]")
    [square] = sample.squares
    side = batch["pixel_values"].shape[-1]
    assert square.says == f"{side} x {side}"
    processor = backbone.processor.image_processor
    colours = batch["pixel_values"][0].permute(1, 2, 0).numpy() * processor.image_std + processor.image_mean
    np.testing.assert_allclose(np.asarray(opened(square)), colours * 255, atol=0.51)
    assert f"{sample.seen.prompt_tokens} tokens" in render(found)


def test_what_the_model_cuts(tmp_path, model):
    folder = folder_of(tmp_path, train=[asked(0, "what color is the dog ?", ["red " * 300, "blue"])])
    found = preview(options(folder, model=str(model)))
    [sample] = found.cards["train"]
    assert sample.seen.prompt_cut
    assert sample.seen.targets_cut == 1
    assert sample.targets[0].tokens == sample.seen.room - 1
    assert '<span class="cut">1 cut</span>' in render(found)
    assert '<span class="cut">beginning cut</span>' in render(found)


def test_a_model_with_tiles(tmp_path):
    """Of a decoder-only model: image tokens are counted, not listed, and its picture is drawn."""
    from tiny_image_text import save

    model = save("idefics3", tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    [sample] = preview(options(folder_of(data, train=[asked(0)]), model=str(model))).cards["train"]
    assert sample.squares
    assert re.search(r" x \d+", sample.seen.text)
    assert sample.seen.prompt_tokens > 10


def test_a_file_is_called_by_its_name_and_a_world_by_its_split(tmp_path):
    folder = folder_of(tmp_path, test=[asked(0)])
    assert list(preview(options(folder, data=str(folder / "test.jsonl"))).cards) == ["test.jsonl"]
    found = preview(options(folder, data="shapes:source:test:2", task="entailment"))
    assert [split.name for split in found.splits] == ["test"]
    assert {card.image for card in found.cards["test"]} == {f"source-test-00000{n}.png" for n in range(2)}


def test_writing(tmp_path):
    folder = folder_of(tmp_path, train=[asked(0)])
    done = write_preview(options(folder))
    assert (folder / "page.html").read_text(encoding="utf-8") == render(done)
    write_preview(options(folder, overwrite=True))


def test_a_split_without_public_answers(tmp_path, model):
    for split in ("val", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 16), "red").save(tmp_path / split / f"VizWiz_{split}_00000000.jpg")
    (tmp_path / "Annotations").mkdir()
    question = {"question": "What is it?"}
    answers = [{"answer": "cup", "answer_confidence": "yes"}] * 10
    for split, more in (("val", {"answers": answers, "answer_type": "other", "answerable": 1}), ("test", {})):
        row = {"image": f"VizWiz_{split}_00000000.jpg", **question, **more}
        (tmp_path / f"Annotations/{split}.json").write_text(json.dumps([row]))
    found = preview(options(tmp_path, data=f"vizwiz-vqa:{tmp_path}", model=str(model)))
    assert {counts.name: (counts.usable, counts.answers, counts.unseen) for counts in found.splits} == {
        "val": (1, 1, None),
        "test": (1, 0, None),
    }
    assert [bar.share for bar in found.charts[0].bars] == [100]  # of the rows that have answers
    [answered], [kept_back] = found.cards["val"], found.cards["test"]
    assert kept_back.targets == []
    assert kept_back.seen.problem is None
    assert kept_back.seen.prompt_tokens == answered.seen.prompt_tokens
    assert len(kept_back.squares) == len(answered.squares) == 1
    assert "yes" not in kept_back.seen.text
    assert "none: the answers are not public" in render(found)
    only = preview(options(tmp_path, data=f"vizwiz-vqa:{tmp_path}", split="test"))
    assert [chart.title for chart in only.charts] == ["How questions begin", "Words per question"]
