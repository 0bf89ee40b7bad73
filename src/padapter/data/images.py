"""Open any picture as 8-bit RGB: the one place of the package that opens images.

What a plain ``Image.open(path).convert("RGB")`` gets wrong, and what happens here instead:

* EXIF orientation is applied first, so that phone photos stand upright.
* Transparency (RGBA, LA, palette or colour-key) is composited on white; hidden colours stay hidden.
* Deep greys (``I;16``, ``I``, ``F``: common in radiology) are scaled, not clipped: from the smallest usual range that
  holds every value (0..1 for floats, 0..255, 0..4095 for 12 bit, 0..65535 for 16 bit), so that the same value is the
  same grey in every picture of a device; anything else (negative or larger values) from its own minimum and maximum.
* CMYK goes through its embedded colour profile to sRGB; without a usable profile the plain
  conversion is used.
* Animations give their first frame.
* A file that is cut off is an error, also where another library has told Pillow to fill such pictures up with grey.
* Size is read from the header and checked before anything is decoded (:data:`MAX_PIXELS`).
* Whatever goes wrong is an :class:`ImageError` that names the file; files are closed at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from padapter.errors import UserError

if TYPE_CHECKING:
    import numpy as np

#: The largest picture that is opened, in pixels (89,478,485: about 268 MB once decoded). It is Pillow's own limit.
MAX_PIXELS = 89_478_485

#: Suffixes (lower-case) of files that are taken for pictures when a folder is listed; never trusted for decoding.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Mapping[str, Any] | Image.Image | np.ndarray[Any, Any]"

# Python may have been told to raise the warning.
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_SLICE = re.compile(r"(.+\.tar)#(\d+)\+(\d+)", re.DOTALL)
_RANGES = (255, 4095, 65535)
_WHITE = (255, 255, 255, 255)


class ImageError(UserError):
    """A picture that cannot be used: missing, unreadable, cut off, too large. The message names it."""


class MissingImageError(ImageError):
    """There is no such picture."""


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture as an upright 8-bit RGB image.

    Args:
        source: A path; encoded bytes; ``{"bytes": ..., "path": ...}`` as in ``datasets.Image(decode=False)``, where
            bytes win; a PIL image; or an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of numbers or booleans.
        max_pixels: Refuse larger pictures before decoding them.

    Returns:
        A new, fully loaded image of mode ``RGB``.

    Raises:
        ImageError: The picture is missing, not a picture, cut off, too large or of an unknown kind.
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the given image"
        try:
            return _finish(source, name, max_pixels)
        except (ValueError, OSError, SyntaxError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{name}: cannot be used ({type(error).__name__}: {error}).") from error
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "image (bytes in memory)", max_pixels)
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            name = source.get("path") or "image (bytes in memory)"
            return _decode(io.BytesIO(source["bytes"]), str(name), max_pixels)
        if source.get("path"):
            return open_image(str(source["path"]), max_pixels=max_pixels)
        raise ImageError("An image record has neither bytes nor a path.")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        with open_file(path) as handle:
            return _decode(handle, str(path), max_pixels)
    if hasattr(source, "__array_interface__"):
        return _from_array(source, max_pixels)
    raise ImageError(
        f"An image is a path, bytes, a dict of bytes and path, a PIL image or an array; got {type(source).__name__}."
    )


def verify_image(source: ImageSource, *, decode: bool = False, max_pixels: int = MAX_PIXELS) -> None:
    """Find out whether :func:`open_image` would succeed, at the price of reading header and end of the file.

    A file without the mark that ends its format (JPEG, PNG, GIF) is decoded to be sure; so is every other format.

    Args:
        source: A path or an image record, as for :func:`open_image`.
        decode: Decode in any case: also finds damage in the middle.
        max_pixels: As for :func:`open_image`.

    Raises:
        ImageError: As :func:`open_image`.
    """
    if not decode:
        record: Mapping[str, Any] = source if isinstance(source, Mapping) else {"path": source}
        if record.get("bytes") is not None:
            stream: BinaryIO = io.BytesIO(record["bytes"])
        elif record.get("path"):
            stream = open_file(Path(record["path"]))
        else:
            raise ImageError("An image record has neither bytes nor a path.")
        name = str(record.get("path") or "image (bytes in memory)")
        with stream:
            kind = _read_header(stream, name, max_pixels)
            if _ends_properly(stream, kind):
                return
    open_image(source, max_pixels=max_pixels)


def image_format(content: bytes, name: str) -> str:
    """The format of an encoded picture by its content, in lower case: ``jpeg``, ``png``, ...

    Raises:
        ImageError: as :func:`open_image`.
    """
    return (_read_header(io.BytesIO(content), name, MAX_PIXELS) or "").lower()


def sliced(file: str, offset: int, size: int) -> str:
    """The name of a picture that is a part of a tar file; :func:`open_file` understands it.

    Args:
        file: The uncompressed tar file.
        offset: Of the picture's first byte.
        size: In bytes.
    """
    return f"{file}#{offset}+{size}"


def open_file(path: Path) -> BinaryIO:
    """A picture's file, or its part of a tar file (:func:`sliced`), for reading.

    Raises:
        ImageError: naming it.
    """
    part = _SLICE.fullmatch(str(path))
    if part is not None:
        file, offset, size = part.groups()
        with open_file(Path(file)) as handle:
            handle.seek(int(offset))
            content = handle.read(int(size))
        if len(content) < int(size):
            raise ImageError(f"{path}: the tar file is cut off.")
        return io.BytesIO(content)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: is a folder, not an image.")
        if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
            raise ImageError(f"{path}: is not a regular file.")
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{path}: image not found.") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({error}).") from error


def read_file(path: Path) -> bytes:
    """The content of a picture's file.

    Raises:
        ImageError: naming it.
    """
    with open_file(path) as handle:
        return handle.read()


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with _whole_files_only(), Image.open(stream) as image:
            return _finish(image, name, max_pixels)
    except ImageError:
        raise
    except _BOMBS as error:
        raise ImageError(f"{name}: has too many pixels ({error}).") from error
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ImageError(f"{name}: {_explain(stream, error)}") from error


def _read_header(stream: BinaryIO, name: str, max_pixels: int) -> str | None:
    try:
        with _whole_files_only(), Image.open(stream) as image:
            _check_size(image.size, name, max_pixels)
            return image.format
    except ImageError:
        raise
    except _BOMBS as error:
        raise ImageError(f"{name}: has too many pixels ({error}).") from error
    except Exception as error:  # as above
        raise ImageError(f"{name}: {_explain(stream, error)}") from error


def _ends_properly(stream: BinaryIO, kind: str | None) -> bool:
    endings = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
    ending = endings.get(kind or "")
    if ending is None:
        return False
    stream.seek(0, io.SEEK_END)
    stream.seek(max(0, stream.tell() - len(ending)))
    return stream.read() == ending


def _explain(stream: BinaryIO, error: Exception) -> str:
    """Say what a file is that Pillow did not take for a whole picture."""
    stream.seek(0)
    head = stream.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty (0 bytes)."
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not an image: a download that failed?"
    if b"<svg" in text:
        return "is an SVG drawing; convert it to PNG."
    if head[4:8] == b"ftyp" and head[8:12] in {b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"}:
        return "is a HEIC/HEIF photo, which is not supported; convert it to JPEG."
    if head[128:132] == b"DICM":
        return "is a DICOM file; convert it to PNG."
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image; run `git lfs pull`."
    if isinstance(error, UnidentifiedImageError):
        return "is not an image in a known format."
    return f"is damaged or cut off ({type(error).__name__}: {error})."


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels ({width} x {height}).")
    if width * height > max_pixels:
        raise ImageError(f"{name}: has too many pixels ({width} x {height}; the limit is {max_pixels:,}).")


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Size first, then pixels, then orientation, then colour."""
    _check_size(image.size, name, max_pixels)
    with _whole_files_only():
        image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


