"""The store under several writers, crashes and damage."""

import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from padapter.backbones.feature_store import FeatureStore

SHAPE = (3, 2)


def key(number):
    return number.to_bytes(32, "little")  # most of its bytes are zero, at the end


def array(number):
    return np.full(SHAPE, number, dtype=np.float16)


def same(found, numbers):
    return {number: value.tolist() for number, value in found.items()} == {
        key(number): array(number).tolist() for number in numbers
    }


@given(st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=5))
def test_what_one_process_adds_all_find(tmp_path_factory, portions):
    folder = tmp_path_factory.mktemp("store")
    reader, present = FeatureStore(folder, SHAPE), set()
    for number, portion in enumerate(portions):
        writer = FeatureStore(folder, SHAPE)
        writer.add({key(item): array(item) for item in portion})
        present |= set(portion)
        assert same(reader.find([key(item) for item in range(31)]), present)
        assert same(
            pickle.loads(pickle.dumps(writer)).find([key(item) for item in [number, *portion]]),
            present & {number, *portion},
        )


def write(folder, numbers):
    store = FeatureStore(folder, SHAPE)
    for number in numbers:
        store.add({key(number): array(number)})


def test_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=write, args=(tmp_path, range(part, 60 + part))) for part in (0, 20, 40)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert same(FeatureStore(tmp_path, SHAPE).find(key(number) for number in range(100)), range(100))


@pytest.mark.parametrize("suffix", ["features", "keys"])
@pytest.mark.parametrize("lost", [1, 11, 12, 30])
def test_what_a_killed_process_left_half_written_is_absent(tmp_path, suffix, lost):
    write(tmp_path, range(5))
    (file,) = tmp_path.glob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:-lost])
    store = FeatureStore(tmp_path, SHAPE)
    found = store.find(key(number) for number in range(5))
    missing = -(-lost // (12 if suffix == "features" else 68))
    assert same(found, range(5 - missing))
    write(tmp_path, range(5 - missing, 5))
    assert same(store.find(key(number) for number in range(5)), range(5))


def test_damaged_arrays_are_absent_and_can_be_written_anew(tmp_path):
    write(tmp_path, range(3))
    (file,) = tmp_path.glob("*.features")
    content = bytearray(file.read_bytes())
    content[14] ^= 1
    file.write_bytes(bytes(content))
    store = FeatureStore(tmp_path, SHAPE)
    assert same(store.find(key(number) for number in range(3)), [0, 2])
    write(tmp_path, [1])
    assert same(store.find(key(number) for number in range(3)), [0, 1, 2])


def test_arrays_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and the store \(3, 2\)"):
        FeatureStore(tmp_path, SHAPE).add({key(0): np.zeros((2, 3))})
