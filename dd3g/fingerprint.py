"""One hash for whatever must stay the same while a piece of work goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PIECES, _PIECE = 1024, 4096  # of a large file of weights, and bytes, that a folder's fingerprint reads


def fingerprint(*parts: str | bytes) -> str:
    """First 16 hex digits of the sha256 of some texts or bytes, one behind the other.

    Texts count as UTF-8 in every locale, and may hold file names that are not valid.
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return sha.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """Hash of a pipeline's folder, 8 hex digits, whatever its place: another one for retrained weights.

    Configs count whole; of each file of weights its size and 4 MiB spread over it, so that even the largest
    take milliseconds.
    """
    sha = hashlib.sha256()
    parts = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [folder / "model_index.json", *(f for part in parts for f in sorted((folder / part).iterdir()))]
    for file in files:
        if file.suffix not in (".json", ".safetensors") or file.name.startswith(".") or not file.is_file():
            continue
        size = file.stat().st_size
        sha.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with open(file, "rb") as stream:
            if file.suffix == ".json" or size <= _PIECES * _PIECE:
                sha.update(stream.read())
                continue
            for i in range(_PIECES):
                stream.seek(i * (size - _PIECE) // (_PIECES - 1))
                sha.update(stream.read(_PIECE))
    return sha.hexdigest()[:8]
