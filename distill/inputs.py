"""Input pictures of objects by index: of files, shards, parquet tables, or rendered objects."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dd3g.cameras import ELEVATION
from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.io.tables import PictureTables
from dd3g.picture import cut_out, load_image, object_frame, read_rgba, resize_rgba
from dd3g.picture_sources import Found, find_sources, hold_renders, picture_of
from distill.renders import RenderedObjects

NO_MATTE = "none"


class Inputs(Protocol):
    """Pictures of objects, each a pure function of (index, seed)."""

    @property
    def fingerprint(self) -> str:
        """Hash of the names and sizes of the files."""

    @property
    def matte(self) -> str:
        """The model that cuts objects out of pictures without alpha; "none" where no model does."""

    def __len__(self) -> int:
        """Number of objects."""

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """Straight RGBA (4, size, size) rounded to 255ths, and where it comes from.

        Raises:
            MatteError: when no picture without alpha can be used.
            UserError: when this one cannot be used; the others may still be fine.
        """


class MatteError(UserError):
    """The matting model is unknown or not on this machine."""


def open_inputs(source: str | Path, matte: str = "auto") -> Inputs:
    """Find out what `source` is: pictures, parquet tables, shards of pictures, or rendered objects.

    Args:
        source: a folder, which is searched at any depth, or a file.
        matte: for pictures without alpha: "auto" (u2netp) or another matting model; "none" refuses them.

    Raises:
        UserError: when it is none of these, or not on this machine's disks.
    """
    found = find_sources(source)
    if found.kind == "tables":
        return Pictures(found, PictureTables(found.root, found.files), matte)
    if found.kind == "pictures":
        return Pictures(found, _Files(found), matte)
    shards = Shards(sorted(found.files))  # the order that indices of sets made so far count in
    return Renders(found) if hold_renders(shards) else Pictures(found, _Samples(shards), matte)


def seed_of(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


class Encoded(Protocol):
    """Pictures as they lie in files."""

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, index: int) -> str:
        """What the quadruples call it."""

    def where(self, index: int) -> str:
        """What messages call it."""

    def read(self, index: int) -> Path | bytes:
        """What `dd3g.picture.read_rgba` reads."""


class Pictures:
    """Pictures whose object is framed as training pictures are, and cut out first where they have no alpha.

    Args:
        found: the files.
        encoded: the pictures in them.
        matte: as `open_inputs`.
    """

    def __init__(self, found: Found, encoded: Encoded, matte: str) -> None:
        self.fingerprint, self.encoded = _fingerprint(found), encoded
        self.matte = "u2netp" if matte == "auto" else matte

    def __len__(self) -> int:
        return len(self.encoded)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """See `Inputs`; the seed does not matter."""
        name = self.encoded.where(index)
        image = read_rgba(self.encoded.read(index), name)
        about = {"source": self.encoded.name(index)}
        if image.getchannel("A").getextrema()[0] == 255:
            if self.matte == NO_MATTE:
                raise UserError(f"{name} has no transparent pixel: cut the object out, or give --matte auto")
            try:
                image, _ = cut_out(image, self.matte, name, size)
            except UserError as error:
                raise MatteError(f"{name} has no transparent pixel, and {error}") from error
            if object_frame(image.getchannel("A")) is None:
                raise UserError(f"the matting model {self.matte} found no object in {name}: cut it out")
            about["matte"] = self.matte
        return _rounded(load_image(image, size, matte=NO_MATTE).rgba), about


class _Files:
    def __init__(self, found: Found) -> None:
        self.root, self.files = found.root, found.files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].relative_to(self.root).as_posix()

    def where(self, index: int) -> str:
        return str(self.files[index])

    def read(self, index: int) -> Path:
        return self.files[index]


class _Samples:
    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, index: int) -> str:
        return self.shards.key(index)

    def where(self, index: int) -> str:
        return f"{self.shards.key(index)} in {self.shards.where(index)}"

    def read(self, index: int) -> bytes:
        return picture_of(self.shards, index)


class Renders:
    """Rendered objects; the seed chooses the view among those at the rig's elevation."""

    matte = NO_MATTE

    def __init__(self, found: Found) -> None:
        self.fingerprint, self.objects = _fingerprint(found), RenderedObjects(found.files)

    def __len__(self) -> int:
        return len(self.objects)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """See `Inputs`. Each view of a quad can be the input: the others stand at 90, 180 and 270."""
        item = self.objects[index]
        distance = [abs(item.meta["elevation"][quad[0]] - ELEVATION) for quad in item.quads]
        level = [quad for quad, d in zip(item.quads, distance, strict=True) if d < min(distance) + 0.5]
        views = sum(level, [])
        generator = torch.Generator().manual_seed(seed_of(index, seed))
        view = views[int(torch.randint(len(views), (1,), generator=generator))]
        rgba = resize_rgba(item.rgba[view].float() / 255, size)
        about = {k: item.meta[k] for k in ("variant", "style") if k in item.meta}
        return _rounded(rgba), {"source": str(item.meta["id"]), "view": view, **about}


def _fingerprint(found: Found) -> str:
    listing = "\n".join(f"{name} {size}" for name, size in found.listing())
    return hashlib.sha256(os.fsencode(listing)).hexdigest()[:16]


def _rounded(rgba: Tensor) -> Tensor:
    # The teacher must see what the shard will hold.
    return (rgba * 255).round() / 255
