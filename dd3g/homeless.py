"""Where a user without a home, as a container may have, keeps caches."""

from __future__ import annotations

import os
import stat
import tempfile


def cache_folder() -> str:
    """A folder of their own among the temporary ones, the same in every process where it can be.

    Numba's cache holds code, so that nobody else may have written it.

    Raises:
        OSError: when none can be made.
    """
    folder = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        state = os.lstat(folder)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
            return tempfile.mkdtemp(prefix="cache-")
    return folder
