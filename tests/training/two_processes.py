"""Two processes that are connected as a launcher would connect them."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from datetime import timedelta

import pytest
import torch
from torch import distributed

LOOPBACK = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


@pytest.fixture
def two(tmp_path):
    """Runs a function in two connected processes; what each returned, or ``None`` for one that ended itself.

    They are forked, which takes no time, and meet at a file, which cannot be taken by anybody else.
    """
    calls = []

    def child(work, index, folder):
        try:
            torch.set_num_threads(1)
            os.environ.update(GLOO_SOCKET_IFNAME=LOOPBACK, OMP_NUM_THREADS="1")
            os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", RANK=str(index), LOCAL_RANK=str(index))
            distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/store", rank=index, world_size=2, timeout=timedelta(seconds=60)
            )
            (folder / f"{index}.json").write_text(json.dumps(work(index)))
        except BaseException:
            (folder / f"{index}.txt").write_text(traceback.format_exc())
        os._exit(0)  # see leave_processes

    def run(work):
        folder = tmp_path / f"call-{len(calls)}"
        folder.mkdir()
        calls.append(folder)
        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=child, args=(work, index, folder)) for index in range(2)]
        for process in children:
            process.start()
        for process in children:
            process.join(timeout=120)
            assert process.exitcode is not None, "a process waits for ever"
        for problem in folder.glob("*.txt"):
            raise AssertionError(problem.read_text())
        results = [folder / f"{index}.json" for index in range(2)]
        return [json.loads(path.read_text()) if path.exists() else None for path in results]

    return run
