from __future__ import annotations

import io
import os
import re
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import padapter
from padapter.data import ImageError, open_image, verify_image
from padapter.errors import UserError


def noise(width=64, height=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def open_file_count():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("cut", [2, 100, 5000])
def test_a_truncated_jpeg_is_an_error_that_names_the_file(tmp_path, cut):
    path = tmp_path / "short.jpg"
    path.write_bytes(encoded(noise(200, 200), "JPEG", quality=95)[:-cut])
    for check in (open_image, verify_image):
        with pytest.raises(ImageError, match=r"short\.jpg: is damaged or cut off"):
            check(path)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_other_truncated_formats_are_found_without_the_decode_option(tmp_path, kind):
    whole = tmp_path / "whole"
    whole.write_bytes(encoded(noise(), kind))
    verify_image(whole)
    part = tmp_path / "part"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ImageError, match="part"):
        verify_image(part)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_no_cut_ever_changes_a_pixel(kind):
    """Every beginning of a file is either refused or, if only its trailer is missing, the whole picture."""
    content = encoded(noise(20, 15), kind)
    whole = np.asarray(open_image(content))
    opened = 0
    for length in range(len(content)):
        try:
            image = open_image(content[:length])
        except ImageError:
            continue
        opened += 1
        assert np.array_equal(image, whole)
    assert opened < 25


