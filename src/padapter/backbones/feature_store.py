"""Arrays of one shape on disk, found by a digest: appended by many processes, read through memory maps.

Every writer has a pair of files of its own, so nobody waits for anybody: ``NAME.features`` holds arrays one after the
other, ``NAME.keys`` digest and checksum of each, written after its array. What a killed process left half written has
no key, or fails its checksum, and counts as absent.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

DIGEST = 32
_KEY = np.dtype([("digest", f"S{2 * DIGEST}"), ("checksum", "<u4")])  # hexadecimal: numpy cuts trailing zero bytes


class FeatureStore:
    """Digest -> array.

    Args:
        folder: of the store; made with the first array.
        shape: of every array.
        dtype: of every array.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: Any = np.float16) -> None:
        self.folder = folder
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._forget()

    def _forget(self) -> None:
        self._places: dict[bytes, tuple[str, int, int]] = {}  # digest -> file, index, checksum
        self._read: dict[str, int] = {}  # file -> keys read so far
        self._maps: dict[str, np.memmap[Any, Any]] = {}
        self._writer: tuple[BinaryIO, BinaryIO] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Data workers that are spawned get a store of their own on the same files.
        return {"folder": self.folder, "shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def find(self, digests: Iterable[bytes]) -> dict[bytes, np.ndarray[Any, Any]]:
        """The arrays that are there, as views of the files.

        Args:
            digests: 32 bytes each.

        Returns:
            digest -> array, for those found undamaged.
        """
        wanted = dict.fromkeys(digests)
        if not wanted.keys() <= self._places.keys():
            self._look_for_new_ones()
        found = {digest: self._load(digest) for digest in wanted if digest in self._places}
        return {digest: array for digest, array in found.items() if array is not None}

    def add(self, arrays: Mapping[bytes, np.ndarray[Any, Any]]) -> None:
        """Append arrays.

        Args:
            arrays: digest -> array of the store's shape.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
            ValueError: an array has another shape.
        """
        data, keys = self._writer or self._open()
        for digest, array in arrays.items():
            if array.shape != self.shape:
                raise ValueError(f"an array has shape {array.shape} and the store {self.shape}")
            payload = np.ascontiguousarray(array, dtype=self.dtype).tobytes()
            data.write(payload)
            data.flush()
            keys.write(np.array((digest.hex().encode(), zlib.crc32(payload)), dtype=_KEY).tobytes())
            keys.flush()

    def _open(self) -> tuple[BinaryIO, BinaryIO]:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / uuid.uuid4().hex
        self._writer = (name.with_suffix(".features").open("xb"), name.with_suffix(".keys").open("xb"))
        return self._writer

    def _look_for_new_ones(self) -> None:
        if not self.folder.is_dir():
            return
        for file in sorted(self.folder.glob("*.keys")):
            before = self._read.get(file.stem, 0)
            whole = file.stat().st_size // _KEY.itemsize
            if whole <= before:
                continue
            keys = np.fromfile(file, dtype=_KEY, count=whole - before, offset=before * _KEY.itemsize)
            for index, (digest, checksum) in enumerate(keys.tolist(), before):
                try:
                    self._places[bytes.fromhex(digest.decode())] = (file.stem, index, checksum)
                except ValueError:  # a key that a crash has left damaged
                    continue
            self._read[file.stem] = before + len(keys)

    def _load(self, digest: bytes) -> np.ndarray[Any, Any] | None:
        name, index, checksum = self._places[digest]
        array = self._mapped(name, index)
        if array is not None and zlib.crc32(np.ascontiguousarray(array).data) == checksum:
            return array
        del self._places[digest]
        return None

    def _mapped(self, name: str, index: int) -> np.ndarray[Any, Any] | None:
        known = self._maps.get(name)
        if known is None or index >= len(known):
            file = self.folder / f"{name}.features"
            size = int(np.prod(self.shape)) * self.dtype.itemsize
            whole = file.stat().st_size // size if file.is_file() else 0
            if index >= whole:
                return None
            known = np.memmap(file, dtype=self.dtype, mode="r", shape=(whole, *self.shape))
            self._maps[name] = known
        array: np.ndarray[Any, Any] = known[index]
        return array
