"""One command at a time in a folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dd3g.errors import UserError
from dd3g.io.atomic import sweep

LOCK = ".lock"


@contextmanager
def only_user(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder, so that a second command does not do the same work, or undo it; sweep it first.

    The system lets go of it when the process ends in any way. File systems without locks are not guarded.

    Args:
        folder: made when missing.
        wait: for another process that holds it, instead of refusing.

    Raises:
        UserError: when another process holds it, or it cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield
        return
    path = Path(folder) / LOCK
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+")
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another folder") from error
        with stream:
            try:
                fcntl.flock(stream, how)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise UserError(
                    f"{folder} is in use by {holder}: wait for it or stop it, or choose another folder"
                ) from None
            except OSError:  # no locks on this file system
                yield
                return
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                continue  # who held it removed the file in the meantime
            stream.truncate(0)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
            stream.flush()
            sweep(path.parent)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
