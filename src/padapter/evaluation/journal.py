"""Answers on their way: one file per process that grows by a batch at a time, so that nothing is asked twice.

The first line says what gave the answers. An evaluation that is started again goes on from these files if that line is
the one it would write itself; a line that a killed process has left half written does not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from padapter.errors import UserError
from padapter.tasks import Prediction

KIND, FORMAT = "answers on their way", 1
Origin = Mapping[str, Any]


def partial_path(output: Path, process: int = 0) -> Path:
    """Where the answers of a process stand while they come: ``<output>.partial``, ``<output>.partial-1``, ..."""
    return output.with_name(f"{output.name}.partial" + (f"-{process}" if process else ""))


def partial_paths(output: Path) -> list[Path]:
    """The files with answers on their way to ``output``, of however many processes."""
    if not output.parent.is_dir():
        return []
    name = re.compile(re.escape(output.name) + r"\.partial(-\d+)?")
    return sorted(path for path in output.parent.iterdir() if name.fullmatch(path.name))


def remove_partials(output: Path) -> None:
    """Delete them."""
    for path in partial_paths(output):
        path.unlink(missing_ok=True)


def take_up(output: Path, origin: Origin, *, overwrite: bool) -> dict[str, Prediction]:
    """Read the answers that are there already, and leave files that can be added to.

    Args:
        output: where the answers go when all are there.
        origin: what gives the answers now, as plain JSON values.
        overwrite: delete answers of another origin instead of refusing.

    Returns:
        Row id to answer.

    Raises:
        UserError: when answers of another origin are there, naming the differences, or a file is damaged.
    """
    found: dict[str, Prediction] = {}
    for path in partial_paths(output):
        lines = _whole_lines(path)
        if not lines:
            path.unlink()
            continue
        differences = _differences(_origin_of(lines[0]), origin)
        if differences and overwrite:
            path.unlink()
            continue
        if differences:
            raise UserError(
                f"--output: {path} holds answers of an interrupted run that was another one: {'; '.join(differences)}. "
                "Give --overwrite to start over, or choose another place"
            )
        for number, line in enumerate(lines[1:], start=2):
            prediction = _read(line, f"{path}, line {number}")
            found.setdefault(prediction.id, prediction)
    return found


class Journal:
    """Adds answers to this process's file; a context manager.

    Args:
        output: where the answers go when all are there; ``None`` writes nothing.
        origin: what gives the answers, as plain JSON values.
        process: index of this process.
    """

    def __init__(self, output: Path | None, origin: Origin, process: int = 0) -> None:
        self._stream: TextIO | None = None
        if output is None:
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        self._stream = partial_path(output, process).open("a", encoding="utf-8")
        if self._stream.tell() == 0:
            self._write([{"kind": KIND, "format": FORMAT, "origin": dict(origin)}])

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write the answers of a batch, and hand them to the operating system: the end of this process keeps them.

        Scores keep all their digits here.
        """
        self._write(
            {"id": answer.id, "text": answer.text, **({} if answer.scores is None else {"scores": answer.scores})}
            for answer in predictions
        )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        if self._stream is not None:
            self._stream.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            self._stream.flush()


def is_header(line: Any) -> bool:
    """Whether a JSON value is the first line of answers on their way."""
    return isinstance(line, dict) and line.get("kind") == KIND


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file without a last one that is cut off, which is removed from the file."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return whole.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: is damaged ({problem}); delete it and start again") from problem


def _origin_of(line: str) -> Origin:
    try:
        header = json.loads(line)
    except ValueError:
        return {}
    return header["origin"] if is_header(header) and header.get("format") == FORMAT else {}


def _differences(before: Origin, now: Origin) -> list[str]:
    if not before:
        return ["it does not say what gave them"]
    names = [*now, *(name for name in before if name not in now)]
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _read(line: str, place: str) -> Prediction:
    try:
        value = json.loads(line)
        return Prediction(id=value["id"], text=value["text"], scores=value.get("scores"))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{place}: is damaged ({problem!r}); delete the file and start again") from problem
