"""Other libraries' Python warnings held back, in threads too."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.Lock()
_inside = 0
_first: warnings.catch_warnings[None]


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings of the whole process while any thread is within.

    `warnings.catch_warnings` alone puts back what it found, which is another thread's silence where two
    overlap: that would last for good.
    """
    global _inside, _first
    with _turn:
        if not _inside:
            _first = warnings.catch_warnings(action="ignore")
            _first.__enter__()
        _inside += 1
    try:
        yield
    finally:
        with _turn:
            _inside -= 1
            if not _inside:
                _first.__exit__(None, None, None)
