"""Read the shards of rendered objects that `dd3g data render` writes."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.command.progress import track
from dd3g.errors import UserError, first_line
from dd3g.io.shards import Shards
from dd3g.picture.sources import DEPTH, DEPTH_UNIT, SHEET, VOLUME, split_sheet

MOST_VOXELS = 512  # a side, that a stranger's file may ask for


@dataclass(frozen=True)
class RenderedObject:
    """All views of one object in one variant of light, colour and shape."""

    rgba: Tensor  # (V, 4, H, W) uint8, straight alpha
    depth: Tensor  # (V, H, W) float32 camera z, 0 where there is nothing
    cameras: Cameras  # batch shape (V,)
    # id, style, source, licence, cluster, variant, azimuth and elevation (V degrees each), quads (lists of
    # four view indices at azimuths a, a + 90, a + 180, a + 270 and one elevation), novel (indices of free
    # views), front (the azimuth that faces it, None where it is
    # not known; earlier renders lack it), light, texture; volume (resolution and half) where there is one
    meta: dict
    bits: bytes = b""  # of the volume as its file holds them; nothing where there is none

    @property
    def volume(self) -> Tensor | None:
        """(n, n, n) bool over [-half, half]^3, indexed x, y, z: where the object's matter is, if it is known.

        Raises:
            UserError: when it is damaged.
        """
        if not self.bits:
            return None
        try:
            n = int(self.meta["volume"]["resolution"])
            size = -(-(n**3) // 8)
            # One byte more than needed and no further: a stranger's few can unfold into a full memory.
            bits = np.frombuffer(zlib.decompressobj().decompress(self.bits, size + 1), np.uint8)
            if len(bits) != size:
                raise ValueError(f"{len(bits)} bytes for {n} voxels a side")
        except (zlib.error, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the volume of {self.meta.get('id')} is damaged ({error}): delete its shard and render it "
                "again with the same command"
            ) from error
        return torch.from_numpy(np.unpackbits(bits, count=n**3).view(np.bool_).reshape(n, n, n))


class RenderedObjects(Sequence[RenderedObject]):
    """Rendered objects of one or more folders, decoded on demand or all at once.

    Args:
        source: a folder of shards, a list of folders or shards.
        cached: decode everything now and keep it as uint8 RGBA and float16 depth: 6 bytes a pixel, so 0.69 MB
            for 28 views of 64 x 64. Items then cost no PNG decoding.
        tolerant: see `Shards`.

    Raises:
        UserError: no shards, or one that was cut short; for damaged objects, when they are asked for.
    """

    def __init__(
        self, source: str | Path | Sequence[str | Path], cached: bool = False, tolerant: bool = False
    ) -> None:
        self._shards = Shards(source, tolerant)
        foreign = self._shards.foreign(SHEET, DEPTH)
        if foreign or not self._shards:
            raise UserError(
                f"there are no rendered objects in {foreign or self._shards.paths[0]}: name a folder that "
                "`dd3g data render` wrote"
            )
        self._cache: list[RenderedObject | None] = []
        if cached:
            self._cache = [self._kept(i) for i in track(range(len(self)), "renders decoded")]

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> RenderedObject:  # type: ignore[override]
        """Object by index; negative ones count from the end."""
        item = self._cache[index] if self._cache else None
        return self._decode(index) if item is None else replace(item, depth=item.depth.float())

    @property
    def paths(self) -> list[Path]:
        """Its shards."""
        return self._shards.paths

    def meta(self, index: int) -> dict:
        """The object's `meta` without its pictures."""
        if self._cache and (item := self._cache[index]):
            return item.meta
        return self._described(index, self._shards.read(index, "json"))[1]

    def _kept(self, index: int) -> RenderedObject | None:
        """What the cache holds; nothing of a damaged one, which says what is wrong when it is asked for."""
        try:
            item = self._decode(index)
            return replace(item, depth=item.depth.half())
        except UserError:
            return None

    def _decode(self, index: int) -> RenderedObject:
        sample = self._shards[index]
        cameras, meta = self._described(index, sample)
        try:
            rgba = torch.from_numpy(split_sheet(sample[SHEET], len(cameras)))  # (V, H, W, 4)
            depth = split_sheet(sample[DEPTH], len(cameras)).astype(np.float32) / DEPTH_UNIT
            frame = (len(cameras), cameras.height, cameras.width)
            if (rgba.shape, depth.shape) != ((*frame, 4), frame):
                raise ValueError(f"views {tuple(rgba.shape)} and depth {depth.shape}, not RGBA of {frame}")
        except Exception as error:  # Pillow raises nearly every type there is on damaged pictures
            raise self._damaged(index, error) from error
        rgba, bits = rgba.movedim(-1, 1).contiguous(), sample.get(VOLUME, b"")
        return RenderedObject(rgba, torch.from_numpy(depth), cameras, meta, bits)

    def _described(self, index: int, sample: dict) -> tuple[Cameras, dict]:
        """Cameras and meta from a sample's json."""
        try:
            meta = json.loads(sample["json"])
            viewmats, K, size = torch.tensor(meta.pop("viewmats")), torch.tensor(meta.pop("K")), meta["size"]
            cameras = Cameras(viewmats, K.repeat(len(viewmats), 1, 1), size, size)
            _check(meta, cameras)
            return cameras, meta
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> UserError:
        shards = self._shards
        return UserError(
            f"{shards.key(index)} in shard {shards.where(index)} is damaged or not a render "
            f"({first_line(error)}): delete the shard and render it again with the same command"
        )


def _check(meta: dict, cameras: Cameras) -> None:
    """Raise an error of some type when a `meta` is not that of a render."""
    views = len(cameras)
    angles = torch.tensor([meta["azimuth"], meta["elevation"]])
    finite = all(bool(x.isfinite().all()) for x in (angles, cameras.viewmats, cameras.Ks))
    if angles.shape != (2, views) or not finite:
        raise ValueError(f"its {views} views need a finite camera, azimuth and elevation each")
    if not {v for quad in [*meta["quads"], meta["novel"]] for v in quad} <= set(range(views)):
        raise ValueError(f"its quads name others than its {views} views")
    if not isinstance(meta.get("id"), str) or not isinstance(meta["size"], int):
        raise ValueError("it has no id, or a size that is not a number of pixels")
    if "volume" in meta:
        float(meta["volume"]["half"])
        if not 1 <= int(meta["volume"]["resolution"]) <= MOST_VOXELS:
            raise ValueError(f"its volume has {meta['volume']['resolution']} voxels a side")
    if not math.isfinite(meta.get("front") or 0.0):
        raise ValueError("its front has no finite azimuth")


class Described(Protocol):
    """Rendered objects as sequences of them describe each."""

    def __len__(self) -> int:
        """Number of objects."""

    def meta(self, index: int) -> dict:
        """The object's `meta`."""


def described(objects: Described, members: Iterable[int] | None = None) -> Iterator[tuple[int, dict | None]]:
    """Index and `meta` of objects, all or some; None for damaged ones, which cost themselves when drawn.

    Raises:
        UserError: of the first one, when all are damaged.
    """
    errors: list[UserError] = []
    whole = 0
    for index in range(len(objects)) if members is None else members:
        try:
            meta = objects.meta(index)
        except UserError as error:
            errors.append(error)
            yield index, None
        else:
            whole += 1
            yield index, meta
    if errors and not whole:
        raise errors[0]
