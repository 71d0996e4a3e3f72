"""What an occupancy network is trained on: where matter is along the input's rays, and another view of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.pepd.frustum import FAR, NEAR, OUTSIDE, frustum_places, resize, slices
from dd3g.pepd.occupancy import color_at
from dd3g.setting import setting
from dd3g.training import Batch, generator_for
from distill.carving import Together
from distill.render_samples import StyleShares, chance, mirrored, pick, recolouring
from distill.renders import RenderedObject
from distill.volume_rays import occupancy_along

LOWEST, HIGHEST = -10.0, 40.0  # elevations that a picture may be taken from, degrees
VISIBLE = 0.05  # alpha from which a ray of the picture meets matter
COVERED = 0.9  # alpha from which the colour of a pixel is the surface's alone
SMOOTHING = 50.0  # of the dice term, voxels: objects smaller than that count less
LEVELS = (0.3, 0.4, 0.5)  # of occupancy, at which held-out objects are scored


@dataclass(frozen=True)
class ShapeSample(Batch):
    """One sample, or a batch of them with a leading B in every field; the input's camera is at azimuth 0."""

    image: Tensor  # (4, S, S) straight RGBA of the input view
    elevation: Tensor  # () of its camera, radians
    occupancy: Tensor  # (D, S, S) share of matter at the slices along its rays, 0..1, float16
    origin: Tensor  # (3,) where another camera stands
    directions: Tensor  # (P, 3) rays through some of its pixels, of camera depth 1
    rgba: Tensor  # (P, 4) what it sees there, straight alpha
    depth: Tensor  # (P,) its camera z there, 0 where there is nothing
    jitter: Tensor  # (P,) 0..1, shifts the points that are looked at along these rays


class ShapeDataset:
    """Samples by index from rendered objects with volumes.

    Args:
        objects: renders that pass `check_volumes`.
        seed: of the run.
        size: pixels of the input picture.
        bins: slices of its frustum.
        members: indices of the objects to draw from; None is all.
        scan_fraction: share of scans and PBR objects.
        shape_fraction: share of untextured shapes with made-up textures, when there are any.
        pixels: of the other view, P.
        recolour: largest change of brightness; half of the samples also permute the colour channels.
        stretch: largest change of width, by its logarithm.
    """

    def __init__(
        self,
        objects: Together,
        seed: int,
        size: int,
        bins: int,
        members: Sequence[int] | None = None,
        scan_fraction: float = 0.4,
        shape_fraction: float = 0.1,
        pixels: int = 768,
        recolour: float = 0.15,
        stretch: float = 0.0,
    ) -> None:
        self.objects, self.seed, self.size, self.bins = objects, seed, size, bins
        self.pixels, self.recolour, self.stretch = pixels, recolour, stretch
        drawn = range(len(objects)) if members is None else members
        styles = {i: objects.meta(i)["style"] for i in drawn}
        self.styles = StyleShares(styles, scan_fraction, shape_fraction)

    def __len__(self) -> int:
        """Number of objects that samples are drawn from."""
        return len(self.styles)

    def __getitem__(self, index: int) -> ShapeSample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        i = self.styles.draw(g)
        item, mirror = self.objects[i], chance(0.5, g)
        return shape_sample(item, g, self.size, self.bins, self.pixels, self.recolour, mirror, self.stretch)


def input_views(item_meta: dict) -> list[int]:
    """Indices of the views that may be pictures: those from usual elevations."""
    return [v for v, e in enumerate(item_meta["elevation"]) if LOWEST <= e <= HIGHEST]


