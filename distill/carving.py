"""A teacher's quadruples as rendered objects: their masks carve the matter, so that no mesh is needed.

Four views leave more than is there; what they rule out is certain, and so are their colours.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pepd.frustum import resize
from dd3g.pepd.surface import HALF, LEVEL, first_hits, visual_hull
from distill.quadruples import Quadruple, Quadruples
from distill.renders import RenderedObject, RenderedObjects
from distill.unpacked import UnpackedRenders

RESOLUTION = 64  # voxels a side


class CarvedQuadruples(Sequence[RenderedObject]):
    """Quadruples with a volume and depth carved from their masks, each carved once.

    Args:
        source: folders of shards.

    Raises:
        UserError: no shards, a damaged one, or a teacher without alpha.
    """

    def __init__(self, source: Sequence[str | Path]) -> None:
        self._quadruples = Quadruples(list(source))
        self._carved: dict[int, RenderedObject] = {}

    def __len__(self) -> int:
        return len(self._quadruples)

    def __getitem__(self, index: int) -> RenderedObject:  # type: ignore[override]
        if index not in self._carved:
            self._carved[index] = carved(self._quadruples[index], self._quadruples.key(index))
        return self._carved[index]

    def meta(self, index: int) -> dict:
        """The object's `meta`."""
        return self[index].meta

    def shard(self, index: int) -> Path:
        """File that holds the quadruple."""
        return self._quadruples.shard(index)


class Together(Sequence[RenderedObject]):
    """Rendered objects, then carved quadruples, as one sequence.

    Args:
        parts: in this order.
    """

    def __init__(self, parts: Sequence[RenderedObjects | UnpackedRenders | CarvedQuadruples]) -> None:
        self._places = [(part, i) for part in parts for i in range(len(part))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> RenderedObject:  # type: ignore[override]
        part, i = self._places[index]
        return part[i]

    def meta(self, index: int) -> dict:
        """The object's `meta` without its pictures."""
        part, i = self._places[index]
        return part.meta(i)

    def shard(self, index: int) -> Path:
        """File that holds the object."""
        part, i = self._places[index]
        return part.shard(i)


def carved(quadruple: Quadruple, key: str) -> RenderedObject:
    """Views, depth and volume of one quadruple; view 0 is the picture that the teacher was given.

    Raises:
        UserError: when its views have no alpha.
    """
    views, cameras = quadruple.outputs, quadruple.cameras
    if views.shape[1] != 4:
        raise UserError(f"quadruple {key} has views without alpha, which carve nothing: give each a matte")
    views = torch.cat([resize(quadruple.input[None], cameras.width), views[1:]])
    alpha = views[:, 3].contiguous()
    matter = visual_hull(alpha, cameras, RESOLUTION)
    depth = [first_hits(matter, LEVEL, cameras[[v]], alpha[v] > LEVEL) for v in range(len(cameras))]
    azimuth, elevation = (torch.rad2deg(x).tolist() for x in (cameras.azimuths, cameras.elevations))
    meta = {
        "id": key,
        "cluster": str(
            quadruple.meta.get("source", key)
        ),  # one picture with another noise is not a new object
        "style": "teacher",
        "variant": 0,
        "size": cameras.width,
        "azimuth": azimuth,
        "elevation": elevation,
        "quads": [list(range(len(cameras)))],
        "novel": [],
        "volume": {"resolution": RESOLUTION, "half": HALF},
    }
    return RenderedObject(
        (views * 255).round().to(torch.uint8), torch.stack(depth), cameras, meta, packed(matter > LEVEL)
    )


def packed(volume: Tensor) -> bytes:
    """Bits of a volume (n, n, n), as `RenderedObject.bits` holds them."""
    return zlib.compress(np.packbits(volume.numpy()).tobytes())
