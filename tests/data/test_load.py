from __future__ import annotations

import json
import os
import sys
import unicodedata
from dataclasses import dataclass, replace

import datasets
import pytest
from data_cases import CAPTION, ENTAILMENT, VQA, picture, problems, vqa_file, vqa_row, write_jsonl
from PIL import Image

from padapter.data import check_data, load_data, open_image
from padapter.data.stores import ColumnImages, FolderImages
from padapter.errors import UserError


def test_columns_and_types(tmp_path):
    path = vqa_file(tmp_path, vqa_row(id=7, answer=2), vqa_row(id="x", image="b.png", answers=["yes", "no"]))
    loaded = load_data(str(path), VQA)
    assert loaded.dataset.column_names == ["id", "question", "answers", "image"]
    assert loaded.dataset["id"][:] == ["7", "x"]
    assert loaded.dataset["answers"][:] == [["2"], ["yes", "no"]]
    assert loaded.dataset.features["image"] == datasets.Image(decode=False)
    assert loaded.dataset[0]["image"] == {"bytes": None, "path": str(tmp_path / "a.png")}
    assert (loaded.name, loaded.split) == ("train.jsonl", "train")
    assert loaded.report.ok


def test_every_task(tmp_path):
    picture(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "e.jsonl", [{"image": "a.png", "hypothesis": "A thing.", "label": "true"}])
    assert load_data(str(path), ENTAILMENT).dataset[0]["label"] == "true"
    path = write_jsonl(tmp_path / "c.jsonl", [{"image": "a.png", "caption": "A thing."}])
    row = load_data(str(path), CAPTION).dataset[0]
    assert (row["id"], row["captions"]) == ("c-1", ["A thing."])
    assert open_image(row["image"]).size == (8, 8)


def test_bad_rows_are_refused_by_default_and_skipped_on_request(tmp_path):
    path = vqa_file(tmp_path, vqa_row(), vqa_row(id="2", answer=None), vqa_row(id="3", image="gone.png"))
    with pytest.raises(UserError) as refusal:
        load_data(str(path), VQA)
    text = str(refusal.value)
    assert "2 of 3 rows cannot be used; 2 problems" in text
    assert f"{path}, line 2: answer: is missing or empty" in text
    assert "gone.png: image not found" in text
    assert "padapter data check" in text
    assert "--skip-bad-rows" in text
    loaded = load_data(str(path), VQA, skip_bad_rows=True)
    assert loaded.dataset["id"][:] == ["1"]
    assert (loaded.report.rows, loaded.report.good, loaded.report.bad) == (3, 1, 2)
    assert "2 bad rows skipped" in loaded.report.notes


def test_a_target_that_shows_nothing_is_reported_with_its_place(tmp_path):
    file = vqa_file(tmp_path, vqa_row(), vqa_row(id="2", answer="\u200b\ufeff"))
    (found,) = check_data(str(file), VQA).problems
    assert str(found).startswith(f"{file}, line 2: answer: has no visible character: ")


def test_a_long_list_of_problems_is_cut(tmp_path):
    path = vqa_file(tmp_path, vqa_row(), *(vqa_row(id=str(n), question="") for n in range(2, 30)))
    with pytest.raises(UserError, match=r"28 of 29 rows[\s\S]*and 18 more"):
        load_data(str(path), VQA)


def test_nothing_left_is_never_an_empty_data_set(tmp_path):
    path = vqa_file(tmp_path, vqa_row(answer=None))
    with pytest.raises(UserError, match="1 of 1 rows") as refusal:
        load_data(str(path), VQA, skip_bad_rows=True)
    assert "--skip-bad-rows" not in str(refusal.value)
    picture(tmp_path / "a.png")
    path = write_jsonl(tmp_path / "e.jsonl", [{"image": "a.png", "hypothesis": "A thing.", "label": "-"}])
    with pytest.raises(UserError, match="none of the 1 rows can be used"):
        load_data(str(path), ENTAILMENT)


def test_a_list_that_breaks_off_cannot_be_skipped_over(tmp_path):
    path = vqa_file(tmp_path)
    path.write_text(json.dumps([vqa_row(), vqa_row(id="2")])[:-20])
    with pytest.raises(UserError, match="reading stopped here"):
        load_data(str(path), VQA, skip_bad_rows=True)


def damaged_in_the_middle(path):
    Image.effect_noise((64, 64), 50).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_skipping_decodes_so_that_damage_in_the_middle_is_skipped_and_counted(tmp_path):
    path = vqa_file(tmp_path, vqa_row(), vqa_row(id="2", image="b.png"), vqa_row(id="3", image="b.png"))
    damaged_in_the_middle(tmp_path / "b.png")
    assert load_data(str(path), VQA).report.good == 3  # plain loading stays cheap
    loaded = load_data(str(path), VQA, skip_bad_rows=True)
    assert loaded.dataset["id"][:] == ["1"]
    assert (loaded.report.good, loaded.report.bad) == (1, 2)
    assert "2 bad rows skipped" in loaded.report.notes
    ((line, name, message),) = problems(loaded.report)
    assert (line, name) == (2, "image")
    assert "b.png: is damaged" in message


