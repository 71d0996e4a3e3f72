"""A teacher's quadruples as rendered objects: their masks carve the matter, so that no mesh is needed.

Four views leave more than is there; what they rule out is certain, and so are their colours.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.pepd.frustum import resize
from dd3g.pepd.surface import HALF, LEVEL, first_hits, visual_hull
from dd3g.rig import RADIUS
from distill.config import BELIEVED
from distill.quadruples import Quadruple, Quadruples
from distill.samples.datasets import front_camera, joined, known_views
from distill.samples.renders import RenderedObject

RESOLUTION = 64  # voxels a side
KEPT = 2**29  # bytes of carved objects in a process; workers add up


class CarvedQuadruples(Sequence[RenderedObject]):
    """Quadruples of folders of shards, with a volume and depth carved from their masks; the last are kept.

    Raises:
        UserError: no shards, or one that was cut short; for quadruples that are damaged, or that carve
            nothing, when they are asked for.
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
            found = carved(self._quadruples[index], self._quadruples.key(index))
            if (len(self._carved) + 1) * (found.rgba.nbytes + found.depth.nbytes) > KEPT:
                del self._carved[next(iter(self._carved))]
            self._carved[index] = found
        return self._carved[index]

    def meta(self, index: int) -> dict:
        """The object's `meta` without what its views say, which are not looked at."""
        about = self._quadruples.about(index)
        return about_object(self._quadruples.key(index), about.get("source"), about.get("width", 0))


class Together(ConcatDataset[RenderedObject]):
    """Sequences of `RenderedObjects`, `UnpackedRenders` or `CarvedQuadruples` as one."""

    def meta(self, index: int) -> dict:
        """The object's `meta` without its pictures."""
        index = range(len(self))[index]  # negative ones count from the end, as objects do
        number = bisect_right(self.cumulative_sizes, index)
        part: Any = self.datasets[number]
        return part.meta(index - self.cumulative_sizes[number] + len(part))


def carved(quadruple: Quadruple, key: str) -> RenderedObject:
    """Depth and volume of one quadruple, of the views whose alpha is known; view 0 is the teacher's picture.

    Raises:
        UserError: when they carve nothing, or the picture's camera is not the usual one.
    """
    views, cameras = known_side(quadruple, key)
    alpha = views[:, 3].contiguous()
    matter = visual_hull(alpha, cameras, RESOLUTION)
    depth = [first_hits(matter, LEVEL, cameras[[v]], alpha[v] > LEVEL) for v in range(len(cameras))]
    bits = zlib.compress(np.packbits((matter > LEVEL).numpy()).tobytes())
    azimuth, elevation = (torch.rad2deg(x).tolist() for x in (cameras.azimuths, cameras.elevations))
    meta = about_object(key, quadruple.meta.get("source"), cameras.width)
    meta |= {"azimuth": azimuth, "elevation": elevation, "quads": [], "novel": list(range(len(cameras)))}
    rgba = (views * 255).round().to(torch.uint8)
    return RenderedObject(rgba, torch.stack(depth), cameras, meta, bits)


def known_side(quadruple: Quadruple, key: str) -> tuple[Tensor, Cameras]:
    """Straight RGBA (V, 4, S, S) of the picture and the views whose alpha is known, and their cameras (V,).

    Raises:
        UserError: when there are fewer than two of these, or the picture's camera is not the usual one.
    """
    views, known, _ = known_views(quadruple, BELIEVED)
    front, own = front_camera(quadruple)
    others = [v for v in range(len(views)) if v != own and known[v]]
    if len(others) < 2:
        raise UserError(
            f"quadruple {key} has {len(others)} views with alpha beside its picture, and fewer than 2 carve "
            "nothing: give them mattes, see --view-matte of dd3g simulate"
        )
    usual = Cameras.orbit([0.0], math.degrees(float(front.elevations[0])), front.width)
    away = (front.positions - usual.positions).abs().max(), (front.Ks - usual.Ks).abs().max() / front.width
    if max(away) > 0.02:
        raise UserError(
            f"the picture of quadruple {key} was taken from {float(front.positions.norm()):.3g} with a focal "
            f"length of {float(front.Ks[0, 0, 0]) / front.width:.3g} sides: a shape network takes pictures "
            f"from {RADIUS:g} with {float(usual.Ks[0, 0, 0]) / front.width:.3g}"
        )
    picture = resize(quadruple.input[None], front.width)
    return torch.cat([picture, views[others]]), joined(front, quadruple.cameras[others])


def about_object(key: str, source: object, size: int) -> dict[str, Any]:
    """The `meta` of a quadruple as a rendered object, but for its views."""
    return {
        "id": key,
        # One picture with another noise is not a new object.
        "cluster": str(source or key),
        "style": "teacher",
        "variant": 0,
        "front": None,  # not known
        "size": size,
        "volume": {"resolution": RESOLUTION, "half": HALF},
    }
