"""Sample rows with their pictures, small enough to stand in a page."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from padapter.data import ImageError, open_image
from padapter.data.check import Survey
from padapter.data.examples import Example
from padapter.data.fit import fit
from padapter.preview.reading import Reader, Seen
from padapter.tasks import Task
from padapter.tasks.unanswered import known_targets

#: The longer side of a picture on the page, in pixels.
SIDE = 320
#: The side of the square that is shown where no model says how it sees pictures.
SQUARE = 224
#: The colour of padding there: the mean of BLIP's pictures, as its own preprocessing has it.
MARGIN = (123, 117, 104)
_SMALL = 128


@dataclass(frozen=True)
class Thumbnail:
    """A picture in the page.

    Attributes:
        uri: ``data:`` address.
        width: In pixels, as embedded.
        height: In pixels, as embedded.
        says: Size of what it stands for, e.g. ``640 x 480``.
    """

    uri: str
    width: int
    height: int
    says: str


@dataclass(frozen=True)
class Target:
    """A text to learn, its weight (also in percent of the greatest) and its tokens, if a model was asked."""

    text: str
    weight: float
    size: float
    tokens: int | None


@dataclass(frozen=True)
class Sample:
    """One card of the page.

    Attributes:
        id: Of the row.
        image: Name of the picture.
        original: The picture, upright and in RGB; None if it cannot be opened.
        squares: What the model gets.
        problem: Why there is no picture.
        prompt: Exactly as the model is given it.
        targets: What it learns to say; empty where answers are not public.
        fields: The row as it was read: field and text.
        seen: How the model reads it.
    """

    id: str
    image: str
    original: Thumbnail | None
    squares: list[Thumbnail]
    problem: str | None
    prompt: str
    targets: list[Target]
    fields: list[tuple[str, str]]
    seen: Seen | None


def choose(survey: Survey, rows: int, seed: int) -> dict[str, list[Example]]:
    """Rows to show: about equally many of each split, at random, in the order of the file.

    Args:
        survey: What was read.
        rows: How many in all.
        seed: Another seed, other rows.
    """
    left, chosen = rows, {}
    # Small splits first: what they do not use is for the others.
    order = sorted(survey.examples, key=lambda name: len(survey.examples[name]))
    for place, name in enumerate(order):
        examples = survey.examples[name]
        count = min(len(examples), -(-left // (len(order) - place)))
        places = sorted(random.Random(f"{seed} {name}").sample(range(len(examples)), count))
        chosen[name] = [examples[index] for index in places]
        left -= count
    return {name: chosen[name] for name in survey.examples}


@dataclass(frozen=True)
class Square:
    """What is shown where no model says how it sees pictures: side in pixels, and how pictures are made to fit."""

    side: int = SQUARE
    resize: str = "squash"

    @property
    def done(self) -> str:
        """What was done to a picture, for its label."""
        return {"squash": "squashed", "crop": "cropped", "pad": "padded"}[self.resize]


def samples(
    survey: Survey,
    split: str,
    examples: Sequence[Example],
    task: Task,
    reader: Reader | None,
    square: Square,
) -> list[Sample]:
    """Cards of some rows of one split."""
    import datasets

    if not examples:
        return []
    ids = datasets.Dataset.from_dict({"id": [example.id for example in examples]})
    images = survey.sources[split].images
    table = images.attach(ids, [example.image for example in examples])
    named = images.place is not None  # otherwise pictures have numbers
    return [
        _sample(example, table[index]["image"], task, reader, square, named=named)
        for index, example in enumerate(examples)
    ]


def _sample(example: Example, source: Any, task: Task, reader: Reader | None, square: Square, *, named: bool) -> Sample:
    row = {"image": source, **example.values}
    try:
        picture, problem = open_image(source), None
    except ImageError as error:
        picture, problem = None, str(error)
    seen = reader.read(row) if reader is not None and picture is not None else None
    targets = known_targets(task, row)
    heaviest = max((weight for _, weight in targets), default=1.0)
    tokens = seen.target_tokens if seen is not None and seen.problem is None else (None,) * len(targets)
    return Sample(
        example.id,
        example.image if named else str((source or {}).get("path") or f"picture {example.image}"),
        None if picture is None else thumbnail(picture),
        _squares(picture, seen, square),
        problem,
        task.prompt(row),
        [
            Target(text, weight, 100 * weight / heaviest, count)
            for (text, weight), count in zip(targets, tokens, strict=True)
        ],
        [(spec.name, _shown(example.values[spec.name])) for spec in task.fields if example.values.get(spec.name)],
        seen,
    )


def _squares(picture: Image.Image | None, seen: Seen | None, square: Square) -> list[Thumbnail]:
    if picture is None:
        return []
    if seen is None:
        return [thumbnail(fit(picture, (square.side, square.side), square.resize, fill=MARGIN))]
    return [thumbnail(tile) for tile in seen.tiles]


def thumbnail(picture: Image.Image) -> Thumbnail:
    """A picture for the page: at most :data:`SIDE` pixels; a small one bit for bit."""
    says = f"{picture.width} x {picture.height}"
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    exact = max(small.size) <= _SMALL
    small.save(stream, "PNG") if exact else small.save(stream, "JPEG", quality=82)
    code = base64.b64encode(stream.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/{'png' if exact else 'jpeg'};base64,{code}", *small.size, says)


def _shown(value: Any) -> str:
    return " | ".join(value) if isinstance(value, list) else str(value)
