"""Where runs are executed: one process each, as many at a time as there are slots."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padapter.comparison.locks import RunLock

# Set by the caller's shell or by us, so that runs side by side do not fight over cores.
THREADS = "OMP_NUM_THREADS"
TRAIN = (sys.executable, "-m", "padapter", "train")


@dataclass
class Running:
    """A run in its process.

    Attributes:
        name: of the job.
        slot: the number of its place.
        process: the child.
        lock: held while the child works, so that another comparison in the same folder leaves the run alone.
    """

    name: str
    slot: int
    process: subprocess.Popen[bytes]
    lock: RunLock

    def interrupt(self) -> None:
        """Ask for a checkpoint and the end, once: a second time would mean at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)


def wait_for_all(running: Sequence[Running]) -> None:
    """Wait until every child has ended, and release the locks; an interruption while waiting kills them."""
    try:
        for child in running:
            child.process.wait()
    except KeyboardInterrupt:
        for child in running:
            child.process.kill()
            child.process.wait()
        raise
    finally:
        for child in running:
            child.lock.release()


def start(
    name: str,
    slot: int,
    folder: Path,
    config: Path,
    lock: RunLock,
    environment: dict[str, str],
    train: Sequence[str] = TRAIN,
) -> Running:
    """Start ``padapter train`` in a process of its own; it resumes if its folder holds a run.

    Args:
        name: of the job.
        slot: the number of its place.
        folder: of the run.
        config: the options, as a recipe of ``padapter train``.
        lock: acquired by the caller; the child holds it too.
        environment: variables on top of this process's own.
        train: the command that takes the arguments of ``padapter train``.
    """
    begun = (folder / "config.yaml").is_file()
    command = [*train, "--config", str(config), "--output", str(folder), "--quiet"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--resume" if begun else "--overwrite"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=() if lock.descriptor is None else (lock.descriptor,),
            start_new_session=True,  # Ctrl-C is for the comparison, which passes it on
        )
    return Running(name, slot, process, lock)


def environments(jobs: int, gpus: int) -> list[dict[str, str]]:
    """The variables of every slot: one GPU each, in turn, or a share of the cores.

    Args:
        jobs: number of slots.
        gpus: number of GPUs; 0 for a run on the CPU.
    """
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        return [{"CUDA_VISIBLE_DEVICES": names[slot % len(names)]} for slot in range(jobs)]
    threads: dict[str, Any] = {}
    if jobs > 1 and THREADS not in os.environ:
        threads = {THREADS: str(max(1, _cores() // jobs))}
    return [dict(threads) for _ in range(jobs)]


def last_words(log: Path, lines: int = 3) -> str:
    """The end of a child's output."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no output"
    said = [line for line in text.splitlines() if line.strip()]
    return " | ".join(said[-lines:]) or "no output"


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
