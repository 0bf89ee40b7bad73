"""What the documents say runs: Python blocks are executed, command lines are parsed, make targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] in languages:
                line = text[: match.start()].count("\n") + 2
                found.append(pytest.param(document, line, match[2], id=f"{document.name}:{line}"))
    return found


def command_lines() -> list:
    found = []
    for parameter in blocks("bash", "console", "sh"):
        document, line, text = parameter.values
        for offset, command in enumerate(text.replace("\\\n", " ").splitlines()):
            command = command.removeprefix("$ ").split(" #")[0].strip()
            if command.split(" ")[0] in ("padapter", "make"):
                found.append(pytest.param(command, id=f"{document.name}:{line + offset}:{command[:40]}"))
    return found


def test_there_is_something_to_run():
    assert len(blocks("python")) >= 5
    assert len(command_lines()) >= 8


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for found, line, code in (parameter.values for parameter in blocks("python")):
        if found == document:
            padded = "\n" * (line - 1) + code  # so that a traceback shows the line of the document
            exec(compile(padded, str(document), "exec"), namespace)


@pytest.mark.parametrize("command", command_lines())
def test_command_lines_are_understood(command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    from typer.main import get_command

    from padapter.cli import app

    root = get_command(app)
    if "--help" in words or "--version" in words:
        words = [w for w in words if w not in ("--help", "--version")]
    context, rest, group = root.make_context("padapter", words[1:], resilient_parsing=True), words[1:], root
    while hasattr(group, "resolve_command") and rest:
        _, group, rest = group.resolve_command(context, rest)
    parser = group.make_parser(context)
    parser.parse_args(list(rest))  # raises click.UsageError on an unknown option
