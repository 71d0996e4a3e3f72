"""Samples of rendered objects with volumes: matter along the rays of one view, and some pixels of others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.numba_setup import njit
from dd3g.pepd.frustum import resize, slices
from dd3g.rig import PICTURED, SQUARE
from dd3g.training import Batch, generator_for
from distill.samples.render_samples import StyleShares, chance, mirrored, pick, recolouring
from distill.samples.renders import RenderedObject, described
from distill.shape.carving import Together

OTHERS = 4  # views, at most, that a sample is also compared in
VISIBLE = 0.05  # alpha from which a ray of the picture meets matter


@dataclass(frozen=True)
class ShapeSample(Batch):
    """One sample, or a batch of them with a leading B in every field; the input's camera is at azimuth 0."""

    image: Tensor  # (4, S, S) straight RGBA of the input view
    elevation: Tensor  # () of its camera, radians
    occupancy: Tensor  # (D, S, S) share of matter at the slices along its rays, 0..1, float16
    origins: Tensor  # (P, 3) where other cameras stand
    directions: Tensor  # (P, 3) rays through some of their pixels, of camera depth 1
    rgba: Tensor  # (P, 4) what they see there, straight alpha
    depth: Tensor  # (P,) their camera z there, 0 where there is nothing
    jitter: Tensor  # (P,) 0..1, shifts the points that are looked at along these rays


@dataclass
class ShapeDataset:
    """Samples by index from rendered objects with volumes."""

    objects: Together  # renders that pass `check_volumes`
    seed: int  # of the run
    size: int  # pixels of the input picture
    bins: int  # slices of its frustum
    members: InitVar[Sequence[int] | None] = None  # indices of the objects to draw from; None is all
    scan_fraction: float = 0.4  # share of scans and PBR objects
    shape_fraction: float = 0.1  # share of untextured shapes with made-up textures, when there are any
    pixels: int = 1536  # of other views, P
    recolour: float = 0.15  # largest change of brightness; half of the samples also permute the channels
    stretch: float = 0.0  # largest change of width, by its logarithm, in half of the samples
    square_on: float = 0.0  # share of samples that take one of the views that see the object squarely

    def __post_init__(self, members: Sequence[int] | None) -> None:
        found = described(self.objects, members)
        self.styles = StyleShares(found, self.scan_fraction, self.shape_fraction)

    def __len__(self) -> int:
        """Number of objects that samples are drawn from."""
        return len(self.styles)

    def __getitem__(self, index: int) -> ShapeSample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        i = self.styles.draw(g)
        item, mirror = self.objects[i], chance(0.5, g)
        stretch = self.stretch if chance(0.5, g) else 0.0  # what is round stays so in the others
        square_on = chance(self.square_on, g)
        sizes = self.size, self.bins, self.pixels
        return shape_sample(item, g, *sizes, self.recolour, mirror, stretch, square_on)


def shape_sample(
    item: RenderedObject,
    g: torch.Generator,
    size: int,
    bins: int,
    pixels: int,
    recolour: float = 0.0,
    mirror: bool = False,
    stretch: float = 0.0,
    square_on: bool = False,
) -> ShapeSample:
    """One input view of an object, with some pixels of others; arguments as in `ShapeDataset`.

    With `square_on` it is one that sees the object squarely, if there is any.

    Raises:
        UserError: when the object has no volume or only one view, or is only seen from too high or low.
    """
    volume, elevations = item.volume, item.meta["elevation"]
    lowest, highest = PICTURED
    inputs = [v for v, e in enumerate(elevations) if lowest <= e <= highest]
    if volume is None or not inputs or len(elevations) < 2:
        raise UserError(
            f"rendered object {item.meta['id']} needs a volume and two views, one of them from "
            f"{lowest:.0f} to {highest:.0f} degrees: render it again with --volumes"
        )
    if square_on:
        inputs = [v for v in inputs if is_square(item.meta, v)] or inputs
    first = inputs[pick(len(inputs), g)]
    rest = [v for v in range(len(elevations)) if v != first]
    others = [rest[v] for v in torch.randperm(len(rest), generator=g)[:OTHERS]]
    camera = item.cameras[first].resized(size)
    cameras = item.cameras[others].turned(-math.radians(item.meta["azimuth"][first]))
    colored = recolouring(recolour, g)(item.rgba[[first, *others]].float() / 255)
    image, rgba = resize(colored[:1], size)[0], colored[1:]
    width = 1.0
    if stretch:
        width = min(math.exp(stretch * (2 * float(torch.rand((), generator=g)) - 1)), room_beside(image))
        image, Ks = widened(image, width), camera.Ks.clone()
        Ks[..., 0, 0] *= width  # as if the object were as many times as wide, at the same depths
        camera = replace(camera, Ks=Ks)
    occupancy = matter_in_slices(volume, item.meta["volume"]["half"], camera, bins, image[3] > VISIBLE)
    depth = item.depth[others].half().float()  # as arrays and renders in memory hold it
    if mirror:
        image, rgba, depth, occupancy = (x.flip(-1) for x in (image, rgba, depth, occupancy))
        cameras = mirrored(cameras)
    chosen = torch.randint(depth.numel(), (pixels,), generator=g)
    origins, directions = cameras.rays()
    wider = torch.tensor([width, 1.0, 1.0])  # the input's right is +x
    return ShapeSample(
        image=image,
        elevation=torch.tensor(math.radians(elevations[first])),
        occupancy=occupancy.half(),
        origins=wider * origins.expand_as(directions).flatten(0, 2)[chosen],
        directions=wider * directions.flatten(0, 2)[chosen],
        rgba=rgba.movedim(1, -1).flatten(0, 2)[chosen],
        depth=depth.flatten()[chosen],
        jitter=torch.rand(pixels, generator=g),
    )


