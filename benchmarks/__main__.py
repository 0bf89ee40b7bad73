"""``python -m benchmarks [NAME ...]``: measure, and write one JSON per benchmark."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.process import THREADS, NotHereError, Process
from benchmarks.registry import BENCHMARKS

#: Processes that want a core, on average over the last minute; above it the numbers would be about them.
HIGHEST_LOAD = 0.5
QUICK_RESULTS = Path("runs") / "bench-quick"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    seconds = {name: f"{it.seconds} s{', long' if it.long else ''}" for name, it in BENCHMARKS.items()}
    listed = "\n".join(f"  {name:<12}{it.about} ({seconds[name]})" for name, it in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, epilog=listed, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which of them (default: all that are not long)")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--quick", action="store_true", help=f"toy sizes, to see that all runs; to {QUICK_RESULTS}")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="computing threads (default: 2)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: benchmarks/results)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a side where there is one; slow")
    parser.add_argument("--anyway", action="store_true", help="measure on busy cores too; the files will say so")
    found = parser.parse_args(words)
    found.names = found.names or [name for name, it in BENCHMARKS.items() if found.all or not it.long]
    unknown = [name for name in found.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if found.threads < 1:
        parser.error(f"--threads: must be at least 1, got {found.threads}")
    return found


def run(name: str, folder: Path, about: dict[str, Any], *, quick: bool, compiled: bool) -> float:
    """One benchmark in a process of its own; seconds it took."""
    benchmark = BENCHMARKS[name]
    print(f"{name}: {benchmark.about}; up to {benchmark.seconds} s", flush=True)
    start = time.perf_counter()
    extra = {"compiled": compiled} if benchmark.compiles else {}
    cases = []
    try:
        with Process(f"benchmarks.{name}:run", quick=quick, **extra) as process:
            for case in process:
                print(f"  {line(case)}", flush=True)
                cases.append(case)
    except NotHereError as reason:
        print(f"  left out: {reason}")
        return time.perf_counter() - start
    took = time.perf_counter() - start
    path = timing.write(name, cases, folder, quick=quick, took_seconds=round(took), **about)
    late = " - more than planned" if took > benchmark.seconds and not quick else ""
    print(f"  {took:.0f} s{late}, {path}", flush=True)
    return took


def line(case: dict[str, Any]) -> str:
    """A case in one line, without what has many numbers."""
    short = {key: value for key, value in case.items() if key not in ("seconds", "quartiles", "median")}
    return "  ".join(f"{key} {value}" for key, value in short.items() if value not in ({}, None))


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the command line names; 1 if the cores are busy."""
    chosen = arguments(words)
    load = os.getloadavg()[0]
    busy = load > HIGHEST_LOAD
    if busy:
        print(f"The cores are busy: {load:.1f} processes wanted one on average over the last minute.", file=sys.stderr)
        if not (chosen.anyway or chosen.quick):
            print("Wait until they are not, or measure --anyway.", file=sys.stderr)
            return 1
    os.environ[THREADS] = str(chosen.threads)
    with Process("benchmarks.timing:facts") as process:
        about = {"machine": process.ask(), "load_at_start": round(load, 2), "busy": busy}
    folder = chosen.output or (QUICK_RESULTS if chosen.quick else timing.RESULTS)
    took = sum(run(name, folder, about, quick=chosen.quick, compiled=chosen.compile) for name in chosen.names)
    print(f"all: {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
