"""Training samples by index, in one form: of rendered objects (3D data) and of quadruples (the teacher)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dd3g.cameras import ELEVATION, Cameras
from dd3g.errors import UserError
from dd3g.picture import resize_rgba
from dd3g.training import Batch, generator_for
from distill.mattes import BELIEVED, ground_of
from distill.quadruples import Quadruple
from distill.renders import RenderedObjects
from distill.unpacked import UnpackedRenders

FRONT = 0.02  # radians from azimuth 0 up to which a view is the input's
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
        styles: index -> style of each object.
        scan_fraction: share of scans and PBR objects, which look most like photographs.
        shape_fraction: share of untextured shapes with made-up textures; all others have the rest.

    Raises:
        UserError: for shares that are none, or when no object has one.
    """

    def __init__(self, styles: dict[int, str], scan_fraction: float, shape_fraction: float) -> None:
        if not 0 <= scan_fraction + shape_fraction <= 1 or min(scan_fraction, shape_fraction) < 0:
            raise UserError(
                f"scan_fraction {scan_fraction} and shape_fraction {shape_fraction} must be shares of 1"
            )
        pools: dict[str, list[int]] = {"scan": [], "shape": [], "other": []}
        for i, style in styles.items():
            pools["scan" if style in {"scan", "pbr"} else "shape" if style == "shape" else "other"].append(i)
        shares = {"scan": scan_fraction, "shape": shape_fraction, "other": 1 - scan_fraction - shape_fraction}
        # Tensors, because worker processes share them.
        self.pools = [(shares[k], torch.tensor(v)) for k, v in pools.items() if v and shares[k] > 0]
        if not self.pools:
            raise UserError(f"none of the {len(styles)} rendered objects has a style with a share above 0")

    def draw(self, g: torch.Generator) -> int:
        """Index of one object."""
        weights = torch.tensor([share for share, _ in self.pools])
        pool = self.pools[int(torch.multinomial(weights, 1, generator=g))][1]
        return int(pool[pick(len(pool), g)])


class RenderDataset:
    """Rendered objects: every view of a quad can be the input, and the other three are its virtual views.

    Args:
        objects: renders, in memory or on disk.
        seed: of the run.
        noise_shape: (V, C, h, w) of the teacher's latents.
        scan_fraction: share of samples from scans and PBR objects, which look most like photographs.
        shape_fraction: share of samples from untextured shapes with made-up textures, when there are any.
        free_fraction: share of samples whose quad stands at a free elevation.
        turned_fraction: share of samples whose rig is another quad of the same elevation, so that views at
            other azimuths than 0, 90, 180, 270 are seen (the verifier needs them).
        targets: number of target views, >= 1; they are taken again where an object has fewer.
        recolour: largest change of brightness; half of the samples also permute the colour channels.
    """

    def __init__(
        self,
        objects: RenderedObjects | UnpackedRenders,
        seed: int,
        noise_shape: Sequence[int],
        scan_fraction: float = 0.4,
        shape_fraction: float = 0.1,
        free_fraction: float = 0.1,
        turned_fraction: float = 0.0,
        targets: int = 4,
        recolour: float = 0.15,
    ) -> None:
        self.objects, self.seed, self.noise_shape = objects, seed, tuple(noise_shape)
        self.free_fraction, self.turned_fraction = free_fraction, turned_fraction
        self.targets, self.recolour = targets, recolour
        styles = {i: objects.meta(i)["style"] for i in range(len(objects))}
        self.styles = StyleShares(styles, scan_fraction, shape_fraction)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        item = self.objects[self.styles.draw(g)]
        quads = item.meta["quads"]
        level = item.meta["elevation"]
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
        depth = item.depth[shown].float()
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
            noise=torch.randn(self.noise_shape, generator=g),
            target_cameras=target_cameras,
            targets=tint(targets.float() / 255),
            targets_known=torch.ones(self.targets),
            background=background(g).expand(self.targets, 3),
            uniform=torch.rand(4, generator=g),
            index=torch.tensor(index),
        )


