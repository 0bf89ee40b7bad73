"""COCO captions, VQA pairs and lists of questions."""

from __future__ import annotations

import json
import re

import pytest
from import_cases import converted, every, pictures, write

from padapter.errors import UserError


@pytest.fixture
def folder(tmp_path):
    pictures(tmp_path / "src" / "images", 12, ".jpg")
    return tmp_path / "src"


def coco(folder, images, annotations, name="export.json"):
    return write(folder / name, {"images": images, "annotations": annotations, "categories": []})


def listed(count):
    return [{"id": n, "file_name": f"images/{n}.jpg", "flickr_url": f"http://f/{n}"} for n in range(count)]


def test_captions_boxes_and_images_without_either(folder):
    annotations = [{"id": 9, "image_id": 0, "caption": " A.\n"}, {"id": 10, "image_id": "0", "caption": "B"}]
    annotations += [{"id": 11, "image_id": 1, "bbox": [0, 0, 1, 1]}, {"id": 12, "image_id": 99, "caption": "x"}]
    annotations += [{"id": 13, "image_id": 2, "attributes": {"description": "C"}}]
    images = [
        *listed(3),
        {"id": 5, "file_name": r"upload\1\5.jpg", "caption": "D"},
        {"id": 6, "file_name": "77.jpg", "caption": "E"},
    ]
    done, rows = converted("coco", coco(folder, images, annotations), folder.parent / "out", split="train")
    assert rows["train"] == [
        {"image": "images/0.jpg", "id": "0", "captions": ["A.", "B"], "source": "http://f/0"},
        {"image": "images/2.jpg", "id": "2", "captions": ["C"], "source": "http://f/2"},
        {"image": "images/5.jpg", "id": "5", "captions": ["D"]},
    ]
    assert done.left_out.counts == {
        "an annotation without a text": 1,
        "an annotation of an image that is not listed": 1,
        "the picture has no caption": 1,
        "picture not found": 1,
    }
    assert "export.json: images[1]: images/1.jpg" in done.format()


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("captions_val2017.json", {"validation"}),
        ("captions_train.json", {"train"}),
        ("all.json", {"train", "validation", "test"}),
    ],
)
def test_the_split_is_told_from_the_file_name(folder, name, splits):
    annotations = [{"id": n, "image_id": n, "caption": f"Number {n}."} for n in range(12)]
    done, rows = converted("coco", coco(folder, listed(12), annotations, name), folder.parent / "out")
    assert set(done.rows) == splits
    assert any("told from the file name" in note for note in done.notes) == (len(splits) == 1)
    assert len(every(rows)) == 12
    # Two files can fill one folder, each its own split.
    if splits == {"train"}:
        converted("coco", coco(folder, listed(2), annotations[:2], "x_test.json"), folder.parent / "out")
    shares, _ = converted("coco", folder / name, folder.parent / "shares", test=0.5, validation=0)
    assert shares.rows == {"train": 6, "test": 6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not in the COCO layout"),
        ({"images": {}, "annotations": []}, "images: is dict; expected a list"),
        ({"images": ["x"], "annotations": []}, r"images\[0\]: is str"),
        ({"images": [{"file_name": "0.jpg"}], "annotations": []}, r"images\[0\]: id: is missing"),
        ({"images": [{"id": 1, "file_name": "0"}, {"id": 1, "file_name": "1"}], "annotations": []},
         r"images\[1\]: id: 1 was used"),
        ({"images": [], "annotations": []}, "nothing to write"),
    ],
)  # fmt: skip
def test_a_wrong_structure_is_named(folder, content, message):
    file = write(folder / "c.json", content)
    with pytest.raises(UserError, match=f"{re.escape(str(file))}.*{message}"):
        converted("coco", file, folder.parent / "out")
    assert not (folder.parent / "out").exists()


