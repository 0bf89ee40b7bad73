"""A picture in the size that a model sees, whatever its own."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageOps

Size = tuple[int, int]
Colour = tuple[int, int, int]


def _squash(image: Image.Image, size: Size, resample: Image.Resampling, fill: Colour) -> Image.Image:
    return image.resize(size, resample)


def _crop(image: Image.Image, size: Size, resample: Image.Resampling, fill: Colour) -> Image.Image:
    return ImageOps.fit(image, size, resample)


def _pad(image: Image.Image, size: Size, resample: Image.Resampling, fill: Colour) -> Image.Image:
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", size, fill)
    canvas.paste(image.resize(inner, resample), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


#: How a picture of another shape is made to fit. ``squash``: the whole picture, stretched; ``crop``: the largest region
#: in its middle; ``pad``: the whole picture in its own proportions, on ``fill``.
RESIZES: dict[str, Callable[[Image.Image, Size, Image.Resampling, Colour], Image.Image]] = {
    "squash": _squash,
    "crop": _crop,
    "pad": _pad,
}


def fit(
    image: Image.Image,
    size: Size,
    how: str = "squash",
    *,
    resample: int = Image.Resampling.BICUBIC,
    fill: Colour = (0, 0, 0),
) -> Image.Image:
    """Give a picture a size.

    Args:
        image: RGB.
        size: (width, height) in pixels.
        how: a key of :data:`RESIZES`.
        resample: Pillow's filter.
        fill: colour of what ``pad`` adds.

    Returns:
        RGB of that size; the picture itself if it has it.
    """
    return image if image.size == size else RESIZES[how](image, size, Image.Resampling(resample), fill)
