"""Shards: plain webdataset tars, written atomically with the same bytes every time, read at random access."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from dd3g.errors import UserError

_BLOCK = 512
_REDO = "delete it and run the same command again"


def write_shard(path: str | Path, samples: Iterable[dict[str, bytes | str]]) -> None:
    """Write samples to one tar; the file appears under its name only when it is complete.

    Args:
        path: name of the tar; its folder is made when missing.
        samples: each has "__key__" (no dots) and one entry an extension, such as "json"; extensions
            may hold dots ("rgba.png"). The same samples give the same bytes.

    Raises:
        ValueError: for a missing, empty or dotted key, a sample without data, or a key that repeats.
        UserError: when the folder cannot be written.
    """
    from webdataset import TarWriter

    path = Path(path)
    # The process id keeps two runs that were started by mistake from tearing each other's file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    seen: set[str] = set()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            with TarWriter(stream, user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
                for sample in samples:
                    key = str(sample.get("__key__", ""))
                    if not key or "." in key or len(sample) < 2 or key in seen:
                        raise ValueError(
                            f"a sample needs a new key without dots and some data, got key {key!r}"
                        )
                    seen.add(key)
                    data = {k: v.encode() if isinstance(v, str) else v for k, v in sample.items()}
                    tar.write(data | {"__key__": key})
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose a folder that can be "
            "written, then run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class Shards(Sequence[dict]):
    """All samples of some shards: folder by folder as listed, within one by the names of its files.

    Only headers are read when it is made. It holds no open file, so it can be sent to worker processes; they
    get the paths, packed, and read the headers again, all at once, where the index of a large set, or the
    paths of thousands of shards, would be more than a pipe takes and be sent to one after another.

    Args:
        source: a folder (its *.tar files), a tar, or a list of either.
        tolerant: a member whose header is damaged is missing from its sample, as in trainings, which do
            without damaged samples; shards that were cut short are refused all the same.

    Raises:
        UserError: when nothing is there, or a shard is damaged.
    """

    def __init__(self, source: str | Path | Sequence[str | Path], tolerant: bool = False) -> None:
        self._tolerant = tolerant
        sources = [source] if isinstance(source, str | Path) else source
        self.paths = [path for s in sources for path in _tars(Path(s))]
        if not self.paths:
            raise UserError("no shards were given: name a folder of *.tar files")
        self._read_headers()

    def __getstate__(self) -> tuple[bytes, bool]:
        return pack_paths(self.paths), self._tolerant

    def __setstate__(self, packed: tuple[bytes, bool]) -> None:
        self.paths, self._tolerant = unpack_paths(packed[0]), packed[1]
        self._read_headers()

    def _read_headers(self) -> None:
        self._samples = [
            (i, key, members)
            for i, p in enumerate(self.paths)
            for key, members in _index(p, self._tolerant).items()
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        """The sample {"__key__": str, extension: bytes, ...}; negative indices count from the end."""
        return self.read(index)

    def read(self, index: int, *extensions: str) -> dict:
        """Like indexing, but reads only these extensions (all, when none is named)."""
        shard, key, members = self._samples[index]
        if extensions:
            members = {e: members[e] for e in extensions if e in members}
        path = self.paths[shard]
        sample: dict[str, bytes | str] = {"__key__": key}
        try:
            with open(path, "rb") as stream:
                for extension, (offset, size) in members.items():
                    stream.seek(offset)
                    sample[extension] = data = stream.read(size)
                    if len(data) != size:
                        raise UserError(f"shard {path} became shorter while it was read: {_REDO}")
        except OSError as error:
            raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
        return sample

    def key(self, index: int) -> str:
        """The sample's key, without reading its data."""
        return self._samples[index][1]

    def where(self, index: int) -> Path:
        """The shard that holds the sample."""
        return self.paths[self._samples[index][0]]

    @property
    def extensions(self) -> set[str]:
        """Those of all samples: one sample alone may be damaged."""
        return {extension for _, _, members in self._samples for extension in members}

    def foreign(self, *extensions: str) -> Path | None:
        """The first shard whose samples have none of these extensions: it is of another kind."""
        known = {i for i, _, members in self._samples if not members.keys().isdisjoint(extensions)}
        return next((self.paths[i] for i, _, _ in self._samples if i not in known), None)


def pack_paths(paths: Sequence[Path]) -> bytes:
    """Many paths, which differ little, in few bytes."""
    return zlib.compress("\0".join(map(os.fspath, paths)).encode("utf-8", "surrogateescape"))


def unpack_paths(packed: bytes) -> list[Path]:
    """The inverse of `pack_paths`."""
    return [Path(p) for p in zlib.decompress(packed).decode("utf-8", "surrogateescape").split("\0")]


def _tars(path: Path) -> list[Path]:
    try:  # `glob` finds nothing where reading is not allowed
        names = os.listdir(path) if path.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    # Not ._NAME, which macOS leaves beside a copy.
    found = sorted(path / n for n in names if n.endswith(".tar") and n[0] != ".") if path.is_dir() else [path]
    if not found:
        raise UserError(f"{path} holds no shards (*.tar): write some there first, or name another folder")
    return found


def _index(path: Path, tolerant: bool) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> extension -> (offset, size) of one tar, after checking that it is whole."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        end = 0
        with (
            open(path, "rb") as stream,
            tarfile.open(fileobj=stream, mode="r:", ignore_zeros=tolerant) as tar,
        ):
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if not member.isfile():
                    continue
                # Folders may have dots; a tar that was packed again has one before all of them.
                folder, name = posixpath.split(posixpath.normpath(member.name))
                key, _, extension = name.partition(".")
                if key:  # hidden files are no samples
                    place = (member.offset_data, member.size)
                    samples.setdefault(posixpath.join(folder, key), {})[extension] = place
            # tarfile takes a damaged header for the end of the archive, which is really blocks of zeros.
            stream.seek(max(end, stream.seek(0, os.SEEK_END) - 2 * _BLOCK) if tolerant else end)
            if stream.read(2 * _BLOCK) != bytes(2 * _BLOCK) or stream.read().strip(b"\0"):
                raise tarfile.ReadError("it does not end as a tar does")
    except tarfile.TarError as error:
        raise UserError(f"shard {path} is damaged ({error}): {_REDO}") from error
    except FileNotFoundError as error:
        raise UserError(f"shard {path} does not exist: write it first, or name another folder") from error
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
    return samples