_strict_lock = threading.Lock()
_strict_loads = 0
_lenient_before = False


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    """Pillow's switch for cut-off files is off in this block, and afterwards as it was; threads may overlap."""
    global _strict_loads, _lenient_before
    with _strict_lock:
        if _strict_loads == 0:
            _lenient_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _strict_loads += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_loads -= 1
            if _strict_loads == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _lenient_before


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert every mode to RGB without clipping, hidden colours or colour shift where that can be avoided."""
    import numpy as np

    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, _WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a broken profile counts as none
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    rgb = image.convert("RGB")
    return rgb.copy() if rgb is image else rgb


def _to_8_bit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Scale numbers of any size to 0..255; values that are not finite become black."""
    import numpy as np

    floats = values.astype(np.float64)
    finite = np.isfinite(floats)
    if not finite.any():
        raise ValueError("no pixel has a finite value")
    low, high = float(floats[finite].min()), float(floats[finite].max())
    if np.issubdtype(values.dtype, np.floating) and low >= 0 and high <= 1:
        bottom, top = 0.0, 1.0
    else:
        fitting = [limit for limit in _RANGES if high <= limit] if low >= 0 else []
        bottom, top = (0.0, float(fitting[0])) if fitting else (low, max(high, low + 1))
    scaled = (np.where(finite, floats, bottom) - bottom) / (top - bottom)
    return np.round(scaled * 255).astype(np.uint8)


def _from_array(source: Any, max_pixels: int) -> Image.Image:
    import numpy as np

    array = np.asarray(source)
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or (array.ndim == 3 and shape[2] not in {3, 4}) or 0 in shape:
        raise ImageError(
            f"An image array has the shape (height, width) or (height, width, 1, 3 or 4); got {shape}. "
            "Move the channels to the end."
        )
    _check_size((shape[1], shape[0]), "image array", max_pixels)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
            raise ImageError(f"An image array holds numbers or booleans; got {array.dtype}.")
        try:
            array = _to_8_bit(array)
        except ValueError as error:
            raise ImageError(f"image array: {error}.") from error
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
