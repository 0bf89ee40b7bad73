"""A lock on a file that a child process can keep."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class RunLock:
    """An exclusive lock on a run, held through an open file.

    The descriptor is handed to the process that executes the run, and the lock lasts until the last holder has closed
    it: should the comparison be killed, the run that goes on without it is still not started a second time. (The
    library for this, filelock, has no way to pass a lock on.)

    Args:
        path: of the lock file; made if it is not there, never removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        return True

    def release(self) -> None:
        """Close this process's share of the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
