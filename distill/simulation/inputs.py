"""Input pictures of objects by index: of files, shards, parquet tables, or rendered objects."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.shards import Shards
from dd3g.picture import cut_out, load_image, resize_rgba
from dd3g.picture.decoding import read_rgba
from dd3g.picture.framing import is_cut_out, object_frame
from dd3g.picture.sources import (
    EncodedPictures,
    Found,
    ShardPictures,
    find_sources,
    level_views,
    open_pictures,
)
from distill.samples.renders import RenderedObjects

NO_MATTE = "none"


class MatteError(UserError):
    """The matting model is unknown or not on this machine."""


def open_inputs(source: str | Path, matte: str = "auto", output: str | Path = "") -> Pictures | Renders:
    """Find out what `source` is: pictures, parquet tables, shards of pictures, or rendered objects.

    Args:
        source: a folder, which is searched at any depth, or a file.
        matte: for pictures without alpha: "auto" (u2netp) or another matting model; "none" refuses them.
        output: where the results go, see `find_sources`.

    Raises:
        UserError: when it is none of these, or not on this machine's disks.
    """
    found = find_sources(source, output)
    opened = open_pictures(found)
    return Renders(found) if isinstance(opened, Shards) else Pictures(found, opened, matte)


def seed_of(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


class Pictures:
    """Pictures whose object is framed as in training, and cut out first where they have no alpha."""

    def __init__(self, found: Found, encoded: EncodedPictures, matte: str) -> None:
        self.fingerprint, self.encoded = _fingerprint(found), encoded
        self.matte = "u2netp" if matte == "auto" else matte

    def __len__(self) -> int:
        return len(self.encoded)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """Straight RGBA (4, size, size) rounded to 255ths, and where it comes from; the seed does not matter.

        Raises:
            MatteError: when no picture without alpha can be used.
            UserError: when this one cannot be used; the others may still be fine.
        """
        name = self.encoded.where(index)
        image = read_rgba(self.encoded.read(index), name)
        about = {"source": self.encoded.name(index)}
        if isinstance(self.encoded, ShardPictures) and (caption := self.encoded.caption(index)):
            about["caption"] = caption
        if not is_cut_out(image):
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


class Renders:
    """Rendered objects; the seed chooses among the views nearest to the elevation of the generator's rig."""

    matte = NO_MATTE

    def __init__(self, found: Found) -> None:
        self.fingerprint, self.objects = _fingerprint(found), RenderedObjects(found.files)

    def __len__(self) -> int:
        return len(self.objects)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """As of `Pictures`. Each view of a level quad can be the input, any view where there is no quad."""
        item = self.objects[index]
        views = level_views(item.meta["quads"], item.meta["elevation"]) or list(range(len(item.rgba)))
        generator = torch.Generator().manual_seed(seed_of(index, seed))
        view = views[int(torch.randint(len(views), (1,), generator=generator))]
        rgba = resize_rgba(item.rgba[view].float() / 255, size)
        about = {k: item.meta[k] for k in ("variant", "style") if k in item.meta}
        about["elevation"] = item.meta["elevation"][view]
        return _rounded(rgba), {"source": str(item.meta["id"]), "view": view, **about}


def _fingerprint(found: Found) -> str:
    return fingerprint("\n".join(f"{name} {size}" for name, size in found.listing()))


def _rounded(rgba: Tensor) -> Tensor:
    # The teacher must see what the shard will hold.
    return (rgba * 255).round() / 255
