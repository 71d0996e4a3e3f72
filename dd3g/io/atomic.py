"""Files that appear whole or not at all, and folders that one command writes at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dd3g.command.signals import signals_wait
from dd3g.errors import UserError

TEMPORARY = ".dd3g-tmp-"  # how temporary folders begin
# Names of unfinished files, here and in `dd3g.io.shards`.
UNFINISHED = re.compile(r"\..+\.(\d+-[0-9a-f]{8}(\.\w+)?|\d+\.tmp)")


def sweep(folder: Path, age: float = 0.0) -> None:
    """Remove what killed processes left unfinished in a folder and the folders in it.

    Args:
        folder: that no other process uses.
        age: seconds since they were last written, where others may use it after all.
    """
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):
                if not age or time.time() - path.stat().st_mtime > age:
                    path.unlink()


def check_writable(out: Path) -> None:
    """Create the output folder, and try a file in it.

    Raises:
        UserError: when that fails.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as e:
        reason = "it is a file" if isinstance(e, FileExistsError) else e.strerror or e
        raise UserError(f"cannot write to the output folder {out} ({reason}): choose another with -o") from e


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, else vanishes.

    Args:
        path: the file to write; missing folders are made.

    Yields:
        The temporary path, with the same suffix, to be written by the block.

    Raises:
        UserError: when the folder can't be written to or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem[:60]}.{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch()
            mode = partial.stat().st_mode & 0o777
            partial.unlink()  # some libraries do not write over a file
            yield partial
            if partial.is_file():
                partial.chmod(mode)  # and some write for the eyes of the owner alone, whatever the umask
                with partial.open("rb") as stream:
                    os.fsync(stream.fileno())  # a node that loses power would keep the name and not the bytes
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(_explain(error, path)) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder below `folder` that vanishes with the block, locked as long as this process lives."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A `temporary_folder` among the system's temporary ones; what killed processes left there goes first."""
    place = Path(tempfile.gettempdir())
    remove_leftovers(place)
    with temporary_folder(place) as folder:
        yield folder


class NotAllMoved(UserError):
    """One file could not be moved; `files` have their places, and are whole."""

    def __init__(self, message: str, files: list[str]) -> None:
        super().__init__(message)
        self.files = files


def move_files(temporary: Path, folder: Path) -> None:
    """Move all files of a folder into another one, of the same file system.

    Args:
        temporary: files in folders of their own keep these.
        folder: where the files belong; it exists.

    Raises:
        UserError: when a file's place is taken by a folder; none is moved then.
        NotAllMoved: when one cannot be moved.
    """
    files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
    targets = [folder / path.relative_to(temporary) for path in files]
    for target in targets:
        if target.is_dir():
            raise UserError(f"cannot write {target}: it is a folder; move it away, or choose another with -o")
    moved: list[str] = []
    for path, target in zip(files, targets, strict=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except OSError as error:
            written = f"; written, and whole: {', '.join(moved)}" if moved else ""
            raise NotAllMoved(_explain(error, target) + written, moved) from error
        moved.append(str(target))


@contextmanager
def replacing_all(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when the block ends well, else vanish.

    Args:
        folder: made when missing.

    Yields:
        The temporary folder.

    Raises:
        UserError: as `replacing` and `move_files`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:
            yield temporary
            with signals_wait():
                move_files(temporary, folder)
    except OSError as error:
        raise UserError(_explain(error, folder)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove temporary folders and files in `folder` that killed processes left.

    Folders of living processes are locked, their files bear their numbers; what is a minute old may be of
    another machine.
    """
    for path in folder.glob(".*"):
        if (match := UNFINISHED.fullmatch(path.name)) and "-" in match[1]:
            with contextlib.suppress(OSError):
                if not runs(int(match[1].partition("-")[0])) and time.time() - path.stat().st_mtime > 60:
                    path.unlink()
    for path in folder.glob(f"{TEMPORARY}*"):
        try:
            with _locked(path) as locked:
                # A folder that is made right now may not be locked yet.
                if locked and time.time() - path.stat().st_mtime > 60:
                    shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # it has gone, or belongs to somebody else


def runs(process: int) -> bool:
    """Whether a process of this number may be alive on this machine."""
    if os.name != "posix":  # where to ask is to end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder against other processes where the system can; yields whether it is ours."""
    try:
        import fcntl
    except ImportError:  # of Windows, where nothing is ever taken for a leftover
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:  # somebody else's, or a file system without locks
            locked = False
        yield locked
    finally:
        os.close(handle)


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if str(error.filename or "").startswith(tempfile.gettempdir() + os.sep + TEMPORARY):
            return (
                f"cannot write {path}: there is no room for temporary files in {tempfile.gettempdir()}; free "
                "some, or set TMPDIR to another folder"
            )
        return f"cannot write {path}: the disk is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot write {path}: no permission in {path.parent}; choose a folder you can write to"
    if error.errno == errno.EISDIR:
        return f"cannot write {path}: it is a folder; give the name of a file"
    return f"cannot write {path}: {error.strerror or error}; choose another folder or name"


LOCK = ".lock"
DAY = 86_400.0  # seconds; where nobody can be kept out, only what is as old was left by the dead


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
        sweep(Path(folder), DAY)
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
                sweep(path.parent, DAY)
                yield
                return
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                continue  # who held it removed the file in the meantime
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            who = f"process {os.getpid()} on {socket.gethostname()}, since {now}\n"
            with contextlib.suppress(OSError):  # a full disk has room for no name; the lock holds without one
                os.ftruncate(stream.fileno(), 0)
                os.write(stream.fileno(), who.encode())
            sweep(path.parent)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
