"""Pictures are known by their content."""

import numpy as np
import pytest
from PIL import Image

from padapter.data import ImageError, Picture, open_image, opened


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def test_the_same_content_has_the_same_digest_wherever_it_lies(file, tmp_path):
    copy = tmp_path / "b.png"
    copy.write_bytes(file.read_bytes())
    forms = [file, str(copy), file.read_bytes(), {"bytes": file.read_bytes(), "path": "x"}, {"path": str(copy)}]
    assert len({Picture(form).digest for form in forms}) == 1
    assert len(Picture(file).digest) == 32


def test_pixels_without_a_file_have_one_too(file):
    image = open_image(file)
    other = image.copy()
    other.putpixel((0, 0), (9, 9, 9))
    assert Picture(image).digest == Picture(np.asarray(image)).digest != Picture(other).digest
    # the same bytes in another shape are another picture
    assert Picture(np.zeros((2, 8, 3), np.uint8)).digest != Picture(np.zeros((8, 2, 3), np.uint8)).digest


def test_a_file_that_changes_is_another_picture(file):
    before = Picture(file).digest
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    assert Picture(file).digest != before


def test_it_is_opened_on_demand(file):
    assert opened(Picture(file)).tobytes() == open_image(file).tobytes()
    image = open_image(file)
    assert opened(image) is image


def test_what_is_not_there_is_named(tmp_path):
    for picture in (Picture(tmp_path / "none.png"), Picture({"path": str(tmp_path / "none.png")})):
        with pytest.raises(ImageError, match=r"none\.png: image not found"):
            _ = picture.digest
