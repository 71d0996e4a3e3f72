"""Which thread pool numba uses, settled before the first parallel kernel runs."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from typing import Any

import numba

_config: Any = numba.config
# OpenMP may be entered from several Python threads at once; numba's own pool aborts the process then.
if _config.THREADING_LAYER == "default" and importlib.util.find_spec("numba.np.ufunc.omppool"):
    _config.THREADING_LAYER = "omp"
turn: Any = contextlib.nullcontext() if _config.THREADING_LAYER in ("omp", "tbb") else threading.Lock()
"""Hold this around every kernel."""