class QuadrupleDataset:
    """Quadruples: the teacher's noise, cameras, picture and answer, exactly as it gave them.

    Views may be any number, from anywhere and on any ground. Of views without alpha, those whose matte is
    believed are used like others; the rest is kept for its colour, on its own ground.

    Args:
        quadruples: what the teacher made.
        seed: of the run.
        targets: number of target views, the input's first; some of the teacher's where it has more, and taken
            again where it has fewer.
        size: pixels of the input picture; None is that of the views.
        believed: confidence from which a matte is used.
    """

    def __init__(
        self,
        quadruples: Sequence[Quadruple],
        seed: int,
        targets: int = 4,
        size: int | None = None,
        believed: float = BELIEVED,
    ) -> None:
        self.quadruples, self.seed, self.targets = quadruples, seed, targets
        self.size, self.believed = size, believed
        if not len(quadruples):
            raise UserError("no quadruples to train on; make some with dd3g simulate")

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        q = self.quadruples[pick(len(self.quadruples), g)]
        size = self.size or q.cameras.width
        image, cameras = resize_rgba(q.input, size), q.cameras.resized(size)
        views, known, ground = known_views(q, self.believed)
        views = resize_rgba(views, size)
        front, own = front_camera(q)
        front = front.resized(size)
        if own is not None:  # its pixels are known exactly: they replace the teacher's copy of them
            views, known = views.clone(), known.clone()
            views[own], known[own] = image, 1
        others = [v for v in range(len(views)) if v != own]
        if len(others) > self.targets - 1:
            chosen = torch.randperm(len(others), generator=g)[: self.targets - 1]
            others = [others[i] for i in chosen.tolist()]
        # Place 0 is the input's.
        order = (torch.arange(self.targets) % (len(others) + 1)).tolist()
        shown = torch.cat([image[None], views[others]])[order]
        shown_known = torch.cat([torch.ones(1), known[others]])[order]
        shown_ground = torch.cat([torch.ones(1, 3), ground[others]])[order]
        return Sample(
            image=image,
            rig=cameras,
            views=views,
            views_known=known,
            depth=torch.zeros(len(views), *views.shape[-2:]),
            has_depth=torch.tensor(0.0),
            noise=q.noise,
            target_cameras=joined(front, cameras[others])[order],
            targets=shown,
            targets_known=shown_known,
            background=torch.where(shown_known[:, None] > 0, background(g), shown_ground),
            uniform=torch.rand(4, generator=g),
            index=torch.tensor(index),
        )


def known_views(q: Quadruple, believed: float) -> tuple[Tensor, Tensor, Tensor]:
    """The views of a quadruple, and where their alpha is known.

    Args:
        q: with or without alpha and mattes.
        believed: confidence from which a matte is used.

    Returns:
        straight RGBA (V, 4, S, S), opaque where alpha is not known; (V,) 1 where it is; and the colour (V, 3)
        of the ground that the others stand on.
    """
    V = len(q.outputs)
    if q.outputs.shape[1] == 4:
        return q.outputs, torch.ones(V), torch.ones(V, 3)
    opaque = torch.cat([q.outputs, torch.ones_like(q.outputs[:, :1])], 1)
    if q.mattes is None:
        return opaque, torch.zeros(V), torch.stack([ground_of(view)[0] for view in q.outputs])
    known = (q.mattes.confidence >= believed).float()
    views = torch.where(known[:, None, None, None] > 0, q.mattes.straight(q.outputs), opaque)
    return views, known, q.mattes.ground


def front_camera(q: Quadruple) -> tuple[Cameras, int | None]:
    """The input's camera (1,), and which of the teacher's views it is, if any.

    A rig without a view at azimuth 0 leaves the input's elevation open: the quadruple tells it, or it is the
    usual one.
    """
    nearest = int(q.cameras.azimuths.abs().argmin())
    if float(q.cameras.azimuths[nearest].abs()) < FRONT:
        return q.cameras[nearest : nearest + 1], nearest
    return Cameras.orbit([0.0], q.meta.get("elevation", ELEVATION), q.cameras.width), None


def joined(*parts: Cameras) -> Cameras:
    """Cameras (V,) of one image size behind one another; they share the widest range of depths."""
    viewmats, Ks = (torch.cat([getattr(c, name) for c in parts]) for name in ("viewmats", "Ks"))
    near, far = min(c.near for c in parts), max(c.far for c in parts)
    return replace(parts[0], viewmats=viewmats, Ks=Ks, near=near, far=far)


