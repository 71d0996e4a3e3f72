"""Work in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from dd3g.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores, and of the clock


def usable_cores() -> int:
    """CPU cores that this process may use: a job on a cluster, or a container, has few of a machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = map(int, QUOTA.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def from_launcher(name: str) -> int:
    """RANK, WORLD_SIZE or another number of this process; 0, or 1 of a SIZE, where no launcher set it.

    Raises:
        UserError: for what no launcher would leave in the environment.
    """
    least = int(name.endswith("SIZE"))
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name} is {text!r} in the environment: unset it, or set it to {least} or more")
    return int(text)


def map_in_processes(
    work: Callable[[T], R], tasks: Sequence[T], processes: int, begin: Callable[[], None] | None = None
) -> Iterator[R]:
    """Results of the tasks in their order.

    A signal that ends this process, or a caller that wants no more, ends the others at once.

    Args:
        work: a function that can be pickled, and keeps what it has written when it is called again.
        tasks: one at a time for each process.
        processes: at most; with one, all happens in this process.
        begin: called once in each process before its first task; can be pickled.

    Raises:
        UserError: when a process was killed.
    """
    if processes <= 1 or len(tasks) <= 1:
        if begin:
            begin()
        yield from map(work, tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(processes, len(tasks)), spawn, _start_worker, (begin,)) as pool:
            futures = deque(pool.submit(work, task) for task in tasks)
            try:
                while futures:
                    yield futures.popleft().result()
            except (KeyboardInterrupt, GeneratorExit):
                for child in multiprocessing.active_children():
                    child.kill()
                raise
            except BaseException:
                pool.shutdown(cancel_futures=True)  # by its own thread, which others would race
                raise
    except BrokenProcessPool as error:
        raise UserError(
            "a process was killed, perhaps for lack of memory: run the same command again, with fewer "
            "--processes; what is finished is kept"
        ) from error


def _start_worker(begin: Callable[[], None] | None) -> None:
    """One thread a process, and no orphan when the parent is killed."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends them
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin:
        begin()