def pair(folder, questions, annotations):
    write(folder / "v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    return write(folder / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})


def test_questions_with_their_annotations(folder):
    questions = [{"image_id": n, "question": f"Is it {n}?", "question_id": n * 10} for n in range(3)]
    answers = [
        {"answer": word, "answer_id": n, "answer_confidence": "yes"} for n, word in enumerate(["yes"] * 9 + ["no"])
    ]
    annotations = [
        {"question_id": 0, "image_id": 0, "answers": answers, "answer_type": "yes/no", "question_type": "is it"}
    ]
    annotations += [{"question_id": "20", "multiple_choice_answer": "two"}, {"question_id": 50, "answers": answers}]
    for number in range(2):
        (folder / "images" / f"{number}.jpg").rename(folder / "images" / f"COCO_train2014_{number:012d}.jpg")
    done, rows = converted("vqa", pair(folder, questions, annotations), folder.parent / "out")
    assert rows["train"] == [
        {
            "image": "images/COCO_train2014_000000000000.jpg", "id": "0", "question": "Is it 0?",
            "answers": ["yes"] * 9 + ["no"], "question_type": "is it", "answer_type": "yes/no",
        },
        {"image": "images/2.jpg", "id": "20", "question": "Is it 2?", "answers": ["two"]},
    ]  # fmt: skip
    assert set(done.rows) == {"train"}
    assert done.left_out.counts == {"the question has no answers": 1, "answers to a question that is not listed": 1}
    by_folder, _ = converted("vqa", folder, folder.parent / "out2", test=0.5, validation=0)
    assert by_folder.rows == {"train": 1, "test": 1}


def test_questions_without_their_annotations(folder):
    file = write(folder / "questions.json", {"questions": [{"question_id": 1, "image_id": 1, "question": "Why?"}]})
    with pytest.raises(UserError, match=r"which file has the answers.*--annotations; found: none"):
        converted("vqa", file, folder.parent / "out")
    other = write(folder / "answers.json", {"annotations": [{"question_id": 1, "answers": ["so"]}]})
    _, rows = converted("vqa", file, folder.parent / "out", annotations=str(other))
    assert rows["train"][0]["answers"] == ["so"]
    with pytest.raises(UserError, match=r"questions\.json: not a VQA annotations file"):
        converted("vqa", file, folder.parent / "out2", annotations=str(file))


RECORDS = {
    "vizwiz": {"image": "1.jpg", "question": "Q?", "answers": [{"answer": "a", "answer_confidence": "yes"}]},
    "names": {"img": "images/1.jpg", "query": "Q?", "response": "a"},
    "id": {"image_id": 1, "question": "Q?", "answers": ["a"]},
    "padded id": {"image_id": "000001", "question": "Q?", "answer": {"text": "a"}},
    "turns": {
        "id": "x", "image": "1.jpg",
        "conversations": [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "a"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", RECORDS)
def test_lists_of_questions(folder, name, wrapped):
    content = [RECORDS[name]]
    file = write(folder / "list.json", {"info": {}, "data": content} if wrapped else content)
    _, rows = converted("vqa", file, folder.parent / "out", split="test")
    row = {"image": "images/1.jpg", "question": "Q?", "answers": ["a"]}
    assert rows["test"] == [row]


def test_json_lines_and_several_turns(folder):
    turns = [{"value": "<image> One?"}, {"value": "1"}, {"value": "Two?"}, {"value": "2"}]
    lines = [{"image": "1.jpg", "conversations": turns}, {"image": "2.jpg", "conversations": turns[:2]}]
    file = write(folder / "chat.jsonl", "\n".join(map(json.dumps, lines)))
    _, rows = converted("vqa", file, folder.parent / "out", split="train")
    assert [(row["question"], row["answers"]) for row in rows["train"]] == [
        ("One?", ["1"]),
        ("Two?", ["2"]),
        ("One?", ["1"]),
    ]


def test_lists_that_are_none(folder):
    with pytest.raises(UserError, match="expected one list of records, found none"):
        converted("vqa", write(folder / "a.json", {"a": 1}), folder.parent / "out")
    with pytest.raises(UserError, match=r"a\.json, line 1: is int"):
        converted("vqa", write(folder / "a.json", [1]), folder.parent / "out")
    with pytest.raises(UserError, match=r"a\.json: is not JSON"):
        converted("vqa", write(folder / "a.json", "{"), folder.parent / "out")