class MixedDataset:
    """Renders first, quadruples later.

    Args:
        renders: give the samples before `start`.
        quadruples: give a share of the samples from then on.
        start: index of the first sample that may be a quadruple.
        share: of quadruples from then on, 0..1.
        seed: of the choice.
    """

    def __init__(
        self, renders: RenderDataset, quadruples: QuadrupleDataset, start: int, share: float, seed: int
    ) -> None:
        self.renders, self.quadruples = renders, quadruples
        self.start, self.share, self.seed = start, share, seed

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        late = index >= self.start and chance(self.share, generator_for(self.seed + 1, index))
        return (self.quadruples if late else self.renders)[index]


def check_fit(
    dataset: RenderDataset | QuadrupleDataset, size: int, noise_shape: Sequence[int], name: str = "the data"
) -> None:
    """Say it now when data and model were made for different sizes; messages call the data `name`.

    Raises:
        UserError: when pictures, their number or noise of a sample are others.
    """
    sample = dataset[0]
    found = (len(sample.views), sample.image.shape[-1], tuple(sample.noise.shape))
    if found != (noise_shape[0], size, tuple(noise_shape)):
        raise UserError(
            f"{name} has {found[0]} pictures of {found[1]} pixels and noise {found[2]}, the model takes "
            f"{noise_shape[0]} of {size} and {tuple(noise_shape)}: make the data again at that size, or "
            "change the model's configuration"
        )


def check_rig(dataset: QuadrupleDataset, rig: Cameras, name: str = "the quadruples") -> None:
    """Say it now when a generator would imagine other views than the teacher drew.

    Args:
        dataset: of one teacher.
        rig: (V,) the generator's.
        name: of the data, in messages.

    Raises:
        UserError: naming the options that fit; one elevation of all views is the input's, and may be any.
    """
    found = dataset[0].rig
    place, own = found.positions, rig.positions
    distance = float(place[0].norm())
    fovy = math.degrees(2 * math.atan(found.height / 2 / float(found.Ks[0, 1, 1])))
    azimuths = torch.rad2deg(found.azimuths) % 360
    elevations = torch.rad2deg((place[:, 1] / distance).asin())
    level = float(elevations.max() - elevations.min()) < 1
    turned = (found.azimuths - rig.azimuths + math.pi) % (2 * math.pi) - math.pi
    fits = bool(turned.abs().max() < FRONT) and bool((found.Ks - rig.Ks).abs().max() < 0.01 * found.width)
    fits = fits and abs(float(own[0].norm()) - distance) < 0.02
    if not (fits and (level or bool((place - own).abs().max() < 0.02))):
        words = [",".join(f"{x:g}" for x in v.round(decimals=1).tolist()) for v in (azimuths, elevations)]
        raise UserError(
            f"the views of {name} are not those that this generator imagines: give "
            f"generator.azimuths=[{words[0]}] generator.elevations=[{'' if level else words[1]}] "
            f"generator.distance={distance:.4g} generator.fovy={fovy:.4g}"
        )


def validation_batch(renders: str, size: int, noise_shape: Sequence[int]) -> Sample | None:
    """Eight fixed samples of the folder `renders` for contact sheets; None where it is "".

    Raises:
        UserError: as `check_fit`.
    """
    if not renders:
        return None
    held = RenderDataset(RenderedObjects([renders]), 0, noise_shape, free_fraction=0, recolour=0)
    check_fit(held, size, noise_shape, "validation_renders")
    return Sample.collate([held[i] for i in range(8)])


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
    """A random change of brightness and, half of the time, of the channels' order.

    Args:
        strength: largest relative change.
        g: source of the choice, made once, so that all views of an object change alike.

    Returns:
        A function of straight RGBA (..., 4, H, W).
    """
    gain = 1 + strength * (2 * torch.rand(3, 1, 1, generator=g) - 1)
    gain = gain.mean().expand(3, 1, 1) * 0.7 + gain * 0.3
    order = torch.randperm(3, generator=g) if chance(0.5, g) else torch.arange(3)

    def apply(rgba: Tensor) -> Tensor:
        rgb = (rgba[..., order, :, :] * gain).clamp(0, 1)
        return torch.cat([rgb, rgba[..., 3:, :, :]], -3)

    return apply
