"""Numbers about a data set: rows, pictures, answers, lengths, and pictures that stand in more than one split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from padapter.data import Picture
from padapter.data.check import Survey
from padapter.data.examples import Example
from padapter.data.schema import Field
from padapter.tasks import Task
from padapter.tasks.unanswered import known_targets

_BARS = 10
_COLUMNS = 16


@dataclass(frozen=True)
class SplitCounts:
    """One line of the table of splits.

    Attributes:
        name: The split.
        rows: Rows of the file.
        usable: Rows that can be used.
        pictures: Different pictures of these, by name.
        answers: Distinct texts to learn.
        unseen: Rows none of whose answers occurs in the training rows; None where that means nothing.
    """

    name: str
    rows: int
    usable: int
    pictures: int
    answers: int
    unseen: int | None


@dataclass(frozen=True)
class Bar:
    """One bar: label, count, size in percent of the greatest, share of the whole in percent, short label."""

    label: str
    count: int
    size: float
    share: float
    mark: str = ""


@dataclass(frozen=True)
class Chart:
    """Bars under a heading: "list" from top to bottom, or "columns" from left to right."""

    title: str
    kind: str
    bars: list[Bar]
    text: str


@dataclass(frozen=True)
class Shared:
    """Pictures that two splits have in common: how many, the names of some, and whether only their bytes are equal."""

    first: str
    second: str
    count: int
    some: list[str]
    by_content: bool


def split_counts(survey: Survey, task: Task) -> list[SplitCounts]:
    """Rows, pictures and answers per split."""
    targets = {name: [_targets(task, row) for row in rows] for name, rows in survey.examples.items()}
    learnt = {text for texts in targets.get("train", []) for text in texts}
    closed = _answer_field(task) is not None and bool(learnt)
    return [
        SplitCounts(
            name,
            len(survey.sources[name].rows),
            len(rows),
            len({row.image for row in rows}),
            len({text for texts in targets[name] for text in texts}),
            sum(not learnt & set(texts) for texts in targets[name])
            if closed and name != "train" and any(targets[name])
            else None,
        )
        for name, rows in survey.examples.items()
    ]


def charts(survey: Survey, task: Task) -> list[Chart]:
    """Frequent answers, how texts begin, and how long they are; over all splits that were read."""
    rows = [row for rows in survey.examples.values() for row in rows]
    if not rows:
        return []
    found = []
    field = _answer_field(task)
    if field is not None:
        answered = [texts for row in rows if (texts := _targets(task, row))]
        answers = Counter(text for texts in answered for text in texts)
        text = f"Rows that have an answer; {_some(answers, _BARS)} different ones."
        found.append(_list("Most frequent answers", answers, len(answered), text))
    asked = task.fields[0]
    words = 3 if field is None else 2
    begin = Counter(" ".join(text.lower().split()[:words]) for text in _texts(asked, rows))
    title = f"How {_plural(asked.name)} begin"
    found.append(_list(title, begin, begin.total(), f"The first {words} words; {_some(begin, _BARS)} beginnings."))
    for spec in task.fields:
        if spec.required and spec.kind != "label":
            lengths = Counter(len(text.split()) for text in _texts(spec, rows))
            found.append(_columns(f"Words per {_singular(spec.name)}", lengths, _limit(task, spec)))
    return [chart for chart in found if chart.bars]


def shared_pictures(survey: Survey) -> list[Shared]:
    """Pictures that stand in two splits: the same file, or another file with the same bytes."""
    keys = {
        name: ({row.image for row in rows}, Path(place))
        for name, rows in survey.examples.items()
        if (place := survey.sources[name].images.place) is not None
    }
    twins = _twins({place / key for names, place in keys.values() for key in names})
    found = []
    for (first, (ours, here)), (second, (theirs, there)) in combinations(keys.items(), 2):
        same = sorted(ours & theirs) if here == there else []
        if same:
            found.append(Shared(first, second, len(same), same[:3], by_content=False))
        other = {twins[path]: path for key in theirs if (path := there / key) in twins and key not in same}
        pairs = [
            f"{key} = {other[twins[path]].name}"
            for key in sorted(ours)
            if key not in same and (path := here / key) in twins and twins[path] in other
        ]
        if pairs:
            found.append(Shared(first, second, len(pairs), pairs[:3], by_content=True))
    return found


def _twins(paths: Iterable[Path]) -> dict[Path, bytes]:
    """The content of every file that has the size of another one: no other can have a twin."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        sizes[path.stat().st_size].append(path)
    return {path: Picture(path).digest for same in sizes.values() if len(same) > 1 for path in same}


def _answer_field(task: Task) -> Field | None:
    """The field of the answers, in tasks that are asked something; captions are texts of their own."""
    needed = [spec for spec in task.fields if spec.required]
    return needed[1] if len(needed) > 1 else None


def _targets(task: Task, row: Example) -> list[str]:
    return [text for text, _ in known_targets(task, row.values)]


def _texts(spec: Field, rows: Iterable[Example]) -> Iterator[str]:
    for row in rows:
        value = row.values.get(spec.name)
        yield from (text for text in (value if isinstance(value, list) else [value]) if text)


def _limit(task: Task, spec: Field) -> int | None:
    """How many words of a text the task keeps, e.g. ``max_question_words``."""
    limit: int | None = getattr(task, f"max_{_singular(spec.name)}_words", None)
    return limit


def _list(title: str, counts: Counter[str], whole: int, text: str) -> Chart:
    top = counts.most_common(_BARS)
    bars = [Bar(label, count, 100 * count / top[0][1], 100 * count / whole) for label, count in top]
    return Chart(title, "list", bars, text)


def _columns(title: str, lengths: Counter[int], limit: int | None) -> Chart:
    if not lengths:
        return Chart(title, "columns", [], "")
    longest, whole = max(lengths), lengths.total()
    width = -(-longest // _COLUMNS)
    bins = Counter((length - 1) // width for length in lengths.elements())
    greatest = max(bins.values())
    stride = max(1, len(str(longest)) - 1)  # so that long numbers do not touch
    bars = []
    for number in range(max(bins) + 1):
        low, high = number * width + 1, (number + 1) * width
        label = str(low) if width == 1 else f"{low}-{high}"
        mark = "" if number % stride else str(low)
        bars.append(Bar(label, bins[number], 100 * bins[number] / greatest, 100 * bins[number] / whole, mark))
    middle = sorted(lengths.elements())[whole // 2]
    text = f"Median {middle}, longest {longest}" + (f"; each bar is {width} words wide." if width > 1 else ".")
    if limit is not None:
        cut = sum(count for length, count in lengths.items() if length > limit)
        text += f" {cut} of {whole} are longer than {limit} words and are cut." if cut else f" None exceeds {limit}."
    return Chart(title, "columns", bars, text)


def _some(counts: Counter[Any], shown: int) -> str:
    return f"{shown} of {len(counts):,}" if len(counts) > shown else f"all {len(counts)}"


def _singular(name: str) -> str:
    return name.removesuffix("s") if name != "hypothesis" else name


def _plural(name: str) -> str:
    return {"hypothesis": "hypotheses"}.get(name, name if name.endswith("s") else f"{name}s")
