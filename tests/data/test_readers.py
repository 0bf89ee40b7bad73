from __future__ import annotations

import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from padapter.data.readers import read_rows
from padapter.errors import UserError

ROWS = [{"image": "a.png", "n": 1}, {"image": "b.png", "n": 2}]


def values(path):
    return [row.values for row in read_rows(path)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.rstrip("\n"),
        LINES + "\n\n  \n",  # blank last lines
        "\n" + LINES,
        LINES.replace("\n", "\r\n"),
        "\ufeff" + LINES,
        json.dumps(ROWS),  # a JSON list where lines were expected
        "\ufeff" + json.dumps(ROWS, indent=2).replace("\n", "\r\n"),
        json.dumps(ROWS, indent=4) + "\n",
    ],
)
def test_lines_and_lists_are_told_apart_by_content(tmp_path, suffix, content):
    assert values(write(tmp_path / f"rows{suffix}", content)) == ROWS


def test_rows_know_their_lines(tmp_path):
    lines = [row.line for row in read_rows(write(tmp_path / "a.jsonl", "\n" + LINES + "\n" + LINES))]
    assert lines == [2, 3, 5, 6]
    listed = [row.line for row in read_rows(write(tmp_path / "b.json", "[\n" + json.dumps(ROWS[0]) + ",\n\n  {\n}\n]"))]
    assert listed == [2, 4]
    table = [row.line for row in read_rows(write(tmp_path / "c.csv", 'image,n\n"two\nlines",1\nb.png,2\n'))]
    assert table == [2, 4]


def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"t": "one\u2028two\u0085three"}\n{"t": "x"}\n')
    assert values(path) == [{"t": "one\u2028two\u0085three"}, {"t": "x"}]


def test_ids_keep_every_digit(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": 9007199254740993}\n{"id": "007"}\n')
    assert values(path) == [{"id": 9007199254740993}, {"id": "007"}]


def test_broken_lines_are_reported_and_the_rest_is_read(tmp_path):
    content = (
        LINES.encode() + b'{"image": \n\xff\xfe{}\n[1]\n"text"\n' + b'{"n": ' + b"9" * 5000 + b"}\n" + b"[" * 100_000
    )
    rows = read_rows(write(tmp_path / "a.jsonl", content))
    assert [row.values for row in rows[:2]] == ROWS
    errors = {row.line: row.error for row in rows[2:]}
    assert "not JSON" in errors[3]
    assert "not UTF-8" in errors[4]
    assert "is list, not an object" in errors[5]
    assert "is str, not an object" in errors[6]
    assert "not JSON" in errors[7]
    assert "not JSON" in errors[8]
    assert not any(row.fatal for row in rows)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"n": 1},\n{"n": }]', 2),
        ('[{"n": 1}\n{"n": 2}]', 2),
        ('[{"n": 1},\n', 2),
        ('[{"n": 1}]\nmore', 2),
        ("[\xff]", 1),
    ],
)
def test_a_broken_list_is_fatal_after_the_rows_before_it(tmp_path, content, line):
    rows = read_rows(write(tmp_path / "a.json", content.encode("latin-1")))
    assert (rows[-1].fatal, rows[-1].line) == (True, line)
    assert [row.values for row in rows[:-1]] in ([], [{"n": 1}])


def test_a_single_object_is_a_row_unless_it_holds_other_objects(tmp_path):
    assert values(write(tmp_path / "a.json", '{\n "image": "a.png"\n}')) == [{"image": "a.png"}]
    assert values(write(tmp_path / "b.jsonl", '{"file_name": "a.png"}\n')) == [{"file_name": "a.png"}]
    with pytest.raises(UserError, match=r"one JSON object \('info', 'images'\), not rows.*converted"):
        read_rows(write(tmp_path / "coco.json", '{"info": {},\n "images": []}'))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, newline, mark, delimiter):
    lines = ["image,question,answers", 'a.png,"What, or ""who""?","[""yes"", ""no""]"', "b.png,Why?, 3 ", "", ",,"]
    content = mark + newline.join(lines).replace(",", delimiter) + newline
    if delimiter != ",":
        content = content.replace(f"What{delimiter}", "What,").replace(f'""yes""{delimiter}', '""yes"",')
    assert values(write(tmp_path / "a.CSV", content)) == [
        {"image": "a.png", "question": 'What, or "who"?', "answers": ["yes", "no"]},
        {"image": "b.png", "question": "Why?", "answers": " 3 "},
    ]


def test_csv_faults(tmp_path):
    rows = read_rows(write(tmp_path / "a.csv", "image,n\na.png,1,2\nb.png,[1\nc.png,[1]\nd.png,[x]\n"))
    assert [(row.line, row.error) for row in rows if row.error] == [
        (2, "has 3 cells, the header has 2"),
        (5, "the cell 'n' looks like a list but is not JSON (Expecting value)"),
    ]
    unclosed = read_rows(write(tmp_path / "b.csv", 'image,n\na.png,1\nb.png,"2\n'))
    assert (unclosed[-1].fatal, unclosed[-1].line) == (True, 3)
    with pytest.raises(UserError, match="'n' more than once"):
        read_rows(write(tmp_path / "c.csv", "image,n,n\n"))
    with pytest.raises(UserError, match="line 2: is not UTF-8"):
        read_rows(write(tmp_path / "d.csv", b"image\n\xe9.png\n"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xef\xbb\xbf \n", "is empty"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("a.xlsx", b"x", "unknown kind of file"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        read_rows(write(tmp_path / name, content))
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "missing.json")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tables = st.lists(st.dictionaries(texts, texts | st.integers() | st.none() | st.lists(texts), max_size=4), max_size=5)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, st.booleans(), st.sampled_from([None, 1]))
def test_what_json_writes_is_read_back(tmp_path, table, escape, indent):
    written = json.dumps(table, ensure_ascii=escape, indent=indent)
    assert values(write(tmp_path / "list.json", written)) == table
    if len(table) > 1:
        lines = "\n".join(json.dumps(row, ensure_ascii=escape) for row in table)
        assert values(write(tmp_path / "lines.jsonl", lines)) == table


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map("x{}".format), min_size=1))
def test_what_csv_writes_is_read_back(tmp_path, cells):
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["image", "text"], *(["a.png", cell] for cell in cells)])
    assert values(path) == [{"image": "a.png", "text": cell} for cell in cells]
