import pytest

from padapter.worlds import load_world
from padapter.worlds.shapes import kept, rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(kept.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_drawn_split_is_kept_and_the_same(folder, monkeypatch):
    first = load_world("source", "vqa", "test", 5)
    monkeypatch.setattr(rows, "rows", lambda *args: pytest.fail("drawn again"))
    again = load_world("source", "vqa", "test", 5)
    assert again.features == first.features
    assert again.to_list() == first.to_list()
    monkeypatch.delenv(kept.VARIABLE)
    monkeypatch.undo()
    assert load_world("source", "vqa", "test", 5).to_list() == first.to_list()


def test_other_rows_and_other_code_have_their_own_place(folder, monkeypatch):
    for arguments in (("source", "vqa", "test", 3), ("source", "vqa", "test", 4), ("source", "caption", "test", 3)):
        load_world(*arguments)
    load_world("source", "vqa", "test", 3, seed=1)
    assert len(list(folder.iterdir())) == 4
    monkeypatch.setattr(kept, "_code", lambda: "other")
    load_world("source", "vqa", "test", 3)
    assert len(list(folder.iterdir())) == 5


def test_two_that_draw_at_once_leave_one(folder, monkeypatch):
    def draw_while_another_does():
        if not list(folder.glob("shapes-*")):
            load_world("source", "vqa", "test", 2)
        return drawn

    drawn = load_world("source", "vqa", "test", 2)
    for place in folder.iterdir():
        place.rename(folder / "elsewhere")
    found = kept.kept("source-vqa-test-2-0", draw_while_another_does)
    assert found.to_list() == drawn.to_list()
    assert len(list(folder.glob("shapes-*"))) == 1
    assert not list(folder.glob(".drawing-*"))


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(kept.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    load_world("source", "vqa", "test", 2)
    assert not list(tmp_path.iterdir())
