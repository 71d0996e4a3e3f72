"""Samples of rendered objects: which object, which views are input and targets, and how they are varied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.training import Batch, generator_for
from distill.samples.renders import RenderedObjects, described
from distill.samples.unpacked import UnpackedRenders

MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))


@dataclass(frozen=True)
class Sample(Batch):
    """One sample, or a batch of them with a leading B in every field."""

    image: Tensor  # (4, S, S) straight RGBA of the input view
    rig: Cameras  # (V,) relative to the input view
    views: Tensor  # (V, 4, S, S) what the rig sees, opaque where alpha is not known
    views_known: Tensor  # (V,) 1 where their alpha is known
    depth: Tensor  # (V, S, S) camera z, 0 where unknown
    has_depth: Tensor  # () 1 where depth is known at all
    noise: Tensor  # (V, C, h, w) the teacher's
    target_cameras: Cameras  # (T,) the input's first
    targets: Tensor  # (T, 4, S, S) to be matched by renders, opaque where alpha is not known
    targets_known: Tensor  # (T,) 1 where their alpha is known
    background: Tensor  # (T, 3) colours that renders and targets are composited on
    uniform: Tensor  # (4,) random numbers in 0..1
    index: Tensor  # () of the sample in the run


class StyleShares:
    """Draws objects so that each kind of style has its share.

    Args:
        found: index and `meta` of each object; None of a damaged one, which is drawn like most others.
        scan_fraction: share of scans and PBR objects, which look most like photographs.
        shape_fraction: share of untextured shapes with made-up textures; all others have the rest.

    Raises:
        UserError: for shares that are none, or when no object has one.
    """

    def __init__(
        self, found: Iterable[tuple[int, dict | None]], scan_fraction: float, shape_fraction: float
    ) -> None:
        if not 0 <= scan_fraction + shape_fraction <= 1 or min(scan_fraction, shape_fraction) < 0:
            raise UserError(
                f"scan_fraction {scan_fraction} and shape_fraction {shape_fraction} must be shares of 1"
            )
        pools: dict[str, list[int]] = {"scan": [], "shape": [], "other": []}
        damaged: list[int] = []
        for i, meta in found:
            style = "" if meta is None else meta.get("style", "")
            kind = "scan" if style in {"scan", "pbr"} else "shape" if style == "shape" else "other"
            (damaged if meta is None else pools[kind]).append(i)
        max(pools.values(), key=len).extend(damaged)
        shares = {"scan": scan_fraction, "shape": shape_fraction, "other": 1 - scan_fraction - shape_fraction}
        # Tensors, because worker processes share them.
        self.pools = [(shares[k], torch.tensor(v)) for k, v in pools.items() if v and shares[k] > 0]
        if not self.pools:
            raise UserError("none of the rendered objects has a style with a share above 0")

    def __len__(self) -> int:
        """Number of objects that may be drawn."""
        return sum(len(pool) for _, pool in self.pools)

    def draw(self, g: torch.Generator) -> int:
        """Index of one object."""
        weights = torch.tensor([share for share, _ in self.pools])
        pool = self.pools[int(torch.multinomial(weights, 1, generator=g))][1]
        return int(pool[pick(len(pool), g)])


@dataclass
class RenderDataset:
    """Rendered objects: every view of a quad can be the input, and the other three are its virtual views."""

    objects: RenderedObjects | UnpackedRenders  # renders, in memory or on disk
    seed: int  # of the run
    noise_shape: Sequence[int]  # (V, C, h, w) of the teacher's latents
    scan_fraction: float = 0.4  # share of samples from scans and PBR objects, most like photographs
    shape_fraction: float = 0.1  # share from untextured shapes with made-up textures, when there are any
    free_fraction: float = 0.1  # share of samples whose quad stands at a free elevation
    # Share of samples whose rig is another quad of the same elevation, so that views at other azimuths than
    # 0, 90, 180, 270 are seen (the verifier needs them)
    turned_fraction: float = 0.0
    targets: int = 4  # number of target views, >= 1; they are taken again where an object has fewer
    recolour: float = 0.15  # largest change of brightness; half of the samples also permute the channels
    most: int = 0  # only the first so many objects are drawn from; 0: all

    def __post_init__(self) -> None:
        there = len(self.objects)
        metas = described(self.objects, range(min(self.most or there, there)))
        # Not whole: there may be very many.
        found = [(i, meta and {k: meta.get(k, "") for k in ("style", "size")}) for i, meta in metas]
        self.styles = StyleShares(found, self.scan_fraction, self.shape_fraction)
        sizes = {meta["size"] for _, meta in found if meta}
        if len(sizes) > 1:
            shown = " and ".join(map(str, sorted(sizes)))
            raise UserError(
                f"the rendered objects have pictures of {shown} pixels, and a batch takes one size: name "
                "folders of one size"
            )

    def __len__(self) -> int:
        """Number of objects that samples are drawn from."""
        return len(self.styles)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        item = self.objects[self.styles.draw(g)]
        level, quads = item.meta["elevation"], [q for q in item.meta["quads"] if len(q) == 4]
        if not quads:
            raise UserError(
                f"rendered object {item.meta['id']} has no four views 90 degrees apart: render it again with "
                "--quads 1 or more"
            )
        level_quads = [q for q in quads if abs(level[q[0]] - level[quads[0][0]]) < 0.5]
        free_quads = [q for q in quads if q not in level_quads]
        free = bool(free_quads) and chance(self.free_fraction, g)
        choice = free_quads if free else level_quads
        quad = choice[pick(len(choice), g)]
        first = pick(4, g)
        rig = quad[first:] + quad[:first]
        turned = not free and chance(self.turned_fraction, g)
        others = [v for v in range(len(level)) if v != rig[0]]
        order = torch.randperm(len(others), generator=g)[: self.targets - 1].tolist()
        picked = [rig[0]] + [others[i] for i in order]
        picked = [picked[i % len(picked)] for i in range(self.targets)]
        shown = level_quads[pick(len(level_quads), g)] if turned else rig

        azimuth = -torch.deg2rad(torch.tensor(item.meta["azimuth"][rig[0]]))
        cameras = item.cameras.turned(azimuth)
        image, views, targets = item.rgba[rig[0]], item.rgba[shown], item.rgba[picked]
        depth = item.depth[shown].half().float()  # as arrays and renders in memory hold it
        rig_cameras, target_cameras = cameras[shown], cameras[picked]
        if chance(0.5, g):
            image, views, targets, depth = (x.flip(-1) for x in (image, views, targets, depth))
            rig_cameras, target_cameras = mirrored(rig_cameras), mirrored(target_cameras)
            if not turned:  # azimuth 90 and 270 have changed places
                swap = [0, 3, 2, 1]
                views, depth, rig_cameras = views[swap], depth[swap], rig_cameras[swap]
        tint = recolouring(self.recolour, g)
        return Sample(
            image=tint(image.float() / 255),
            rig=rig_cameras,
            views=tint(views.float() / 255),
            views_known=torch.ones(len(views)),
            depth=depth,
            has_depth=torch.tensor(1.0),
            noise=torch.randn(tuple(self.noise_shape), generator=g),
            target_cameras=target_cameras,
            targets=tint(targets.float() / 255),
            targets_known=torch.ones(self.targets),
            background=background(g).expand(self.targets, 3),
            uniform=torch.rand(4, generator=g),
            index=torch.tensor(index),
        )


def pick(n: int, g: torch.Generator) -> int:
    """One of 0 ... n-1."""
    return int(torch.randint(n, (1,), generator=g))


def chance(p: float, g: torch.Generator) -> bool:
    """True with probability p."""
    return float(torch.rand(1, generator=g)) < p


def background(g: torch.Generator) -> Tensor:
    """White half of the time, any colour otherwise: on white alone, holes in a bright object cost nothing."""
    colour = torch.rand(3, generator=g)
    return torch.ones(3) if chance(0.5, g) else colour


def mirrored(cameras: Cameras) -> Cameras:
    """Cameras of the mirror world (x -> -x), for flipped images with a centred principal point."""
    return Cameras(MIRROR @ cameras.viewmats @ MIRROR, cameras.Ks, cameras.width, cameras.height)


def recolouring(strength: float, g: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random change of brightness, at most by `strength`, and, half of the time, of the channels' order.

    It is drawn once, and applied to straight RGBA (..., 4, H, W): all views of an object change alike.
    """
    gain = 1 + strength * (2 * torch.rand(3, 1, 1, generator=g) - 1)
    gain = gain.mean().expand(3, 1, 1) * 0.7 + gain * 0.3
    order = torch.randperm(3, generator=g) if chance(0.5, g) else torch.arange(3)

    def apply(rgba: Tensor) -> Tensor:
        rgb = (rgba[..., order, :, :] * gain).clamp(0, 1)
        return torch.cat([rgb, rgba[..., 3:, :, :]], -3)

    return apply
