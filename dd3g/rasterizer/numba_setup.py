"""Numba's thread pool and cache, settled before the first kernel is declared."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import threading
from typing import Any

import numba
import torch

_config: Any = numba.config

# OpenMP may be entered from several Python threads at once; numba's own pool aborts the process then.
if _config.THREADING_LAYER == "default" and importlib.util.find_spec("numba.np.ufunc.omppool"):
    _config.THREADING_LAYER = "omp"
turn: Any = contextlib.nullcontext() if _config.THREADING_LAYER in ("omp", "tbb") else threading.Lock()
"""Hold this around every parallel kernel."""


def _probe() -> None:
    pass


try:
    numba.njit(cache=True)(_probe)
except RuntimeError:
    # Neither this folder nor the user's cache folder can be written: compile anew in every process.
    _folder = tempfile.TemporaryDirectory(prefix="dd3g-numba-")
    _config.CACHE_DIR = _folder.name

# Starting numba's pool sets OpenMP's number of threads, which is torch's too: its sums would round otherwise
# from the first render on, and a training that is resumed would not repeat one that was not stopped.
_threads = torch.get_num_threads()
numba.get_num_threads()  # starts the pool
torch.set_num_threads(_threads)
