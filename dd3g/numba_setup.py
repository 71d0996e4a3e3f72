"""Numba as all kernels use it: decorators, cache and thread pool, set up before the first of them."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import torch
from numba import prange as prange

from dd3g.errors import UserError
from dd3g.io.atomic import scratch_folder

njit: Any = numba.njit  # typed, its kernels would not take *arrays
_config: Any = numba.config
_folders: list[Any] = []
_end = contextlib.ExitStack()  # removes them when the process ends
atexit.register(_end.close)

# OpenMP may be entered from several Python threads at once; numba's own pool aborts the process then. Slim
# systems have no libgomp.
_gnu = False
with contextlib.suppress(ImportError):
    if _config.THREADING_LAYER in ("default", "omp"):
        _gnu = importlib.import_module("numba.np.ufunc.omppool").openmp_vendor == "GNU"
        _config.THREADING_LAYER = "omp"


class _OwnProcess(contextlib.nullcontext[None]):
    """The threads of GNU's OpenMP do not survive a fork, where numba would end the process by a signal."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise UserError(
                "this process was forked from one that had loaded dd3g's kernels, and lacks their threads: "
                "use multiprocessing.get_context('spawn')"
            )


turn: Any = contextlib.nullcontext() if _config.THREADING_LAYER in ("omp", "tbb") else threading.Lock()
"""Hold this around every parallel kernel."""
if _gnu:
    turn = _OwnProcess()


def with_cache(define: Callable[[], Any]) -> Any:
    """What a function returns that defines kernels to be kept, or imports a module that does.

    Where neither the folder of their file nor the user's cache folder can be written, they are compiled anew
    in every process.
    """
    try:
        return define()
    except RuntimeError:
        if _folders:
            raise
        _folders.append(_end.enter_context(scratch_folder()))
        _config.CACHE_DIR = str(_folders[0])
        return define()


with_cache(lambda: njit(cache=True)(lambda: None))  # asks whether there is a place

# Starting numba's pool sets OpenMP's number of threads, which is torch's too: its sums would round otherwise
# from the first render on, and a training that is resumed would not repeat one that was not stopped.
_threads = torch.get_num_threads()
numba.get_num_threads()  # starts the pool
torch.set_num_threads(_threads)
