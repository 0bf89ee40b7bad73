"""A picture that is opened only if somebody looks at it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from PIL import Image

from padapter.data.images import ImageSource, open_image, read_file


class Picture:
    """A source of a picture, known by its content before it is decoded.

    Args:
        source: as for :func:`padapter.data.open_image`.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def open(self) -> Image.Image:
        """Decode it.

        Raises:
            ImageError: as :func:`padapter.data.open_image`.
        """
        return open_image(self.source)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for the content: of the encoded file, or of the pixels of what has no file.

        Raises:
            ImageError: for a file that cannot be read.
        """
        source = self.source
        if isinstance(source, Mapping):
            source = source["bytes"] if source.get("bytes") is not None else str(source.get("path") or "")
        if isinstance(source, bytes):
            return hashlib.sha256(source).digest()
        if isinstance(source, str | Path):
            return hashlib.sha256(read_file(Path(source))).digest()
        image = open_image(source)
        return hashlib.sha256(f"pixels {image.size} ".encode() + image.tobytes()).digest()


def opened(image: Image.Image | Picture) -> Image.Image:
    """The image itself, decoded if it was not."""
    return image.open() if isinstance(image, Picture) else image
