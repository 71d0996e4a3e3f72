"""What the kernels share: numba's thread pool and cache, set up before the first of them, and tile lists."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from dd3g.numba_cache import with_cache

TILE = 16
HEAD = 7  # columns of a splat before its features: x, y, conic xx, xy, yy, opacity, half height

_config: Any = numba.config

# OpenMP may be entered from several Python threads at once; numba's own pool aborts the process then.
if _config.THREADING_LAYER == "default" and importlib.util.find_spec("numba.np.ufunc.omppool"):
    _config.THREADING_LAYER = "omp"
turn: Any = contextlib.nullcontext() if _config.THREADING_LAYER in ("omp", "tbb") else threading.Lock()
"""Hold this around every parallel kernel."""


def _probe() -> None:
    pass


with_cache(lambda: numba.njit(cache=True)(_probe))

# Starting numba's pool sets OpenMP's number of threads, which is torch's too: its sums would round otherwise
# from the first render on, and a training that is resumed would not repeat one that was not stopped.
_threads = torch.get_num_threads()
numba.get_num_threads()  # starts the pool
torch.set_num_threads(_threads)


class Bins(NamedTuple):
    """Visible splats of I images and which tiles they touch."""

    # (M, HEAD + K) by image, then by depth. K is the C colours and the depth, zero-padded to a multiple of 4
    splats: np.ndarray
    rank: np.ndarray  # (I, N) row of each Gaussian in `splats`, -1 if it is not visible
    rows: np.ndarray  # (M + 1,) first row of each splat in the gradient buffer
    # (L, 2) row in `splats` and row in the gradient buffer, by image, then tile, then depth
    isects: np.ndarray
    tiles: np.ndarray  # (I * tiles + 1,) first intersection of each tile, row by row