def shape_sample(
    item: RenderedObject,
    g: torch.Generator,
    size: int,
    bins: int,
    pixels: int,
    recolour: float = 0.0,
    mirror: bool = False,
    stretch: float = 0.0,
) -> ShapeSample:
    """One input view of an object, with some pixels of another view; arguments as in `ShapeDataset`.

    Raises:
        UserError: when the object has no volume or only one view, or is only seen from too high or low.
    """
    volume, elevations = item.volume, item.meta["elevation"]
    inputs = input_views(item.meta)
    if volume is None or not inputs or len(elevations) < 2:
        raise UserError(
            f"rendered object {item.meta['id']} needs a volume and two views, one of them from "
            f"{LOWEST:.0f} to {HIGHEST:.0f} degrees: render it again with --volumes"
        )
    k = pick(len(inputs), g)
    first = inputs[k]
    second = (first + 1 + pick(len(elevations) - 1, g)) % len(elevations)
    camera = item.cameras[first].resized(size)
    other = item.cameras[second].turned(-math.radians(item.meta["azimuth"][first]))
    image, seen = recolouring(recolour, g)(item.rgba[[first, second]].float() / 255)
    image = resize(image[None], size)[0]
    width = 1.0
    if stretch:
        width = min(math.exp(stretch * (2 * float(torch.rand((), generator=g)) - 1)), room_beside(image))
        image, camera = widened(image, width), seen_wider(camera, width)
    occupancy = occupancy_along(volume, item.meta["volume"]["half"], camera, slices(bins), image[3] > VISIBLE)
    depth = item.depth[second].float()
    if mirror:
        image, seen, depth, occupancy = (x.flip(-1) for x in (image, seen, depth, occupancy))
        other = mirrored(other)
    chosen = torch.randint(depth.numel(), (pixels,), generator=g)
    origins, directions = other.rays()
    wider = torch.tensor([width, 1.0, 1.0])  # the input's right is +x
    return ShapeSample(
        image=image,
        elevation=torch.tensor(math.radians(elevations[first])),
        occupancy=occupancy.half(),
        origin=wider * origins[0, 0],
        directions=wider * directions.flatten(0, 1)[chosen],
        rgba=seen.flatten(1).T[chosen],
        depth=depth.flatten()[chosen],
        jitter=torch.rand(pixels, generator=g),
    )


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


def seen_wider(camera: Cameras, width: float) -> Cameras:
    """The camera whose picture is `width` times as wide, as if the object were, at the same depths."""
    Ks = camera.Ks.clone()
    Ks[..., 0, 0] *= width
    return replace(camera, Ks=Ks)


def check_volumes(objects: Together, size: int) -> None:
    """Say it now when objects have no volume, or pictures smaller than `size`.

    Raises:
        UserError: that names the first of them.
    """
    for i in range(len(objects)):
        meta = objects.meta(i)
        if "volume" not in meta:
            raise UserError(f"rendered object {meta['id']} has no volume: render it again with --volumes")
        if meta["size"] < size:
            raise UserError(
                f"rendered object {meta['id']} has {meta['size']} pixels per side, the network takes {size}: "
                "render it again at that size, or change network.size"
            )


def held_out(meta: dict, share: float) -> bool:
    """Whether an object is kept from training: whole clusters are, a share of all of them, by their name."""
    name = str(meta.get("cluster") or meta["id"])
    return zlib.crc32(name.encode()) / 2**32 < share


@dataclass
class ShapeObjectiveConfig:
    """Weights of the terms; 0 leaves a term out."""

    bce: float = setting(2.0, "cross-entropy of occupancy along the input's rays, inside its mask")
    dice: float = setting(2.0, "1 - overlap of the same: thin parts weigh as much as their share")
    silhouette: float = setting(
        1.0, "cross-entropy of another view's mask by the largest logit along its rays"
    )
    color: float = setting(1.0, "absolute error of the colours that the other view sees")
    steps: int = setting(64, "points along a ray of the other view")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"objective: steps {self.steps} must be 1 or more")


