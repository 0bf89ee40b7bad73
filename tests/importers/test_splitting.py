"""No picture stands on two sides, every row is kept, and the seed decides."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_cases import converted, every, picture, pictures, write

from padapter.errors import UserError
from padapter.importers.splitting import split_rows

KEYS = st.lists(
    st.lists(st.sampled_from([f"key {n}" for n in range(30)]), min_size=1, max_size=3).map(tuple),
    min_size=1,
    max_size=60,
)
SHARES = st.fixed_dictionaries({"validation": st.sampled_from([0, 0.1, 0.3]), "test": st.sampled_from([0, 0.1, 0.5])})


@settings(deadline=None, max_examples=80)
@given(KEYS, SHARES, st.integers(0, 5))
def test_no_key_on_two_sides_and_every_row_kept(keys, shares, seed):
    splits = split_rows(keys, shares, seed)
    assert len(splits) == len(keys)
    assert "train" in splits
    assert set(splits) <= {"train", *(name for name, share in shares.items() if share)}
    sides = {}
    for row, split in zip(keys, splits, strict=True):
        for key in row:
            assert sides.setdefault(key, split) == split


@settings(deadline=None, max_examples=80)
@given(KEYS, SHARES, st.integers(0, 5), st.randoms())
def test_the_order_of_rows_does_not_matter(keys, shares, seed, chance):
    order = list(range(len(keys)))
    chance.shuffle(order)
    splits = split_rows(keys, shares, seed)
    assert split_rows([keys[place] for place in order], shares, seed) == [splits[place] for place in order]


def test_shares_are_of_groups_and_seeds_differ():
    keys = [(f"picture {n // 4}",) for n in range(400)]
    random.Random(0).shuffle(keys)
    shares = {"validation": 0.1, "test": 0.25}
    first, second = (split_rows(keys, shares, seed) for seed in (0, 1))
    assert (first.count("validation"), first.count("test"), first.count("train")) == (40, 100, 260)
    assert first != second
    assert first == split_rows(keys, shares, 0)


@pytest.mark.parametrize(("groups", "sizes"), [(1, (1, 0, 0)), (3, (3, 0, 0)), (4, (2, 1, 1)), (11, (9, 1, 1))])
def test_few_pictures(groups, sizes):
    splits = split_rows([(str(n),) for n in range(groups)], {"validation": 0.1, "test": 0.1}, 0)
    assert tuple(splits.count(name) for name in ("train", "validation", "test")) == sizes


def test_equal_bytes_under_two_names_stay_together(tmp_path):
    """Whichever pictures go where, the copy goes with its original."""
    pictures(tmp_path / "src", 6)
    for number in range(6):
        picture(tmp_path / "src" / f"again {number}.png", number)
    names = [f"{stem}{number}.png" for number in range(6) for stem in ("", "again ")]
    write(tmp_path / "src" / "t.csv", "image,caption\n" + "".join(f"{name},a thing\n" for name in names))
    done, rows = converted("csv", tmp_path / "src" / "t.csv", tmp_path / "out", validation=0.2, test=0.3)
    sides = {
        row["image"].removeprefix("images/").removeprefix("again "): split for split in rows for row in rows[split]
    }
    assert len(every(rows)) == 12
    for split, its in rows.items():
        assert all(sides[row["image"].removeprefix("images/").removeprefix("again ")] == split for row in its)
    assert done.rows == {"train": 6, "validation": 2, "test": 4}
    assert any("12 files are 6 pictures under several names" in note for note in done.notes)


def test_a_group_stays_together(tmp_path):
    pictures(tmp_path, 20)
    lines = [f"{n}.png,Is it?,yes,patient {n % 5}" for n in range(20)]
    write(tmp_path / "t.csv", "image,question,answer,who\n" + "\n".join(lines))
    done, rows = converted("csv", tmp_path / "t.csv", tmp_path / "out", group="who", test=0.2, validation=0.2)
    assert done.rows == {"train": 12, "validation": 4, "test": 4}
    whose = {split: {int(row["image"][7:-4]) % 5 for row in its} for split, its in rows.items()}
    assert not whose["train"] & whose["test"]
    assert not whose["train"] & whose["validation"]
    assert not whose["validation"] & whose["test"]


def test_options_that_leave_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="--validation: with --test"):
        converted("csv", tmp_path / "t.csv", tmp_path / "out", validation=0.5, test=0.5)
    with pytest.raises(UserError, match="--split: contradicts"):
        converted("csv", tmp_path / "t.csv", tmp_path / "out", split="train", test=0.5)
