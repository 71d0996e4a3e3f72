"""Where pictures lie: files in folders, samples of shards, rows of tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.picture import SUFFIXES

SHEET, DEPTH = "rgba.png", "depth.png"  # what a rendered object's sample holds
EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)  # of pictures in samples


@dataclass(frozen=True)
class Found:
    """Files of one kind.

    Args:
        root: the folder that was named, or that of the file that was.
        kind: "pictures", "shards" or "tables".
        files: sorted, at any depth below the root.
    """

    root: Path
    kind: str
    files: Sequence[Path]

    def listing(self) -> Iterator[tuple[str, int]]:
        """Name below the root and bytes of each file."""
        for file in self.files:
            try:
                size = file.stat().st_size
            except OSError:
                size = 0  # a link to nowhere, say; opening it tells
            yield os.path.relpath(file, self.root), size


def find_sources(path: str | Path) -> Found:
    """Find out what `path` is: pictures, parquet tables, or shards, below a folder or in one file.

    What begins with a dot is left out, and so are the parts of shards that `data_gen` has not finished.

    Raises:
        UserError: when it is none of these, or several, or not on this machine's disks.
    """
    if "://" in str(path):
        raise UserError(
            f"{path} is a URL, and pictures are read from folders: copy a set of data_gen with "
            f"`dd3g data merge {path} -o FOLDER`, other files with the bucket's own tool, such as "
            "`aws s3 cp --recursive` or `gcloud storage cp -r`"
        )
    path = Path(path)
    files = _files(path)
    found = {
        "tables": [f for f in files if f.suffix == ".parquet"],
        "shards": [f for f in files if f.suffix == ".tar"],
        "pictures": [f for f in files if f.suffix.lower() in SUFFIXES],
    }
    words = {"tables": "parquet files", "shards": "shards (*.tar)", "pictures": "pictures"}
    kinds = [kind for kind in found if found[kind]]
    if len(kinds) > 1:
        several = ", ".join(f"{len(found[kind])} {words[kind]}" for kind in kinds)
        raise UserError(f"{path} holds {several}: give a folder of one kind")
    if not kinds:
        raise UserError(
            f"{path} holds no pictures: give a folder of pictures ({', '.join(SUFFIXES)}), of *.parquet "
            "files, or of shards (*.tar) of pictures or rendered objects"
        )
    return Found(path if path.is_dir() else path.parent, kinds[0], found[kinds[0]])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: check the path")
    found = []
    for folder, folders, names in os.walk(path):
        unfinished = "parts" if "options.json" in names else ""
        folders[:] = sorted(f for f in folders if f[0] != "." and f != unfinished)
        found += [Path(folder, n) for n in sorted(names) if not n.startswith(".")]
    return found


def hold_renders(shards: Shards) -> bool:
    """Whether shards hold rendered objects; otherwise they hold pictures.

    Raises:
        UserError: when they hold neither.
    """
    extensions = set(shards.read(0)) - {"__key__"} if len(shards) else set()
    if {SHEET, DEPTH} <= extensions:
        return True
    if extensions & set(EXTENSIONS):
        return False
    raise UserError(
        f"{shards.paths[0]}: its samples hold {', '.join(sorted(extensions)) or 'nothing'}; expected "
        f"pictures ({', '.join(EXTENSIONS)}) or rendered objects ({SHEET}, {DEPTH})"
    )


def picture_of(shards: Shards, index: int) -> bytes:
    """The encoded picture of a sample.

    Raises:
        UserError: when there is none.
    """
    sample = shards.read(index, *EXTENSIONS)
    for extension in EXTENSIONS:
        if extension in sample:
            return sample[extension]
    raise UserError(f"{shards.key(index)} in {shards.where(index)} holds no picture")