class ShapeObjective:
    """Occupancy directly in 3D, and what another view sees of it; each is a mean over samples.

    Args:
        config: weights.
    """

    def __init__(self, config: ShapeObjectiveConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, batch: ShapeSample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(model, batch, step) -> (loss, weighted and detached terms that add up to it)."""
        c = self.config
        logits, volume = model(batch.image, batch.elevation)
        bce, dice = occupancy_terms(logits, batch)
        seen = ray_logits(logits, batch, batch.jitter, c.steps)
        silhouette = F.binary_cross_entropy_with_logits(seen, batch.rgba[..., 3])
        values = {
            "bce": bce,
            "dice": dice,
            "silhouette": silhouette,
            "color": color_error(volume, batch).mean(),
        }
        terms = {name: getattr(c, name) * value for name, value in values.items()}
        return torch.stack(list(terms.values())).sum(), {k: v.detach() for k, v in terms.items()}


def occupancy_terms(logits: Tensor, batch: ShapeSample) -> tuple[Tensor, Tensor]:
    """Cross-entropy and 1 - dice of logits (B, D, S, S) where the picture shows the object."""
    mask = (batch.image[:, 3:] > VISIBLE).float()
    target = batch.occupancy.float()
    voxels = mask.sum((1, 2, 3)).clamp(min=1) * logits.shape[1]
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * mask
    found, true = logits.sigmoid() * mask, target * mask
    overlap = 2 * (found * true).sum((1, 2, 3)) + SMOOTHING
    dice = overlap / (found.sum((1, 2, 3)) + true.sum((1, 2, 3)) + SMOOTHING)
    return (bce.sum((1, 2, 3)) / voxels).mean(), (1 - dice).mean()


def ray_logits(logits: Tensor, batch: ShapeSample, jitter: Tensor, steps: int) -> Tensor:
    """Largest logit (B, P) along the other view's rays; where it is above 0, the view sees matter.

    Args:
        logits: (B, D, S, S) along the input's rays.
        batch: gives both cameras.
        jitter: (B, P) 0..1 of a step.
        steps: points along a ray.
    """
    depths = slices(steps, logits.device) + (jitter[..., None] - 0.5) * (FAR - NEAR) / steps  # (B, P, M)
    points = batch.origin[:, None, None] + depths[..., None] * batch.directions[:, :, None]
    places = frustum_places(points, batch.elevation)  # (B, P, M, 3)
    cut = torch.where(batch.image[:, 3:] > VISIBLE, logits, OUTSIDE)
    found = F.grid_sample(cut[:, None], places[:, None], align_corners=False, padding_mode="border")[:, 0, 0]
    return torch.where((places.abs() < 1).all(-1), found, OUTSIDE).amax(-1)


def color_error(volume: Tensor, batch: ShapeSample) -> Tensor:
    """Mean absolute error (B,) of the colour volume where the other view sees nothing but the object."""
    depth = batch.depth.clamp(min=NEAR)
    points = batch.origin[:, None] + depth[..., None] * batch.directions
    colors = color_at(volume, batch.image, frustum_places(points, batch.elevation))
    weight = ((batch.depth > 0) & (batch.rgba[..., 3] > COVERED)).float()
    error = (colors - batch.rgba[..., :3]).abs().mean(-1)
    return (error * weight).sum(1) / weight.sum(1).clamp(min=1)


def shape_scores(model: nn.Module, batches: Iterable[ShapeSample], steps: int = 64) -> dict[str, float]:
    """Means over samples: IoU of volume and of another view's mask at several levels, and error of colour."""
    rows: dict[str, list[Tensor]] = {}
    for batch in batches:
        logits, volume = model(batch.image, batch.elevation)
        mask = batch.image[:, 3:] > VISIBLE
        target = (batch.occupancy > 0.5) & mask
        seen = ray_logits(logits, batch, torch.full_like(batch.depth, 0.5), steps)
        for level in LEVELS:
            logit = math.log(level / (1 - level))
            volumes = iou((logits > logit) & mask, target)
            rows.setdefault(f"volume_iou_{100 * level:.0f}", []).append(volumes)
            rows.setdefault(f"mask_iou_{100 * level:.0f}", []).append(
                iou(seen > logit, batch.rgba[..., 3] > 0.5)
            )
        rows.setdefault("color_error", []).append(color_error(volume, batch))
    return {name: float(torch.cat(values).mean()) for name, values in rows.items()}


def iou(found: Tensor, true: Tensor) -> Tensor:
    """Intersection over union (B,) of bool (B, ...)."""
    both, either = (found & true).flatten(1).sum(1), (found | true).flatten(1).sum(1)
    return both / either.clamp(min=1)