def test_a_library_that_wants_cut_off_files_filled_up_is_not_heeded(monkeypatch):
    """`ImageFile.LOAD_TRUNCATED_IMAGES` is one switch for the whole process; it is as it was afterwards."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(noise(200, 200), "JPEG")
    with Image.open(io.BytesIO(whole[:-5000])) as image:
        image.load()  # what would happen
    start = threading.Barrier(4)

    def run(content):
        start.wait()
        found = []
        for _ in range(20):
            try:
                found.append(open_image(content).size)
            except ImageError:
                found.append(None)
        return set(found)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, [whole, whole[:-5000], whole, whole[:-2]]))
    assert results == [{(200, 200)}, {None}, {(200, 200)}, {None}]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_damage_in_the_middle_needs_decoding(tmp_path):
    content = bytearray(encoded(noise(), "PNG"))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "damaged.png"
    path.write_bytes(bytes(content))
    verify_image(path)
    for check in (open_image, lambda source: verify_image(source, decode=True)):
        with pytest.raises(ImageError, match=r"damaged\.png"):
            check(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"\n <html>", "HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"no picture at all", "not an image in a known format"),
    ],
)
def test_files_that_are_no_pictures_are_named_and_explained(tmp_path, content, words):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    for check in (open_image, verify_image):
        with pytest.raises(ImageError, match=rf"picture\.jpg: .*{words}"):
            check(path)


def test_missing_files_and_folders_are_the_same_kind_of_error(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: image not found"):
        open_image(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: is a folder"):
        open_image(str(tmp_path / "folder.png"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(tmp_path / "pipe.png")
    assert issubclass(ImageError, UserError)


def test_the_suffix_is_not_trusted(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(noise(), "PNG"))
    assert np.array_equal(open_image(path), noise())


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.new("RGB", (20, 40), "red")
    upright.paste((0, 0, 255), (0, 20, 20, 40))
    path = tmp_path / "phone.jpg"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=100)
    opened = open_image(path)
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 5))[0] > 200
    assert opened.getpixel((10, 35))[2] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation(orientation, kind):
    """Where the corners of the stored picture belong, by the EXIF standard: rows and columns of tag 0x0112."""
    corners = {"red": (0, 0), "lime": (1, 0), "blue": (0, 1), "white": (1, 1)}  # column, row of the upright picture
    upright = Image.new("RGB", (32, 16))
    for colour, (x, y) in corners.items():
        upright.paste(Image.new("RGB", (16, 8), colour), (16 * x, 8 * y))
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = open_image(encoded(stored, kind, exif=exif, **lossless))
    assert found.size == upright.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).max() <= 3


def test_orientation_comes_before_colour():
    """Modes that are converted: deep grey, transparent, CMYK."""
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.array([[0], [65535]], np.uint16))
    clear = Image.new("LA", (1, 2), (0, 0))
    clear.putpixel((0, 1), (0, 255))
    for image, expected in ((deep, [255, 0]), (clear, [0, 255])):
        opened = open_image(encoded(image, "PNG", exif=exif))
        assert opened.size == (2, 1)
        assert np.asarray(opened)[0, :, 0].tolist() == expected
    inks = Image.new("CMYK", (8, 16))
    assert open_image(encoded(inks, "JPEG", exif=exif)).size == (16, 8)


def test_16_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :].repeat(4, 0)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp), "PNG")))
    assert np.array_equal(opened[0, :, 0], np.round(ramp[0] / 65535 * 255))
    assert np.array_equal(opened[:, :, 0], opened[:, :, 2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 4095]], np.uint16), [0, 255]),  # 12 bit
        (np.array([[0, 100]], np.int32), [0, 100]),  # 8 bit in a wide type
        (np.array([[0, 2048, 4095]], np.int32), [0, 128, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),  # Hounsfield units: from minimum to maximum
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 51, 255]], np.float32), [0, 51, 255]),
        (np.array([[np.nan, 0, 1, np.inf]], np.float32), [0, 0, 255, 0]),
        (np.array([[-5, -5]], np.int32), [0, 0]),  # constant, out of every range
    ],
)
def test_deep_values_are_scaled_from_the_range_that_holds_them(values, expected):
    assert np.asarray(open_image(Image.fromarray(values)))[0, :, 0].tolist() == expected
    assert np.asarray(open_image(values))[0, :, 0].tolist() == expected


def test_deep_tiffs_from_disk(tmp_path):
    for name, values in (("i", np.array([[0, 65535]], np.int32)), ("f", np.array([[0, 1]], np.float32))):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        assert np.asarray(open_image(tmp_path / f"{name}.tif"))[0, :, 0].tolist() == [0, 255]


def test_either_byte_order():
    """Deep grey in TIFFs of big-endian machines is mode I;16B."""
    ramp = np.array([[0, 4096, 65535]], np.uint16)
    for order, mode in (("<", "I;16"), (">", "I;16B")):
        tags = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
        content = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 14)
        content += ramp.astype(f"{order}u2").tobytes() + struct.pack(f"{order}H", len(tags))
        content += b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags) + b"\0" * 4
        with Image.open(io.BytesIO(content)) as image:
            assert image.mode == mode
        assert np.asarray(open_image(content))[0, :, 0].tolist() == [0, 16, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode):
    hidden = (0,) * (len(mode) - 1)
    image = Image.new(mode, (2, 1), (*hidden, 0))
    image.putpixel((1, 0), (*hidden, 255))
    opened = open_image(encoded(image, "PNG"))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.filterwarnings("error")
def test_palette_and_colour_key_transparency_too():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):
        opened = open_image(encoded(palette, "PNG", transparency=transparency))
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]
    keyed = Image.new("RGB", (2, 1), (9, 9, 9))
    keyed.putpixel((1, 0), (1, 2, 3))
    opened = open_image(encoded(keyed, "PNG", transparency=(9, 9, 9)))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (1, 2, 3)]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_plain_modes(mode):
    assert open_image(encoded(noise().convert(mode), "PNG")).mode == "RGB"


def test_cmyk_with_and_without_a_profile():
    grey = Image.new("CMYK", (8, 8), (0, 0, 0, 128))
    plain = open_image(encoded(grey, "JPEG", quality=100))
    assert plain.mode == "RGB"
    assert abs(plain.getpixel((4, 4))[0] - 127) <= 2
    for profile in (b"broken", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        # Neither fits CMYK data: both count as no profile.
        assert open_image(encoded(grey, "JPEG", quality=100, icc_profile=profile)).getpixel((4, 4)) == plain.getpixel(
            (4, 4)
        )


def ink_profile():
    """A CMYK profile under which only black ink can be seen: L* falls from 100 to 0 with K, a* and b* are 0.

    ICC.1 (lut8Type): 4 inputs, 3 outputs (Lab), a grid of 2 points, of which K turns fastest.
    """
    identity = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    grid = bytes([255, 128, 128, 0, 128, 128]) * 8
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    lut += b"\0" * (-len(lut) % 4)
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    white = b"XYZ \0\0\0\0" + d50
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I", 2) + b"A2B0" + struct.pack(">2I", start, len(lut))
    tags += b"wtpt" + struct.pack(">2I", start + len(lut), len(white))
    header = struct.pack(">I4sI", start + len(lut) + len(white), b"", 0x02400000) + b"prtrCMYKLab "
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + d50
    return header.ljust(128, b"\0") + tags + lut + white


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_embedded_profile(kind):
    inks = Image.new("CMYK", (24, 8), (255, 0, 0, 0))
    inks.paste((0, 255, 255, 255), (8, 0, 16, 8))
    inks.paste((0, 0, 255, 128), (16, 0, 24, 8))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    plain = open_image(encoded(inks, kind, **options))
    assert plain.getpixel((4, 4))[0] < 5  # cyan without a profile
    opened = open_image(encoded(inks, kind, icc_profile=ink_profile(), **options))
    assert opened.mode == "RGB"
    white, black, half = (opened.getpixel((x, 4)) for x in (4, 12, 20))
    assert min(white) > 250
    assert max(black) < 5
    assert all(abs(value - 119) <= 4 for value in half)  # L* = 50 is sRGB 119


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert open_image(content).getpixel((4, 4)) == (255, 0, 0)


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = b"\0\0\0\0IEND\xaeB`\x82"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 9_000), (60_000, 60_000)])
def test_bombs_are_refused_by_their_header(tmp_path, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, height))
    for check in (open_image, verify_image):
        with pytest.raises(ImageError, match=r"bomb\.png: has too many pixels"):
            check(path)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bombs_are_called_so_where_warnings_are_errors():
    for check in (open_image, lambda content: verify_image({"bytes": content})):
        with pytest.raises(ImageError, match="has too many pixels"):
            check(png_header(10_000, 9_000))


def test_bombs_are_refused_where_pillow_was_told_not_to(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match=r"has too many pixels \(60000 x 60000"):
        open_image(png_header(60_000, 60_000))


def test_the_limit_can_be_set():
    content = encoded(noise(), "PNG")
    with pytest.raises(ImageError, match="64 x 48; the limit is 3,000"):
        open_image(content, max_pixels=3000)
    assert open_image(content, max_pixels=64 * 48).size == (64, 48)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (5000, 1)])
def test_extreme_sizes_are_fine(size):
    assert open_image(encoded(Image.new("L", size), "PNG")).size == size


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000)])
def test_extreme_sizes_pass_through_an_image_processor(size):
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = open_image(encoded(Image.new("RGB", size, (255, 0, 0)), "PNG"))
    pixels = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    assert pixels.shape == (1, 3, 32, 32)
    assert np.allclose(pixels[0].mean((1, 2)), [1, -1, -1], atol=1e-5)


def test_every_kind_of_source(tmp_path):
    image = noise()
    path = tmp_path / "a.png"
    image.save(path)
    content = path.read_bytes()
    sources = [
        path,
        str(path),
        content,
        {"bytes": content, "path": None},
        {"bytes": content, "path": "elsewhere.png"},
        {"bytes": None, "path": str(path)},
        image,
        np.asarray(image),
    ]
    for source in sources:
        assert np.array_equal(open_image(source), image)
    assert open_image(np.ones((4, 6, 1), bool)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(np.zeros((4, 6, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


def test_a_given_image_is_not_shared():
    image = noise()
    opened = open_image(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": b"", "path": "x.png"}, r"x\.png: is empty"),
        (np.zeros((3, 40, 50)), r"got \(3, 40, 50\). Move the channels"),
        (np.zeros((0, 5)), "shape"),
        (np.full((2, 2), np.nan), "finite"),
        (np.array([["a"]]), "numbers or booleans"),
        (42, "got int"),
    ],
)
def test_sources_that_cannot_be_used(source, words):
    with pytest.raises(ImageError, match=words):
        open_image(source)


def test_a_lazily_opened_broken_image_is_an_image_error(tmp_path):
    path = tmp_path / "late.jpg"
    path.write_bytes(encoded(noise(200, 200), "JPEG")[:-300])
    with Image.open(path) as late, pytest.raises(ImageError, match=r"late\.jpg"):
        open_image(late)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
@pytest.mark.filterwarnings("error::ResourceWarning")
def test_no_file_stays_open(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    noise().save(good)
    bad.write_bytes(good.read_bytes()[:100])
    before = open_file_count()
    kept = []
    for _ in range(5):
        kept.append(open_image(good))
        verify_image(good)
        for check in (open_image, verify_image):
            with pytest.raises(ImageError):
                check(bad)
    assert open_file_count() == before
    assert len(kept) == 5


OPENERS = re.compile(
    r"\bImage\.open\(|\bImageFile\.Parser|\bdecode=True\b|\bimread\(|\bload_images?\(|\b(datasets\.Image|ImageFeature)\(\)|\bdecode_(image|jpeg|png)\("
    r"|\bimport (cv2|imageio|skimage|torchvision)|from (cv2|imageio|skimage|torchvision)"
)
#: Not a picture: whether files shall be decoded when data are checked.
CHECKS = {file: ["decode=True"] for file in ("data/shards/write.py", "importers/writing.py")}


def test_one_place_opens_pictures():
    root = Path(padapter.__file__).parent
    found = {}
    for file in sorted(root.rglob("*.py")):
        hits = [match[0] for match in OPENERS.finditer(file.read_text(encoding="utf-8"))]
        if hits:
            found[file.relative_to(root).as_posix()] = hits
    assert found.pop("data/images.py") == ["Image.open("] * 3  # the module's own words, and header and pixels
    assert found == CHECKS
