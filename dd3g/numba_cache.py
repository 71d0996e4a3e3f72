"""Where numba keeps compiled kernels: beside their files, in the user's cache, or for this process alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numba

_config: Any = numba.config
_folders: list[Any] = []  # removed when the process ends


def with_cache(define: Callable[[], Any]) -> Any:
    """What a function returns that defines kernels to be cached, or imports a module that does.

    Where neither the folder of their file nor the user's cache folder can be written, they are compiled anew
    in every process.
    """
    try:
        return define()
    except RuntimeError:
        if _folders:
            raise
        _folders.append(tempfile.TemporaryDirectory(prefix="dd3g-numba-"))
        _config.CACHE_DIR = _folders[0].name
        return define()