def test_data_of_another_task_are_one_message(tmp_path):
    path = vqa_file(tmp_path, *(vqa_row(id=str(n)) for n in range(5)))
    with pytest.raises(UserError) as refusal:
        load_data(str(path), CAPTION, skip_bad_rows=True)
    assert str(refusal.value).count("line") == 0
    assert "no row has the field 'captions' or 'caption'; fields found: answer, id, image, question" in str(
        refusal.value
    )


def test_all_missing_images_are_reported_at_once_and_each_once(tmp_path):
    rows = [vqa_row(id=str(n), image=f"gone{n % 3}.png") for n in range(6)]
    report = check_data(str(vqa_file(tmp_path, *rows)), VQA)
    assert problems(report) == [
        (n + 1, "image", f"{tmp_path / f'gone{n}.png'}: image not found. (also named by 1 later rows)")
        for n in range(3)
    ]
    assert (report.bad, report.good) == (6, 0)
    assert any("relative to the folder of the annotation file" in note for note in report.notes)


def test_the_check_finds_cut_off_and_damaged_images(tmp_path):
    path = vqa_file(tmp_path, vqa_row(), vqa_row(id="2", image="b.png"))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[-20] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:45])
    assert [line for line, *_ in problems(check_data(str(path), VQA))] == [1, 2]
    with pytest.raises(UserError, match=r"b\.png: is damaged or cut off"):
        load_data(str(path), VQA)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/etc/a.png", "neither absolute nor with"),
        ("../a.png", "neither absolute nor with"),
        ("x/../../a.png", "neither absolute nor with"),
        ("C:/a.png", "neither absolute nor with"),
        ("x\\a.png", "forward slashes"),
        ("https://example.org/a.png", "web address"),
        ("", "is missing or empty"),
        (None, "is missing or empty"),
        (5, "expected the path of an image"),
        (".", "is a folder"),
    ],
)
def test_image_paths_stay_inside_the_folder(tmp_path, image, words):
    picture(tmp_path / "a.png")
    path = vqa_file(tmp_path / "data", vqa_row(), vqa_row(id="2", image=image))
    ((line, name, message),) = problems(check_data(str(path), VQA))
    assert (line, name) == (2, "image")
    assert words in message


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_other_unicode_forms_and_suffix_cases_are_found(tmp_path, form):
    on_disk = unicodedata.normalize(form, "grün/schöner Tag.JPG")
    picture(tmp_path / on_disk)
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "grün/schöner Tag.jpg")
    path = write_jsonl(tmp_path / "train.jsonl", [vqa_row(image=other)])
    found = load_data(str(path), VQA).dataset[0]["image"]["path"]
    assert os.path.exists(found)
    assert found.endswith(on_disk)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="needs a file system that tells cases apart")
def test_ambiguous_spellings_are_refused(tmp_path):
    picture(tmp_path / "a.JPG")
    picture(tmp_path / "a.Jpg")
    path = write_jsonl(tmp_path / "train.jsonl", [vqa_row(image="a.jpg")])
    assert "several files come close" in problems(check_data(str(path), VQA))[0][2]
    picture(tmp_path / "B.png")
    path = write_jsonl(tmp_path / "train.jsonl", [vqa_row(image="b.png")])
    assert "image not found" in problems(check_data(str(path), VQA))[0][2]


def test_one_id_for_two_contents_is_a_problem_and_a_repeat_is_not(tmp_path):
    rows = [vqa_row(id=1), vqa_row(id="1"), vqa_row(id="1", answer="a dog"), vqa_row(id="01")]
    report = check_data(str(vqa_file(tmp_path, *rows)), VQA)
    assert problems(report) == [(3, "id", "'1' was used by line 1 for another content")]
    assert (report.rows, report.good, report.dropped, report.bad) == (4, 2, 1, 1)
    assert "1 rows: an exact repeat of an earlier row, left out" in report.notes


def test_dash_labels_are_dropped_and_counted(tmp_path):
    picture(tmp_path / "a.png")
    rows = [{"image": "a.png", "hypothesis": "A thing.", "label": label} for label in ("neutral", "-", "entailment")]
    rows[1]["image"] = "not needed.png"
    loaded = load_data(str(write_jsonl(tmp_path / "e.jsonl", rows)), ENTAILMENT)
    assert loaded.dataset["label"][:] == ["neutral", "entailment"]
    assert (loaded.report.dropped, loaded.report.bad) == (1, 0)
    assert loaded.report.notes == ["1 rows: label '-' (no majority among the annotators), left out"]


def test_images_without_annotation_and_unused_fields_are_notes(tmp_path):
    report = check_data(str(vqa_file(tmp_path, vqa_row(organ="CHEST"))), VQA)
    assert report.ok
    assert report.notes == [
        "fields that are not used: organ",
        "1 images without annotation in what was checked: b.png",
    ]


