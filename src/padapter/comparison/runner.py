"""Executing jobs: side by side, restartable at any moment, never twice."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from padapter.comparison.collect import collect, collect_diverged, has_diverged
from padapter.comparison.locks import RunLock
from padapter.comparison.plan import Job, default_options, differing
from padapter.comparison.records import RunRecord, read_record, write_record
from padapter.comparison.slots import TRAIN, Running, environments, last_words, start, wait_for_all
from padapter.errors import UserError
from padapter.evaluation.results import write_text
from padapter.training.may_begin import FREE_ON_RESUME
from padapter.training.run_folder import dump_yaml
from padapter.values import read_yaml

POLL_SECONDS = 0.2


@dataclass
class Outcome:
    """What became of a list of jobs.

    Attributes:
        records: job name -> record, of every finished run.
        failed: job name -> what its process said last.
    """

    records: dict[str, RunRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Runner:
    """Runs jobs in a comparison's folder.

    ``records/`` holds one JSON file per finished run, ``runs/`` the folders of the runs. A run whose record is there
    is never repeated; one that was interrupted continues from its last checkpoint. Several comparisons may work in
    the same folder at once, on one machine or on a shared disk: each run is locked by who executes it.

    Args:
        folder: of the comparison.
        jobs: how many runs at a time.
        gpus: how many GPUs there are to spread them over.
        overwrite: repeat runs whose options have changed, instead of refusing, and begin unfinished ones anew.
        environment: variables for every child.
        train: the command that takes the arguments of ``padapter train``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jobs: int,
        gpus: int,
        overwrite: bool = False,
        environment: dict[str, str] | None = None,
        train: Sequence[str] = TRAIN,
    ) -> None:
        self.train = train
        self.folder = folder
        self.overwrite = overwrite
        self.environments = [{**(environment or {}), **own} for own in environments(jobs, gpus)]

    def record_path(self, job: Job) -> Path:
        """Where the record of a job is, or will be."""
        return self.folder / "records" / f"{job.name}.json"

    def run_folder(self, job: Job) -> Path:
        """Where the run is, or will be."""
        return self.folder / "runs" / job.name

    def finished(self, jobs: Iterable[Job]) -> dict[str, RunRecord]:
        """The records that are there already.

        Raises:
            UserError: if one was made with other options, saying which, unless ``overwrite`` is set.
        """
        found = {}
        for job in jobs:
            path = self.record_path(job)
            if not path.is_file():
                continue
            record = read_record(path)
            changed = [] if record.key == job.key else differing(job, record)
            if not changed:
                found[job.name] = record
            elif not self.overwrite:
                raise UserError(
                    f"--output: the run {job.name} is finished, but with other options: "
                    f"{'; '.join(changed)}. Give --overwrite to repeat such runs, or another --output"
                )
        return found

    def execute(self, jobs: list[Job], watch: Callable[[dict[str, RunRecord], list[Running]], None]) -> Outcome:
        """Run what is not finished.

        A run that fails is reported and does not stop the others.

        Args:
            jobs: in the order in which they are started.
            watch: called a few times per second with the records so far and what is running.

        Raises:
            KeyboardInterrupt: after Ctrl-C or a SIGTERM, when every child has written its checkpoint and ended.
        """
        with _stopped_by_sigterm():
            return self._execute(jobs, watch)

    def _execute(self, jobs: list[Job], watch: Callable[[dict[str, RunRecord], list[Running]], None]) -> Outcome:
        outcome = Outcome(records=self.finished(jobs))
        waiting = [job for job in jobs if job.name not in outcome.records]
        by_name = {job.name: job for job in jobs}
        running: list[Running] = []
        try:
            while waiting or running:
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    self._end(child, by_name[child.name], outcome)
                self._fill(waiting, running, outcome)
                watch(outcome.records, running)
                if waiting or running:
                    time.sleep(POLL_SECONDS)
        except BaseException:
            for child in running:  # all hear of it before the first is waited for
                child.interrupt()
            wait_for_all(running)
            raise
        return outcome

    def _fill(self, waiting: list[Job], running: list[Running], outcome: Outcome) -> None:
        """Start jobs on free slots; one that another comparison is executing is looked at again later."""
        for job in list(waiting):
            free = set(range(len(self.environments))) - {child.slot for child in running}
            if not free:
                return
            lock = self._lock(job)
            if lock is None:
                continue
            waiting.remove(job)
            done = self.finished([job])  # by another comparison, in the meantime
            if done:
                outcome.records.update(done)
                lock.release()
                continue
            slot = min(free)
            self._discard_outdated(job)
            write_text(self._config(job), dump_yaml({**job.plain(), "output": str(self.run_folder(job))}))
            arguments = (self.run_folder(job), self._config(job), lock, self.environments[slot])
            running.append(start(job.name, slot, *arguments, self.train))

    def _lock(self, job: Job) -> RunLock | None:
        lock = RunLock(self.folder / "runs" / f"{job.name}.lock")
        return lock if lock.acquire() else None

    def _discard_outdated(self, job: Job) -> None:
        """Remove what earlier options have left, under the run's lock."""
        config, now = self._config(job), job.plain()
        begun = {**default_options(), **(read_yaml(config) if config.is_file() else {})}
        changed = any(begun.get(name) != now[name] for name in now if name not in FREE_ON_RESUME)
        if changed or self.overwrite:
            self.record_path(job).unlink(missing_ok=True)
            shutil.rmtree(self.run_folder(job), ignore_errors=True)
            (self.folder / "runs" / f"{job.name}.log").unlink(missing_ok=True)

    def _config(self, job: Job) -> Path:
        return self.folder / "runs" / f"{job.name}.yaml"

    def _end(self, child: Running, job: Job, outcome: Outcome) -> None:
        run = self.run_folder(job)
        try:
            if child.process.returncode == 0:
                record = collect(job, run)
                shutil.rmtree(run / "checkpoints", ignore_errors=True)  # only a run that goes on needs them
            elif job.stage == "tune" and has_diverged(run):
                record = collect_diverged(job, run)  # a rate that is too high is a result
            else:
                said = last_words(run.parent / f"{run.name}.log")
                outcome.failed[job.name] = f"exit code {child.process.returncode}: {said}"
                return
            write_record(record, self.record_path(job))
            outcome.records[job.name] = record
        except (UserError, OSError, ValueError, KeyError) as problem:  # a damaged run stops no other
            outcome.failed[job.name] = f"{type(problem).__name__}: {problem}"
        finally:
            child.lock.release()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A SIGTERM, as cluster schedulers and `kill` send it, is an interruption: children must not go on alone."""
    if threading.current_thread() is not threading.main_thread():  # only there does Python deliver signals
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
