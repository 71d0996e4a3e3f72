"""A teacher's quadruples as rendered objects: their masks carve the matter, so that no mesh is needed.

Four views leave more than is there; what they rule out is certain, and so are their colours.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from dd3g.errors import UserError
from dd3g.pepd.frustum import resize
from dd3g.pepd.surface import HALF, LEVEL, first_hits, visual_hull
from distill.quadruples import Quadruple, Quadruples
from distill.samples.renders import RenderedObject

RESOLUTION = 64  # voxels a side


class CarvedQuadruples(Sequence[RenderedObject]):
    """Quadruples of folders of shards, with a volume and depth carved from their masks, each carved once.

    Raises:
        UserError: no shards, or one that was cut short; for quadruples that are damaged, or of a teacher
            without alpha, when they are asked for.
    """

    def __init__(self, source: Sequence[str | Path]) -> None:
        self._quadruples = Quadruples(list(source), tolerant=True)
        self._carved: dict[int, RenderedObject] = {}

    def __getstate__(self) -> Quadruples:
        return self._quadruples  # a worker carves its own: what is sent to it does not grow

    def __setstate__(self, quadruples: Quadruples) -> None:
        self._quadruples, self._carved = quadruples, {}

    def __len__(self) -> int:
        return len(self._quadruples)

    def __getitem__(self, index: int) -> RenderedObject:  # type: ignore[override]
        if index not in self._carved:
            self._carved[index] = carved(self._quadruples[index], self._quadruples.key(index))
        return self._carved[index]

    def meta(self, index: int) -> dict:
        """The object's `meta`, without carving."""
        return described(self._quadruples[index], self._quadruples.key(index))


class Together(ConcatDataset[RenderedObject]):
    """Sequences of `RenderedObjects`, `UnpackedRenders` or `CarvedQuadruples` as one."""

    def meta(self, index: int) -> dict:
        """The object's `meta` without its pictures."""
        index = range(len(self))[index]  # negative ones count from the end, as objects do
        number = bisect_right(self.cumulative_sizes, index)
        part: Any = self.datasets[number]
        return part.meta(index - self.cumulative_sizes[number] + len(part))


def carved(quadruple: Quadruple, key: str) -> RenderedObject:
    """Views, depth and volume of one quadruple; view 0 is the picture that the teacher was given.

    Raises:
        UserError: when its views have no alpha.
    """
    meta = described(quadruple, key)
    views, cameras = quadruple.outputs, quadruple.cameras
    views = torch.cat([resize(quadruple.input[None], cameras.width), views[1:]])
    alpha = views[:, 3].contiguous()
    matter = visual_hull(alpha, cameras, RESOLUTION)
    depth = [first_hits(matter, LEVEL, cameras[[v]], alpha[v] > LEVEL) for v in range(len(cameras))]
    bits = zlib.compress(np.packbits((matter > LEVEL).numpy()).tobytes())
    rgba = (views * 255).round().to(torch.uint8)
    return RenderedObject(rgba, torch.stack(depth), cameras, meta, bits)


def described(quadruple: Quadruple, key: str) -> dict[str, Any]:
    """The `meta` of a quadruple as a rendered object.

    Raises:
        UserError: when its views have no alpha.
    """
    cameras = quadruple.cameras
    if quadruple.outputs.shape[1] != 4:
        raise UserError(f"quadruple {key} has views without alpha, which carve nothing: give each a matte")
    azimuth, elevation = (torch.rad2deg(x).tolist() for x in (cameras.azimuths, cameras.elevations))
    return {
        "id": key,
        # One picture with another noise is not a new object.
        "cluster": str(quadruple.meta.get("source", key)),
        "style": "teacher",
        "variant": 0,
        "front": None,  # not known
        "size": cameras.width,
        "azimuth": azimuth,
        "elevation": elevation,
        "quads": [list(range(len(cameras)))],
        "novel": [],
        "volume": {"resolution": RESOLUTION, "half": HALF},
    }