def test_nan_in_an_unused_field_is_no_problem_and_in_a_used_one_is(tmp_path):
    path = vqa_file(tmp_path)
    path.write_text('{"image": "a.png", "question": "What?", "answer": "x", "height": NaN}\n')
    assert check_data(str(path), VQA).ok
    path.write_text('{"image": "a.png", "question": "What?", "answer": NaN}\n')
    assert "NaN" in problems(check_data(str(path), VQA))[0][2]


def test_the_fingerprint_is_about_content_and_not_about_place(tmp_path):
    first = load_data(str(vqa_file(tmp_path / "x")), VQA).fingerprint
    assert load_data(str(vqa_file(tmp_path / "y", name="other.json")), VQA).fingerprint == first
    assert load_data(str(vqa_file(tmp_path / "y", vqa_row(answer="a dog"))), VQA).fingerprint != first
    path = vqa_file(tmp_path / "z")
    Image.new("RGB", (9, 9)).save(tmp_path / "z" / "a.png")
    assert load_data(str(path), VQA).fingerprint != first


def test_the_fingerprint_sees_a_replaced_picture_of_equal_size(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [vqa_row(image="a.bmp")])
    prints = []
    for colour in ("red", "blue", "red"):
        picture(tmp_path / "a.bmp", colour)
        prints.append((load_data(str(path), VQA).fingerprint, (tmp_path / "a.bmp").stat().st_size))
    assert prints[0] == prints[2]
    assert prints[0][1] == prints[1][1]
    assert prints[0][0] != prints[1][0]


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 131_072, 131_073, 200_000])
def test_the_stamp_of_a_file_is_about_its_size_and_both_ends(tmp_path, size):
    path = tmp_path / "a.bmp"
    content = bytes(range(250)) * (size // 250 + 1)
    images = FolderImages(tmp_path)
    stamps = []
    for place in (None, 0, min(size, 65_536) - 1, max(0, size - 65_536), size - 1):
        changed = bytearray(content[:size])
        if place is not None:
            changed[place] ^= 0xFF
        path.write_bytes(changed)
        stamps.append(images.stamp("a.bmp"))
        record = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(path)}]})
        assert ColumnImages(record).stamp("0") == stamps[-1]
    assert stamps[0] not in stamps[1:]
    path.write_bytes(content[:size] + b"x")
    assert images.stamp("a.bmp") not in stamps


def test_limit_is_a_seeded_sample_in_order(tmp_path):
    path = str(vqa_file(tmp_path, *(vqa_row(id=n) for n in range(40))))
    ids = load_data(path, VQA, limit=10, seed=1).dataset["id"][:]
    assert len(ids) == 10
    assert ids == sorted(ids, key=int)
    assert ids == load_data(path, VQA, limit=10, seed=1).dataset["id"][:]
    assert ids != load_data(path, VQA, limit=10, seed=2).dataset["id"][:]
    assert len(load_data(path, VQA, limit=99).dataset) == 40
    with pytest.raises(UserError, match="above 0"):
        load_data(path, VQA, limit=0)


def test_optional_columns_appear_only_where_there_are_any(tmp_path):
    path = vqa_file(tmp_path, vqa_row(answer_type="open"), vqa_row(id="2"))
    assert load_data(str(path), VQA).dataset["answer_type"][:] == ["open", None]


def test_the_report_as_text(tmp_path):
    path = vqa_file(tmp_path, *(vqa_row(id=n, answer=None) for n in range(3)))
    text = check_data(str(path), replace(VQA, max_question_words=5)).format(limit=1)
    assert text.splitlines()[0] == f"{path}: 3 rows, 0 good, 3 bad, 0 left out"
    assert text.count("problem: ") == 1
    assert "... and 2 more problems" in text


def test_a_file_without_rows(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]")
    assert problems(check_data(str(path), VQA)) == [(None, None, "has no rows")]
    with pytest.raises(UserError, match="has no rows"):
        load_data(str(path), VQA)


def test_flags_are_a_column_of_booleans_where_any_row_has_one(tmp_path):
    rows = [vqa_row(id=1, answerable=0), vqa_row(id=2, answerable="1"), vqa_row(id=3)]
    assert load_data(str(vqa_file(tmp_path / "x", *rows)), VQA).dataset["answerable"][:] == [False, True, None]
    assert "answerable" not in load_data(str(vqa_file(tmp_path / "y", rows[2])), VQA).dataset.column_names


def test_a_new_optional_field_changes_no_fingerprint(tmp_path):
    @dataclass
    class Older:
        name = "vqa"
        fields = tuple(field for field in VQA.fields if field.name != "answerable")

    path = str(vqa_file(tmp_path / "x", vqa_row()))
    assert load_data(path, VQA).fingerprint == load_data(path, Older()).fingerprint
    flagged = str(vqa_file(tmp_path / "y", vqa_row(answerable=False)))
    assert load_data(flagged, VQA).fingerprint != load_data(flagged, Older()).fingerprint
