"""Several processes that answer together, as ``torchrun`` and ``accelerate launch`` start them.

Texts, scores and counts travel between them over gloo, whatever the device: it notices at once when a process is gone,
and a process that is merely slow is waited for. Gradients are transformers' and accelerate's matter.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from padapter.errors import UserError

T = TypeVar("T")

# How long a process waits for others that are alive and silent; one that died is noticed at once.
PATIENCE = timedelta(days=1)

# What torch says where the connection to another process ends.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """This process among those that work on one thing. All of them must make the same calls in the same order.

    Attributes:
        index: of this process, from 0.
        count: how many there are.
        group: over which they talk; ``None`` for one process.
    """

    index: int = 0
    count: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes results and prints them."""
        return self.index == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, in every process.

        Raises:
            UserError: when another process is gone.
        """
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(found, value, group=self.group)
        except RuntimeError as problem:
            raise self._lost() from problem
        return found

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Around work in which a library lets the processes talk: says so where one of them is gone.

        Raises:
            UserError: when another process is gone.
        """
        try:
            yield
        except RuntimeError as problem:
            if self.count == 1 or not _LOST.search(str(problem)):
                raise
            raise self._lost() from problem

    def _lost(self) -> UserError:
        return UserError(
            f"process {self.index + 1} of {self.count}: another process stopped before it was done; its own "
            "message says why. With --output the same command goes on from what has been answered"
        )

    def agree(self, values: Mapping[str, Any]) -> None:
        """Refuse processes that would do something else: their shares would not fit together.

        Args:
            values: what must be the same in all of them, by a name that a person knows.

        Raises:
            UserError: naming the differences.
        """
        first, *_ = everyone = self.gather(values)
        for index, other in enumerate(everyone):
            names = [name for name in first if other.get(name) != first[name]]
            if names:
                raise UserError(
                    f"process {index + 1} of {self.count} differs from the first one in: {', '.join(names)}; all "
                    "processes need the same data, model and options"
                )

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process only; its value, or its ``UserError``, comes back in every process.

        Raises:
            UserError: what ``work`` raised, or another process is gone.
        """
        if self.count == 1:
            return work()
        value, problem = None, None
        if self.main:
            try:
                value = work()
            except UserError as error:
                problem = error
        value, said = self.gather((value, str(problem) if problem is not None else None))[0]
        if problem is not None:
            raise problem
        if said is not None:
            raise UserError(said)
        return value  # type: ignore[return-value]


ALONE = Processes()
_joined: tuple[Any, Processes] | None = None


def join_processes(*, gpu: bool = False) -> Processes:
    """This process among those that were started with it; alone if there are no others.

    Processes that ``torchrun`` or ``accelerate launch`` started are connected at the first call. Where a process group
    exists already, all of its processes must make the call.

    Args:
        gpu: whether tensors on GPUs will travel too, as in training; counts at the first call.

    Raises:
        UserError: when the others cannot be found.
    """
    global _joined
    if not distributed.is_available():
        return ALONE
    if not distributed.is_initialized():
        if expected_processes() == 1:
            return ALONE
        _connect(gpu)
    world = distributed.group.WORLD
    if distributed.get_world_size() == 1:
        return ALONE
    if _joined is None or _joined[0] is not world:
        try:
            # A new group would wait PATIENCE for a process that is gone already.
            distributed.barrier()
            group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        except RuntimeError as problem:
            raise UserError(f"another process stopped before the work began ({problem})") from problem
        _joined = world, Processes(distributed.get_rank(), distributed.get_world_size(), group)
    return _joined[1]


def expected_processes() -> int:
    """How many processes the launcher has started, by its environment variable ``WORLD_SIZE``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_several(command: str) -> None:
    """Refuse a launch by ``torchrun`` or ``accelerate launch`` with several processes.

    Args:
        command: that cannot use them, for the message.

    Raises:
        UserError: where there are several.
    """
    connected = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if connected or expected_processes() > 1:
        raise UserError(
            f"{command} starts processes of its own (see --jobs): give the command without torchrun or accelerate "
            "launch; padapter train, eval and predict can use several processes"
        )


def leave_processes(status: int, problem: BaseException | None = None) -> None:
    """End a process that :func:`join_processes` connected to others, without freeing the connection; does not return.

    Freeing it waits for a thread of gloo with the interpreter's lock held, and that thread may be waiting for the lock
    to free what it gathered last (torch 2.13): an ordinary exit can hang. Returns where there are no others.

    Args:
        status: of the process.
        problem: what ends it, if its traceback should be seen.
    """
    if _joined is not None:
        if problem is not None:
            traceback.print_exception(problem)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def local_device() -> str:
    """The GPU of this process: one each where a launcher has started several.

    Raises:
        UserError: when there are more processes than GPUs.
    """
    if expected_processes() == 1:
        return "cuda"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"--device: process {local + 1} on this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; start one process per GPU, or give --device cpu"
        )
    return f"cuda:{local}"


def _connect(gpu: bool) -> None:
    # Not every build of torch has them.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, count = next(rendezvous("env://"))
        # A launcher that starts processes again after one was lost (torchrun --max-restarts) keeps its store, in which
        # the addresses of the lost ones still stand.
        store = PrefixStore(f"padapter/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        if gpu:
            torch.cuda.set_device(local_device())
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    except (RuntimeError, ValueError) as problem:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the other processes cannot be found ({problem}); start "
            "with torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from problem