def is_square(meta: dict, view: int) -> bool:
    """Whether a view, from above or not, sees its object from the front, the back or a side.

    Where the front is not known, as in early renders of objects that were turned, no view does.
    """
    # Plain meshes are modelled facing +z.
    front = meta.get("front", None if meta.get("variant", 0) else 0.0)
    return front is not None and abs((meta["azimuth"][view] - front + 45) % 90 - 45) <= SQUARE


def matter_in_slices(volume: Tensor, half: float, camera: Cameras, bins: int, shown: Tensor) -> Tensor:
    """Share of matter (D, S, S) at the centres of `bins` slices, and of each wall that lies between two.

    A slice is thicker than the wall of a lampshade or the seat of a chair, and half of a wall's rays would
    have no matter: it is in the slice that has most of it. Arguments as of `occupancy_along`.
    """
    thirds = occupancy_along(volume, half, camera, slices(3 * bins), shown)
    occupancy = thirds[1::3].clone()
    keep_walls(thirds.numpy(), occupancy.numpy())
    return occupancy


@njit(cache=True, nogil=True)
def keep_walls(thirds, occupancy):  # type: ignore[no-untyped-def]
    """Give walls (3 D, S, S) between slices (D, S, S), which have those in the middle, to one, in place."""
    count, height, width = thirds.shape
    for y in range(height):
        for x in range(width):
            peak, inside, met = 0, False, False
            for t in range(count):
                share = thirds[t, y, x]
                if share >= 0.5:
                    if not inside or share > thirds[peak, y, x]:
                        peak = t
                    met = t % 3 == 1 or (inside and met)
                elif inside and not met:
                    occupancy[peak // 3, y, x] = thirds[peak, y, x]
                inside = share >= 0.5


def occupancy_along(volume: Tensor, half: float, camera: Cameras, depths: Tensor, shown: Tensor) -> Tensor:
    """Share of matter (D, S, S) at `depths` (D,) along the rays of the pixels, between voxels linearly.

    Args:
        volume: (n, n, n) bool over [-half, half]^3, indexed x, y, z; beyond it there is none.
        half: half the side of the cube.
        camera: batch shape (), in the volume's world.
        depths: camera depth.
        shown: (S, S) bool, the pixels that matter: the others, most of a picture, stay 0.
    """
    origins, directions = camera.rays()
    scale = len(volume) / (2 * half)  # voxels a unit
    start = origins[0, 0] * scale + (len(volume) - 1) / 2  # (3,) in voxels, whose centres are whole numbers
    steps = directions[shown] * scale  # (P, 3)
    found = np.empty((len(depths), len(steps)), np.float32)
    share_at(volume.numpy().view(np.uint8), start.numpy(), steps.numpy(), depths.numpy(), found)
    occupancy = torch.zeros(len(depths), *shown.shape)
    occupancy[:, shown] = torch.from_numpy(found)
    return occupancy


@njit(cache=True, nogil=True)
def share_at(volume, start, steps, depths, found):  # type: ignore[no-untyped-def]
    """Share of matter (D, P) of bits (n, n, n) at start + depth * step, places in voxels."""
    n = len(volume)
    for d in range(len(depths)):
        for p in range(len(steps)):
            x = start[0] + depths[d] * steps[p, 0]
            y = start[1] + depths[d] * steps[p, 1]
            z = start[2] + depths[d] * steps[p, 2]
            total = np.float32(0)
            if -1 < x < n and -1 < y < n and -1 < z < n:
                i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                u, v, w = x - i, y - j, z - k
                for c in range(8):
                    a, b, e = c & 1, (c >> 1) & 1, c >> 2
                    if 0 <= i + a < n and 0 <= j + b < n and 0 <= k + e < n and volume[i + a, j + b, k + e]:
                        total += (u if a else 1 - u) * (v if b else 1 - v) * (w if e else 1 - w)
            found[d, p] = total


def room_beside(image: Tensor) -> float:
    """By how much the object in (4, S, S) may be widened before it touches the frame."""
    size = image.shape[-1]
    columns = (image[3] > 0).any(0).nonzero()
    reach = (columns - (size - 1) / 2).abs().max() + 1.5 if len(columns) else torch.tensor(size / 2)
    return size / 2 / float(reach)


def widened(image: Tensor, width: float) -> Tensor:
    """Picture (4, S, S), straight RGBA, `width` times as wide about its middle."""
    theta = torch.tensor([[[1 / width, 0, 0], [0, 1.0, 0]]])
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)
    weighted = torch.cat([image[:3] * image[3:], image[3:]])[None]
    moved = F.grid_sample(weighted, grid, align_corners=False)[0]
    return torch.cat([moved[:3] / moved[3:].clamp(min=1e-6), moved[3:]]).clamp(0, 1)


def check_volumes(objects: Together, size: int) -> None:
    """Say it now when objects have no volume, or pictures smaller than `size`.

    Raises:
        UserError: that names the first of them.
    """
    for _, meta in described(objects):
        if meta is None:
            continue
        if "volume" not in meta:
            raise UserError(f"rendered object {meta['id']} has no volume: render it again with --volumes")
        if meta["size"] < size:
            raise UserError(
                f"rendered object {meta['id']} has {meta['size']} pixels per side, but the network takes "
                f"{size}: render it again at that size, or change network.size"
            )


def rank(meta: dict) -> float:
    """Place of an object's cluster among all, 0..1, by its name: those below a share are never trained on."""
    return zlib.crc32(str(meta.get("cluster") or meta["id"]).encode()) / 2**32
