"""Pictures on disk: files in folders, samples of shards, rows of tables, and sheets of rendered views."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.picture.decoding import SUFFIXES
from dd3g.rig import ELEVATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHEET, DEPTH = "rgba.png", "depth.png"  # what a rendered object's sample holds
VOLUME = "volume.bits"  # and may hold: where matter is, n^3 bits, x slowest, compressed by zlib
DEPTH_UNIT = 16384  # depth.png holds camera z times this, 0 where there is nothing
TEXT_KEYS = ("text", "prompt", "caption")  # of metadata, where it says what a picture shows; the first counts
EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)  # of pictures in samples


@dataclass(frozen=True)
class Found:
    """Files of one kind; where that is pictures, these are `EncodedPictures`."""

    root: Path  # the folder that was named, or that of the file that was
    kind: str  # "pictures", "shards" or "tables"
    files: Sequence[Path]  # sorted, at any depth below the root

    def listing(self) -> Iterator[tuple[str, int]]:
        """Name below the root and bytes of each file."""
        for file in self.files:
            try:
                size = file.stat().st_size
            except OSError:
                size = 0  # a link to nowhere, say; opening it shows
            yield os.path.relpath(file, self.root), size

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The path below the root."""
        return self.files[index].relative_to(self.root).as_posix()

    def where(self, index: int) -> str:
        """The whole path."""
        return str(self.files[index])

    def read(self, index: int) -> Path:
        """See `EncodedPictures`."""
        return self.files[index]


def find_sources(path: str | Path, output: str | Path = "") -> Found:
    """Find out what `path` is: pictures, parquet tables, or shards, below a folder or in one file.

    What begins with a dot is left out, and so are the parts of shards that `data_gen` has not finished.

    Args:
        path: a folder or a file.
        output: where the results go; a folder of `path` that holds those of an earlier run is left out.

    Raises:
        UserError: when it is none of these, or several, or not on this machine's disks, or the output itself.
    """
    if "://" in str(path):
        raise UserError(
            f"{path} is a URL, but pictures are read from folders: copy a set of data_gen with "
            f"`dd3g data merge {path} -o FOLDER`, other files with the bucket's own tool, such as "
            "`aws s3 cp --recursive` or `gcloud storage cp -r`"
        )
    path = Path(path)
    own = os.path.realpath(output) if str(output) and "://" not in str(output) else ""
    if own == os.path.realpath(path):
        raise UserError(f"{path} is the source and the output: give another --output")
    files = _files(path, own)
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


def _files(path: Path, leave_out: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: check the path")
    found = []
    for folder, folders, names in os.walk(path):
        unfinished = "parts" if "options.json" in names else ""
        seen = (f for f in folders if f[0] != "." and f != unfinished)
        folders[:] = sorted(f for f in seen if os.path.realpath(os.path.join(folder, f)) != leave_out)
        found += [Path(folder, n) for n in sorted(names) if not n.startswith(".")]
    return found


class EncodedPictures(Protocol):
    """Pictures as they lie in files, by index."""

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, index: int) -> str:
        """What records call it."""

    def where(self, index: int) -> str:
        """What messages call it."""

    def read(self, index: int) -> Path | bytes:
        """What `dd3g.picture.decoding.read_rgba` reads.

        Raises:
            UserError: when there is none.
        """


def open_pictures(found: Found) -> EncodedPictures | Shards:
    """The pictures in what `find_sources` found; of rendered objects the shards that hold them.

    Raises:
        UserError: when one of the files is damaged, tables cannot be read, or shards hold something else.
    """
    if found.kind == "tables":
        from dd3g.io.tables import PictureTables

        return PictureTables(found.root, found.files)
    if found.kind == "pictures":
        return found
    shards = Shards(sorted(found.files))  # the order in which datasets made so far count them
    if {SHEET, DEPTH} <= shards.extensions:
        return shards
    if shards.extensions & set(EXTENSIONS):
        return ShardPictures(shards)
    raise UserError(
        f"{shards.paths[0]}: its samples hold {', '.join(sorted(shards.extensions)) or 'nothing'}; expected "
        f"pictures ({', '.join(EXTENSIONS)}) or rendered objects ({SHEET}, {DEPTH})"
    )


def sample_metadata(sample: Mapping[str, bytes]) -> dict[str, Any]:
    """The json of a sample, and its txt as "text"; empty when it cannot be read."""
    try:
        metadata = json.loads(sample.get("json", b"{}"))
    except ValueError:
        metadata = {}
    metadata = metadata if isinstance(metadata, dict) else {}
    return {"text": sample["txt"].decode("utf-8", "replace")} | metadata if "txt" in sample else metadata


class ShardPictures:
    """Samples of webdataset shards, each named by its key."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, index: int) -> str:
        """See `EncodedPictures`."""
        return self.shards.key(index)

    def where(self, index: int) -> str:
        """See `EncodedPictures`."""
        return f"{self.shards.key(index)} in {self.shards.where(index)}"

    def caption(self, index: int) -> str:
        """What the picture shows; "" where neither the json nor the txt of its sample says."""
        known = sample_metadata(self.shards.read(index, "json", "txt"))
        texts = (known[key].strip() for key in TEXT_KEYS if isinstance(known.get(key), str))
        return next(filter(None, texts), "")

    def read(self, index: int) -> bytes:
        """See `EncodedPictures`."""
        sample = self.shards.read(index, *EXTENSIONS)
        for extension in EXTENSIONS:
            if extension in sample:
                return sample[extension]
        raise UserError(f"{self.where(index)} holds no picture")


def level_views(quads: Sequence[Sequence[int]], elevation: Sequence[float]) -> list[int]:
    """Views of those quads of a rendered object that are nearest to the elevation of the generator's cameras.

    Its meta has the quads, sets of four views 90 degrees apart, and the elevation of each view, in degrees.
    """
    distance = [abs(elevation[quad[0]] - ELEVATION) for quad in quads]
    return [v for quad, d in zip(quads, distance, strict=True) if d < min(distance) + 0.5 for v in quad]


def split_sheet(png: bytes, views: int) -> NDArray:
    """A sheet of views side by side -> (V, H, W[, C]), a copy.

    Raises:
        Exception: of nearly every type there is, as Pillow does on damaged pictures.
    """
    import numpy as np
    from PIL import Image

    # No other format: Pillow would start other programs for some.
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        sheet = np.asarray(image)
    return np.stack(np.split(sheet, views, axis=1))
