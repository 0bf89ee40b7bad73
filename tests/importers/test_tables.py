"""CSV files with columns of any name."""

from __future__ import annotations

import pytest
from import_cases import converted, every, pictures, rows_of, write

from padapter.data.readers import read_csv
from padapter.errors import UserError
from padapter.importers import IMPORTERS, files


@pytest.fixture
def folder(tmp_path):
    pictures(tmp_path / "src" / "scans", 4)
    return tmp_path / "src"


def table(folder, text, **options):
    write(folder / "t.csv", text)
    return converted("csv", folder / "t.csv", folder.parent / "out", split="train", **options)


def test_usual_names_are_guessed_and_said(folder):
    done, rows = table(
        folder, "File Name,Query,Ground-Truth,doctor\nscans/0.png,Is it?, yes ,X\nscans/1.png,How many?,4,Y\n"
    )
    assert rows["train"] == [
        {"image": "images/0.png", "question": "Is it?", "answers": ["yes"]},
        {"image": "images/1.png", "question": "How many?", "answers": ["4"]},
    ]
    notes = " ".join(done.notes)
    assert "image is 'File Name', question is 'Query', answer is 'Ground-Truth'" in notes
    assert "columns not used: doctor" in notes
    assert done.fixed.counts.total() == 1


@pytest.mark.parametrize(
    ("header", "task"),
    [
        ("img,statement,label", "entailment"), ("path,text,other", "caption"),
        ("image,sentence,gold_label", "entailment"),
        ("image,question,label", "vqa"), ("file_name,Description,n", "caption"),
    ],
)  # fmt: skip
def test_the_task_is_told_from_the_columns(folder, header, task):
    done, _ = table(folder, f"{header}\nscans/0.png,It is red.,true\nscans/1.png,It is blue.,false\n")
    assert done.task == task


def test_named_columns_separator_encoding_and_several_answers(folder):
    text = "Bild;Frage;Antwort\n0.png;Wie groß?;groß|sehr groß\n"
    (folder / "t.txt").write_bytes(text.encode("cp1252"))
    options = {"question": "Frage", "answer": "Antwort", "several": "|", "split": "test"}
    with pytest.raises(UserError, match=r"t\.txt, line 2: is not utf-8; name its encoding"):
        converted("csv", folder / "t.txt", folder.parent / "out", **options)
    options |= {"encoding": "cp1252", "separator": "semicolon"}
    done, rows = converted("csv", folder / "t.txt", folder.parent / "out", **options)
    assert rows == {"test": [{"image": "images/0.png", "question": "Wie groß?", "answers": ["groß", "sehr groß"]}]}
    assert "image is 'Bild'" in done.notes[0]  # its cells end like names of pictures


def test_utf_16_and_tabs(folder):
    (folder / "t.tsv").write_bytes("image\tcaption\n0\tEin Bild, groß\n".encode("utf-16"))
    done, rows = converted("csv", folder / "t.tsv", folder.parent / "out", encoding="utf-16", split="train")
    assert rows["train"] == [{"image": "images/0.png", "captions": ["Ein Bild, groß"]}]
    assert list(done.fixed.counts) == ["the picture was named without its suffix"]


def test_captions_of_a_picture_become_one_row(folder):
    done, rows = table(folder, "image,caption\nscans/0.png,One.\nscans/1.png,Two.\nscans/0.png,Three.\n")
    assert [row["captions"] for row in rows["train"]] == [["One.", "Three."], ["Two."]]
    assert any("3 rows show 2 pictures" in note for note in done.notes)


def test_numbers_as_labels_need_names(folder):
    text = "image,claim,label\nscans/0.png,It is red.,0\nscans/1.png,It is red.,1\n"
    with pytest.raises(UserError, match="label: is the number '0'; write the name"):
        table(folder, text)
    _, rows = table(folder, text, label_names="0=wrong, 1=right")
    assert [row["label"] for row in rows["train"]] == ["wrong", "right"]
    with pytest.raises(UserError, match="--label-names: expected"):
        table(folder, text, label_names="0:wrong")


