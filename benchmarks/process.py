"""Generators in processes of their own: a whole benchmark, or one of the sides it compares.

What a generator yields goes to the parent as JSON, one item each time the parent asks. So a parent can interleave sides
that must not share a process, because memory, the allocator's state and compiled code are properties of a process::

    def side(method):                      # in benchmarks/step.py
        ...                                # build, warm up
        yield {"trainable": 52656}         # facts
        while True:
            ...
            yield seconds                  # one repeat

    with Process("benchmarks.step:side", method="lora") as lora:
        facts, first = lora.ask(), lora.ask()
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

#: Environment variable: computing threads of every process.
THREADS = "PADAPTER_BENCH_THREADS"
_ROOT = Path(__file__).parents[1]
#: Seconds that a process may go on with the item it is at, when nobody waits for it any more.
_GRACE = 20
#: No progress bars between the cases.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


class NotHereError(Exception):
    """A benchmark cannot run on this machine; the message says why."""


class Process:
    """A generator function in a new process, suspended until it is asked.

    Args:
        function: "module:name".
        arguments: of the function; JSON must be able to hold them.

    Raises:
        NotHereError: by ``ask``, if the generator raises it.
        RuntimeError: by ``ask``, if the process dies; its own message is on the standard error.
    """

    def __init__(self, function: str, **arguments: Any) -> None:
        self._name = f"{function} {json.dumps(arguments)}"
        threads = os.environ.get(THREADS, "2")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.process", function, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, **_QUIET, THREADS: threads, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        )

    def ask(self) -> Any:
        """The generator's next item.

        Raises:
            StopIteration: there is none.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print("next", file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise RuntimeError(f"{self._name} ended with {self._process.wait()}") from None
        if "not here" in answer:
            raise NotHereError(answer["not here"])
        if "item" not in answer:
            raise StopIteration
        return answer["item"]

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                item = self.ask()
            except StopIteration:
                return
            yield item

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=_GRACE)  # the end of its input ends it, and lets it clean up
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def interleaved_processes(
    function: str, sides: Mapping[str, Mapping[str, Any]], repeats: int
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """One process per side, asked in turn; all of them live at the same time, and only one computes.

    Args:
        function: "module:name" of a generator function that yields facts and then, for ever, one repeat.
        sides: name -> arguments.
        repeats: how often each side is asked for a repeat.

    Returns:
        facts by side, and repeats by side.
    """
    with ExitStack() as stack:
        processes = {name: stack.enter_context(Process(function, **arguments)) for name, arguments in sides.items()}
        facts = {name: process.ask() for name, process in processes.items()}
        found: dict[str, list[Any]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, process in processes.items():
                found[name].append(process.ask())
    return facts, found


def main(function: str, arguments: str) -> None:
    """In the new process: answer every line of standard input with the next item."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not get between the answers

    import torch

    # Before the first operation, so that worker threads inherit it: gradients of random weights are full of
    # denormal numbers, which cost a hundred times as much as others.
    torch.set_flush_denormal(True)
    torch.set_num_threads(int(os.environ[THREADS]))

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    module, name = function.split(":")
    items = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    for _ in sys.stdin:
        try:
            answer(item=next(items))
        except StopIteration:
            answer()
        except NotHereError as reason:
            answer(**{"not here": str(reason)})
    items.close()  # what it has on disk goes


if __name__ == "__main__":
    # Under its own name, so that there is one NotHereError and not one of __main__.
    importlib.import_module("benchmarks.process").main(*sys.argv[1:])
