"""Where a dataset lies: a folder, or a prefix of a bucket that fsspec reaches."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from dd3g.errors import UserError
from dd3g.fingerprint import file_sha256, fingerprint
from dd3g.io.atomic import runs
from dd3g.io.shards import write_shard

_RENAMING = {"sftp", "ssh", "smb", "ftp", "hdfs", "webhdfs", "arrow_hdfs"}  # a write there can be cut short


class Storage:
    """Files by name under one place; each appears whole or not at all.

    Names use "/" and are relative. Bucket services put objects whole; local files and those of servers that
    append get a temporary name first.

    Args:
        where: a folder, or a URL that fsspec knows: s3://bucket/prefix, gs://…, hf://…, memory://….

    Raises:
        UserError: for a protocol that is unknown or whose package is not installed.
    """

    def __init__(self, where: str | Path) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.dirfs import DirFileSystem
        from fsspec.implementations.local import LocalFileSystem

        self.where = str(where).rstrip("/") or "/"
        plain = "://" not in self.where and "::" not in self.where
        try:
            fs, root = (LocalFileSystem(), Path(where).absolute()) if plain else url_to_fs(self.where)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"cannot reach {self.where} ({error}): give a folder, or a URL whose fsspec package is "
                "installed, such as s3fs for s3:// or gcsfs for gs://"
            ) from error
        if isinstance(fs, DirFileSystem):  # fsspec gives its root twice
            fs, root = fs.fs, fs.path
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        # Set when the files are this machine's own, which deserve temporary names and no copies
        self.folder = Path(self.where if plain else root) if isinstance(fs, LocalFileSystem) else None

    def __str__(self) -> str:
        return self.where

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files and folders directly under `folder`; none when it does not exist.

        Temporary files are left out.
        """
        with self._explained("list", folder):
            path = self._path(folder)
            try:
                self._fs.invalidate_cache(path)
                listed = [str(p).rstrip("/") for p in self._fs.ls(path, detail=False)]
            except FileNotFoundError:
                return []
        found = {p.rsplit("/", 1)[-1] for p in listed if p.strip("/") != path.strip("/")}
        return sorted(name for name in found if not name.startswith("."))

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name is there."""
        with self._explained("look for", name):
            self._fs.invalidate_cache(self._path(name))
            return bool(self._fs.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            UserError: when it cannot be read.
        """
        with self._explained("read", name):
            return bytes(self._fs.cat_file(self._path(name)))

    def write(self, name: str, data: bytes | str) -> None:
        """Write a whole file, replacing one that is there.

        Raises:
            UserError: when that is refused or the disk is full; what was there stays.
        """
        data = data.encode() if isinstance(data, str) else data
        with self._explained("write", name), self._placed(name) as target:
            self._fs.pipe_file(target, data)

    def write_shard(self, name: str, samples: Iterable[dict[str, bytes | str]]) -> tuple[int, str]:
        """Write a tar, replacing one that is there.

        Args:
            name: of the tar.
            samples: as for `dd3g.io.shards.write_shard`; taken one by one.

        Returns:
            Its bytes and their sha256.

        Raises:
            UserError: when that is refused or the disk is full; what was there stays.
        """
        if self.folder is not None:
            write_shard(self.folder / name, samples)
            return checksum(self.folder / name)
        with TemporaryDirectory(prefix="dd3g-") as scratch:
            path = Path(scratch) / "shard.tar"
            write_shard(path, samples)
            with self._explained("write", name), self._placed(name) as target:
                self._fs.put_file(str(path), target)
            return checksum(path)

    @contextmanager
    def reading(self, *names: str) -> Iterator[list[Path]]:
        """Local files that hold what `names` hold; copies of a bucket's vanish when the block ends."""
        if self.folder is not None:
            yield [self.folder / name for name in names]
            return
        with TemporaryDirectory(prefix="dd3g-") as scratch:
            paths = []
            for name in names:
                paths.append(Path(scratch) / name)
                paths[-1].parent.mkdir(parents=True, exist_ok=True)
                with self._explained("read", name):
                    self._fs.get_file(self._path(name), str(paths[-1]))
            yield paths

    def delete(self, *names: str) -> None:
        """Delete files; those that are gone already don't matter."""
        for name in names:
            with self._explained("delete", name), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

    def sweep(self, folder: str, stem: str = "") -> None:
        """Delete temporary files that a killed run left in `folder` for files whose name starts with `stem`.

        Those of processes that run on this machine stay, and all where the system is not POSIX. The folder
        itself goes too when nothing is left in it.
        """
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            for path in (self.folder / folder).glob(f".{stem}*.tmp"):
                process = path.name.rsplit(".", 2)[1]
                if not (process.isdecimal() and runs(int(process))):
                    path.unlink()
            if folder:
                (self.folder / folder).rmdir()

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Keep other processes from working under the same name, on this machine's own disks only.

        Raises:
            UserError: when another process does.
        """
        if self.folder is None:
            yield
            return
        import fcntl

        # Not in the set, where a killed process would leave it.
        place = fingerprint(str(self.folder.resolve() / name))
        path = Path(gettempdir()) / f"dd3g-{os.getuid()}-{place}.lock"
        with open(path, "wb") as stream:  # the lock ends with the process, however that ends
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another process works on this set, {self.where}: wait for it or stop it, then run the "
                    "same command again"
                ) from error
            yield  # the empty file stays: another process may have opened it, and would lock what is gone

    def check_writable(self, name: str) -> None:
        """Write and delete a small file of this name, one for each process; a UserError when refused."""
        self.write(name, b"")
        self.delete(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    @contextmanager
    def _placed(self, name: str) -> Iterator[str]:
        """Where to write a file, under a temporary name first where a write can be cut short."""
        target, protocol = self._path(name), self._fs.protocol
        if self.folder is None and not _RENAMING & {*([protocol] if isinstance(protocol, str) else protocol)}:
            yield target
            return
        folder, _, base = target.rpartition("/")
        # The process id keeps two runs that were started by mistake from tearing each other's file.
        partial = f"{folder}/.{base}.{os.getpid()}.tmp"
        self._fs.makedirs(folder, exist_ok=True)
        try:
            yield partial
            if self.folder is None:
                self._fs.mv(partial, target)
            else:
                with open(partial, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):  # as each server says it in its own way that there is none
                self._fs.rm_file(partial)
            raise

    @contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            why = (
                "its folder cannot be created; choose another place"
                if verb == "write"
                else "it does not exist"
            )
            raise UserError(f"cannot {verb} {self.where}/{name}: {why}") from error
        except OSError as error:
            raise UserError(f"cannot {verb} {self.where}/{name}: {_reason(error)}") from error
        except Exception as error:
            if self.folder is not None:
                raise
            # Services raise what their client libraries like: no credentials, no such bucket, no network.
            raise UserError(f"cannot {verb} {self.where}/{name}: {error or type(error).__name__}") from error


def checksum(path: Path) -> tuple[int, str]:
    """Bytes of a file and their sha256."""
    return path.stat().st_size, file_sha256(path)


def _reason(error: OSError) -> str:
    again = "then run the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full; free some space, {again}"
    if isinstance(error, PermissionError) or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission; check the permissions or choose another place, {again}"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a part of the path is a file; choose another place"
    return f"{error.strerror or error}; check the place, {again}"