def test_what_cannot_be_used_is_left_out_with_its_line(folder):
    (folder / "scans" / "2.png").write_bytes((folder / "scans" / "2.png").read_bytes()[:-30])
    lines = [
        "scans/0.png,Is it?,yes",
        "scans/9.png,Is it?,no",
        "scans/2.png,Is it?,no",
        "scans/1.png,,no",
        "scans/1.png,Is it?,",
    ]
    lines += ["http://x.org/1.png,Is it?,no", "../secret.png,Is it?,no"]
    done, rows = table(folder, "image,question,answer\n" + "\n".join(lines))
    assert len(rows["train"]) == 1
    assert done.left_out.counts == {
        "picture not found": 2,
        "the picture cannot be opened": 1,
        "question cannot be used": 1,
        "answers cannot be used": 1,
        "the picture is a web address: download it first": 1,
    }
    report = done.format()
    assert "left out: 2 (picture not found)" in report
    assert "t.csv, line 3: scans/9.png" in report
    assert "t.csv, line 4: " in report
    assert "t.csv, line 5: question: is missing or empty" in report


def test_pictures_are_found_by_name_but_never_outside(folder, tmp_path):
    pictures(tmp_path / "elsewhere", 1, ".jpg")
    lines = [r"C:\data\0.png,a", "/nowhere/1.png,b", "2,c", f"{folder}/scans/3.png,d", f"{tmp_path}/elsewhere/0.jpg,e"]
    done, rows = table(folder, "image,caption\n" + "\n".join(lines))
    assert [row["captions"] for row in rows["train"]] == [["a"], ["b"], ["c"], ["d"]]
    assert done.left_out.counts == {"picture not found": 1}
    assert done.fixed.counts == {
        "the picture was found by its file name, not where its path says": 2,
        "the picture was named without its suffix": 1,
    }


def test_a_name_that_two_pictures_have_is_not_guessed(folder):
    pictures(folder / "more", 1)
    done, rows = table(folder, "image,caption\n0.png,which?\nmore/0.png,this\n")
    assert [row["image"] for row in rows["train"]] == ["images/0.png"]
    assert list(done.left_out.counts) == ["several pictures fit"]


def test_a_split_column(folder):
    lines = ["scans/0.png,a,Train", "scans/1.png,b,val", "scans/2.png,c,test", "scans/0.png,d,test"]
    write(folder / "t.csv", "image,caption,split\n" + "\n".join(lines))
    done, _rows = converted("csv", folder / "t.csv", folder.parent / "out")
    assert done.rows == {"train": 1, "validation": 1, "test": 2}
    assert any("1 pictures stand in more than one split" in note for note in done.notes)
    write(folder / "t.csv", "image,caption,part\n" + "\n".join([*lines, "scans/1.png,e,other"]))
    with pytest.raises(UserError, match=r"t\.csv, line 6: part: 'other' is none of train"):
        converted("csv", folder / "t.csv", folder.parent / "out2", split_column="part")


def test_ids_are_kept_and_made_distinct(folder):
    rows = "7,scans/0.png,a,x\n7,scans/1.png,b,y\n8,scans/2.png,c,x\n8,scans/2.png,c,x\n"
    write(folder / "t.csv", f"id,image,claim,label\n{rows}")
    done, rows = converted("csv", folder / "t.csv", folder.parent / "out", split="train")
    assert [row["id"] for row in rows["train"]] == ["7", "7-2", "8"]
    assert list(done.left_out.counts) == ["an exact repeat of an earlier row"]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("image,a1,b1", {}, "no column has a usual name; name the columns with --question"),
        ("x,question,answer", {}, "which column is the picture"),
        ("image,question,answer,caption", {}, "fit the tasks vqa and caption"),
        ("image,question,other", {"question": "question"}, "--answer is needed too"),
        ("image,question,answer", {"question": "Question"}, "has no column 'Question'; did you mean 'question'"),
        ("image,q,x,y", {"question": "q", "caption": "x"}, "belong to several tasks"),
        ("image,image,caption", {}, "line 1: the header names 'image' more than once"),
    ],
)  # fmt: skip
def test_columns_that_are_not_certain(folder, header, options, message):
    row = ",".join("x" for _ in header.split(","))
    with pytest.raises(UserError, match=message):
        table(folder, f"{header}\n{row}\n", **options)


