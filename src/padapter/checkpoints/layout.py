"""The names of a checkpoint as data: which entry goes where, which is left behind, and what belongs to something else.

A pattern is a name with placeholders in braces: ``{i}`` stands for a number, ``{end:weight|bias}`` for one of the words
after the colon. A target repeats them without the words: ``{i}``, ``{end}``. So a table reads in both directions, and
an entry that is missing can be called by the name it would have had in the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

Shape = tuple[int, ...]

_PLACE = re.compile(r"\{(\w+)(?::([^}]*))?\}")


@dataclass(frozen=True)
class Layout:
    """Where the entries of a source format go.

    Attributes:
        moved: pattern -> target pattern.
        dropped: pattern -> what it is; such entries may be absent.
        foreign: pattern -> what it is; a file with such entries is another kind of file, and is refused.
    """

    moved: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _forward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_compiled(source, _words(source)), target) for source, target in self.moved.items()]

    @cached_property
    def _backward(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_compiled(target, _words(source)), _template(source)) for source, target in self.moved.items()]

    @cached_property
    def _others(self) -> list[tuple[re.Pattern[str], str, bool]]:
        return [
            (_compiled(pattern, _words(pattern)), what, foreign)
            for table, foreign in ((self.dropped, False), (self.foreign, True))
            for pattern, what in table.items()
        ]

    def target_of(self, name: str) -> str | None:
        """The name of an entry in the target, or ``None`` if it is not moved."""
        return _translated(name, self._forward)

    def source_of(self, name: str) -> str | None:
        """The name in the source of an entry of the target, or ``None`` if no row leads there."""
        return _translated(name, self._backward)

    def sort(self, names: Iterable[str]) -> Sorted:
        """Say of every name what becomes of it."""
        done = Sorted({}, {}, {}, [])
        for name in names:
            target = self.target_of(name)
            if target is not None:
                done.moved[name] = target
                continue
            found = next(((what, foreign) for pattern, what, foreign in self._others if pattern.fullmatch(name)), None)
            if found is None:
                done.unknown.append(name)
            else:
                (done.foreign if found[1] else done.dropped).setdefault(found[0], []).append(name)
        return done


@dataclass(frozen=True)
class Sorted:
    """What becomes of the entries of a file.

    Attributes:
        moved: name -> name in the target.
        dropped: what it is -> names.
        foreign: what it is -> names.
        unknown: names that no row knows.
    """

    moved: dict[str, str]
    dropped: dict[str, list[str]]
    foreign: dict[str, list[str]]
    unknown: list[str]


def below(prefix: str, table: Mapping[str, str], to: str) -> dict[str, str]:
    """The rows of a table one level deeper: ``prefix`` before every pattern, ``to`` before every target."""
    return {f"{prefix}.{source}": f"{to}.{target}" for source, target in table.items()}


def unchanged(patterns: Iterable[str]) -> dict[str, str]:
    """A table in which every name stays what it is."""
    return {pattern: _template(pattern) for pattern in patterns}


def problems(done: Sorted, found: Mapping[str, Shape], wanted: Mapping[str, Shape], layout: Layout) -> list[str]:
    """All that is wrong with a file, one line per kind, names of layers put together.

    Args:
        done: its entries, sorted by ``layout``.
        found: shape of every entry, by its name in the file.
        wanted: shape of every entry of the target, by its name there.
        layout: the table.

    Returns:
        Lines; none if every entry is known, present and of the right shape.
    """
    strange = [*done.unknown, *(name for name, target in done.moved.items() if target not in wanted)]
    present = set(done.moved.values())
    missing = [layout.source_of(target) or target for target in wanted if target not in present]
    wrong = [
        f"{name} is {found[name]} and should be {wanted[target]}"
        for name, target in done.moved.items()
        if target in wanted and found[name] != wanted[target]
    ]
    lines = []
    for title, names in (("unknown", together(strange)), ("missing", together(missing)), ("wrong shape", wrong)):
        if names:
            lines.append(f"{title}: {', '.join(names)}")
    return lines


def together(names: Iterable[str]) -> list[str]:
    """Names that differ in their first number only, as one: ``blocks.{0-11}.norm1.weight``."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        head, number, tail = _first_number(name)
        numbers.setdefault((head, tail), []).extend([] if number is None else [number])
    return [head if not found else f"{head}.{_ranges(sorted(found))}{tail}" for (head, tail), found in numbers.items()]


def common_size(shapes: Mapping[str, Shape], pattern: str, axis: int, default: int) -> int:
    """The size that most entries of a pattern have along an axis; ``default`` if there is none to ask."""
    compiled = _compiled(pattern, _words(pattern))
    sizes = Counter(
        shape[axis] for name, shape in shapes.items() if compiled.fullmatch(name) and -len(shape) <= axis < len(shape)
    )
    return sizes.most_common(1)[0][0] if sizes else default


def layer_count(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows ``prefix.``."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\..*")
    return 1 + max((int(match[1]) for name in names if (match := pattern.fullmatch(name))), default=-1)


def _words(source: str) -> dict[str, str]:
    return {match[1]: match[2] or r"\d+" for match in _PLACE.finditer(source)}


def _compiled(pattern: str, words: Mapping[str, str]) -> re.Pattern[str]:
    pieces, start = [], 0
    for match in _PLACE.finditer(pattern):
        pieces += [re.escape(pattern[start : match.start()]), f"(?P<{match[1]}>{words[match[1]]})"]
        start = match.end()
    return re.compile("".join([*pieces, re.escape(pattern[start:])]))


def _template(source: str) -> str:
    return _PLACE.sub(r"{\1}", source)


def _translated(name: str, rows: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rows:
        match = pattern.fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None


def _first_number(name: str) -> tuple[str, int | None, str]:
    match = re.fullmatch(r"(.*?)\.(\d+)(\..*)?", name)
    return (name, None, "") if match is None else (match[1], int(match[2]), match[3] or "")


def _ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` is ``{0-2,5}``, ``[4]`` is ``4``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
