"""A second start opens no picture that it knows; one that has changed in any way is looked at again."""

from __future__ import annotations

import json
import os
import time

import pytest
from data_cases import VQA, picture, vqa_row, write_jsonl

from padapter.data import check_data, ledger, load_data, stores
from padapter.errors import UserError


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Names of the pictures that were opened, with a cache of its own in which every new picture is worth keeping."""
    names = []
    verify, stamp = stores.verify_image, stores._file_stamp
    monkeypatch.setattr(stores, "verify_image", lambda path, **how: (names.append(path.name), verify(path, **how)))
    monkeypatch.setattr(stores, "_file_stamp", lambda path: (names.append(path.name), stamp(path))[1])
    monkeypatch.setattr(ledger, "WORTH_KEEPING", 1)
    monkeypatch.setenv("PADAPTER_CACHE", str(tmp_path / "cache"))
    return names


@pytest.fixture
def rows(tmp_path):
    """Rows about three pictures that were changed a minute ago, as far as anybody can tell."""
    for name in "abc":
        picture(tmp_path / "data" / f"{name}.png")
    return write_jsonl(tmp_path / "data" / "rows.jsonl", [vqa_row(id=name, image=f"{name}.png") for name in "abc"])


@pytest.fixture
def later(monkeypatch):
    now = time.time_ns
    monkeypatch.setattr(ledger.time, "time_ns", lambda: now() + 60_000_000_000)


def test_a_second_start_opens_nothing_and_finds_the_same(rows, opened, later):
    first = load_data(str(rows), VQA)
    assert opened == ["a.png", "b.png", "c.png"] * 2
    opened.clear()
    second = load_data(str(rows), VQA)
    assert opened == []
    assert second.fingerprint == first.fingerprint
    assert [row["image"]["path"] for row in second.dataset] == [row["image"]["path"] for row in first.dataset]


def test_another_picture_of_the_same_size_and_time_is_seen(rows, opened, later):
    first = load_data(str(rows), VQA)
    path = rows.parent / "b.png"
    before = path.stat()
    picture(path, "blue")
    content = path.read_bytes()
    path.write_bytes(
        content[: before.st_size].ljust(before.st_size, b"\0") if len(content) > before.st_size else content
    )
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    second = load_data(str(rows), VQA)
    assert set(opened) == {"b.png"}
    assert second.fingerprint != first.fingerprint


def test_a_picture_that_was_cut_off_since_is_refused(rows, opened, later):
    load_data(str(rows), VQA)
    path = rows.parent / "c.png"
    path.write_bytes(path.read_bytes()[:-24])
    with pytest.raises(UserError, match=r"c\.png: is damaged or cut off"):
        load_data(str(rows), VQA)


def test_a_check_decodes_whatever_is_known(rows, opened, later):
    load_data(str(rows), VQA)
    opened.clear()
    check_data(str(rows), VQA)
    assert opened == ["a.png", "b.png", "c.png"]


def test_what_was_changed_just_now_is_not_taken_down(rows, opened):
    load_data(str(rows), VQA)
    opened.clear()
    load_data(str(rows), VQA)
    assert len(opened) == 6


@pytest.mark.parametrize("content", ["", "[]", '{"a.png": 1, "b.png": [[1, 2, 3, 4], 5], "c.png": null}', "\x00"])
def test_a_damaged_ledger_counts_as_none(rows, opened, later, tmp_path, content):
    first = load_data(str(rows), VQA)
    (file,) = (tmp_path / "cache" / "pictures").iterdir()
    file.write_text(content)
    assert load_data(str(rows), VQA).fingerprint == first.fingerprint


def test_a_cache_that_cannot_be_written_is_a_warning(rows, opened, later, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be written"):
        load_data(str(rows), VQA)


def test_few_pictures_leave_nothing_behind(rows, opened, later, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "WORTH_KEEPING", 4)
    load_data(str(rows), VQA)
    assert not (tmp_path / "cache").exists()


def known(tmp_path):
    (file,) = (tmp_path / "cache" / "pictures").iterdir()
    return sorted(json.loads(file.read_text()))


def test_writing_anew_drops_what_is_gone_or_another_and_keeps_what_others_use(rows, opened, later, tmp_path):
    load_data(str(rows), VQA)
    assert known(tmp_path) == ["a.png", "b.png", "c.png"]
    (rows.parent / "a.png").unlink()
    picture(rows.parent / "b.png", "blue")
    picture(rows.parent / "d.png")
    other = write_jsonl(rows.parent / "other.jsonl", [vqa_row(id="d", image="d.png")])
    load_data(str(other), VQA)
    assert known(tmp_path) == ["c.png", "d.png"]


def test_where_no_time_tells_of_changes_every_start_looks_at_all(rows, opened, later, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "TELLS_CHANGES", False)
    first = load_data(str(rows), VQA)
    opened.clear()
    assert load_data(str(rows), VQA).fingerprint == first.fingerprint
    assert opened == ["a.png", "b.png", "c.png"] * 2
    assert not (tmp_path / "cache").exists()