def test_the_destination_is_never_damaged(folder):
    """Pictures in it stay, results are not overwritten unless wanted, and files of others are refused."""
    write(folder / "t.csv", "image,caption\n" + "".join(f"scans/{n}.png,a thing\n" for n in range(4)))
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    done, rows = converted("csv", folder / "t.csv", folder)
    assert {row["image"] for row in every(rows)} == {f"scans/{n}.png" for n in range(4)}
    assert not (folder / "images").exists()
    with pytest.raises(UserError, match=r"holds train\.jsonl already; give a new folder, or --overwrite"):
        converted("csv", folder / "t.csv", folder)
    done, _ = converted("csv", folder / "t.csv", folder, overwrite=True, test=0, validation=0)
    assert done.rows == {"train": 4}
    assert not (folder / "test.jsonl").exists()
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before
    write(folder / "val.csv", "image,caption\n")
    with pytest.raises(UserError, match=r"val\.csv would be a second file for the split 'validation'"):
        converted("csv", folder / "t.csv", folder, overwrite=True)
    with pytest.raises(UserError, match="is a file; give a folder"):
        converted("csv", folder / "t.csv", folder / "t.csv")


def test_another_picture_in_its_place_is_not_overwritten(folder, tmp_path):
    write(folder / "t.csv", "image,caption\nscans/0.png,a\nscans/1.png,b\n")
    there = tmp_path / "out" / "images" / "1.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"1\.png is another picture already"):
        IMPORTERS["csv"](folder / "t.csv", tmp_path / "out")
    assert there.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "images" / "0.png").exists()
    converted("csv", folder / "t.csv", tmp_path / "out", overwrite=True)
    assert (folder / "scans" / "1.png").read_bytes() == there.read_bytes()
    # The same pictures a second time are no conflict.
    (tmp_path / "out" / "train.jsonl").unlink()
    converted("csv", folder / "t.csv", tmp_path / "out")


def test_splits_can_come_one_by_one(folder, tmp_path):
    write(folder / "t.csv", "image,caption\nscans/0.png,a\n")
    converted("csv", folder / "t.csv", tmp_path / "out", split="train")
    IMPORTERS["csv"](folder / "t.csv", tmp_path / "out", split="test")
    assert rows_of(tmp_path / "out" / "train.jsonl") == rows_of(tmp_path / "out" / "test.jsonl")


def test_pictures_with_equal_names_in_different_folders(folder):
    pictures(folder / "more", 2)
    _, rows = table(folder, "image,caption\nscans/0.png,a\nmore/0.png,b\n")
    assert [row["image"] for row in rows["train"]] == ["images/scans/0.png", "images/more/0.png"]


def test_a_line_with_too_many_cells_is_left_out_and_counted(folder):
    done, rows = table(folder, "image,question,answer\nscans/0.png,Is it red, or blue?,red\nscans/1.png,Is it?,yes\n")
    assert [row["image"] for row in rows["train"]] == ["images/1.png"]
    assert list(done.left_out.counts) == ["the line has too many cells"]
    assert (
        "line 2: has 4 cells, the header has 3; a cell that holds the separator belongs in quotation marks"
        in "\n".join(done.left_out.lines("left out"))
    )


def test_repeats_are_kept_and_said(folder):
    done, rows = table(folder, "image,question,answer\n" + "scans/0.png,Is it?,yes\n" * 3 + "scans/1.png,Is it?,yes\n")
    assert len(rows["train"]) == 4
    assert "2 rows repeat another one exactly, and are kept" in done.notes


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("latest", None),
        ("carnival_captions", None),
        ("devices", None),
        ("captions_val2017", "validation"),
        ("v2_OpenEnded_mscoco_train2014_questions", "train"),
        ("test-dev2015", "test"),
        ("VQATrainSet", "train"),
        ("captions_validation", "validation"),
    ],
)
def test_a_split_in_a_file_name_is_a_whole_word(name, split):
    assert files.split_in_name(name) == split


def test_brackets_in_foreign_tables_are_text(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('image,caption\n1.png,[blurred] a man [unreadable]\n2.png,"[""a"", ""b""]"\n')
    for rows in (files.readable(read_csv(table)), files.rows_of(table)):
        assert [row["caption"] for _, row in rows] == ["[blurred] a man [unreadable]", ["a", "b"]]
