"""Work on many meshes at the same time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dd3g.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def map_in_processes(work: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[R]:
    """Results of the tasks in their order.

    Args:
        work: a function that can be pickled, and keeps what it has written when it is called again.
        tasks: one at a time for each process.
        processes: at most; with one, all happens in this process.

    Raises:
        UserError: when a process was killed.
    """
    if processes <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(processes, len(tasks)), spawn, _start_worker) as pool:
            yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that was drawing was killed, perhaps for lack of memory: run the same command again, "
            "with fewer --processes; finished files are kept"
        ) from error


def _start_worker() -> None:
    """One thread a process, and no orphan when the parent is killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
