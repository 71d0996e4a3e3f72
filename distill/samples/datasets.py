"""Training samples by index, in one form: of quadruples (the teacher), and mixed with those of renders."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dd3g.cameras import ELEVATION, Cameras
from dd3g.errors import UserError
from dd3g.pepd.config import GeneratorConfig
from dd3g.picture import resize_rgba
from dd3g.processes import from_launcher
from dd3g.training import generator_for
from dd3g.training.data import SPARE
from distill.config import BELIEVED
from distill.quadruples import Quadruple, Quadruples
from distill.samples.render_samples import RenderDataset, Sample, background, chance, pick
from distill.samples.renders import RenderedObjects
from distill.simulation.mattes import ground_of

FRONT = 0.02  # radians from azimuth 0 up to which a view is the input's


@dataclass
class QuadrupleDataset:
    """Quadruples: the teacher's noise, cameras, picture and answer, exactly as it gave them.

    Views may be any number, from anywhere and on any ground. Of views without alpha, those whose matte is
    believed are used like others; the rest is kept for its colour, on its own ground.
    """

    quadruples: Sequence[Quadruple]  # what the teacher made
    seed: int  # of the run
    # Number of target views, the input's first; some of the teacher's where it has more, and taken again
    # where it has fewer
    targets: int = 4
    size: int | None = None  # pixels of the input picture; None is that of the views
    believed: float = BELIEVED  # confidence from which a matte is used
    # (V, C, h, w) that all have to have; others count as damaged. None takes any
    noise_shape: Sequence[int] | None = None
    most: int = 0  # only the first so many are drawn from; 0: all

    def __post_init__(self) -> None:
        if not len(self.quadruples):
            raise UserError("no quadruples to train on; make some with dd3g simulate")

    def __len__(self) -> int:
        """Number of quadruples that samples are drawn from."""
        return min(self.most or len(self.quadruples), len(self.quadruples))

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        g = generator_for(self.seed, index)
        place = pick(len(self), g)
        q = self.quadruples[place]
        found, wanted = tuple(q.noise.shape), tuple(self.noise_shape or ())
        if wanted and (found, len(q.outputs)) != (wanted, wanted[0]):
            shard = self.quadruples.shard(place) if isinstance(self.quadruples, Quadruples) else "the set"
            raise UserError(
                f"{q.meta.get('key', place)} in shard {shard} is of another teacher ({len(q.outputs)} views, "
                f"noise {found}; the model takes {wanted}): move that shard away"
            )
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
    """The views of a quadruple, and where their alpha is known: as stored, or by a matte that is `believed`.

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

    A rig without a view at azimuth 0 leaves the input's elevation open: the quadruple records it, or it is
    the usual one.
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


@dataclass
class MixedDataset:
    """Renders first, quadruples later."""

    renders: RenderDataset  # give the samples before `start`
    quadruples: QuadrupleDataset  # give a share of the samples from then on
    start: int  # index of the first sample that may be a quadruple
    share: float  # of quadruples from then on, 0..1
    seed: int  # of the choice

    def __len__(self) -> int:
        """Number of objects and quadruples."""
        return len(self.renders) + len(self.quadruples)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        # What replaces a damaged sample, some `SPARE` further, is of the same kind.
        late = index % SPARE >= self.start and chance(self.share, generator_for(self.seed + 1, index))
        return (self.quadruples if late else self.renders)[index]


def first_whole(items: Any, count: int = 100) -> Any:
    """The first of `count` items that is not damaged; a run replaces the others, see `max_bad_samples`.

    Raises:
        UserError: of the first one, where all are.
    """
    errors: list[UserError] = []
    for index in range(count):
        try:
            return items[index]
        except UserError as error:
            errors.append(error)
    raise errors[0]


def check_fit(
    dataset: RenderDataset | QuadrupleDataset, size: int, noise_shape: Sequence[int], name: str = "the data"
) -> None:
    """Say it now when data and model were made for different sizes; messages call the data `name`.

    Raises:
        UserError: when pictures, their number or noise of a sample are others.
    """
    sample = first_whole(dataset)
    found = (len(sample.views), sample.image.shape[-1], tuple(sample.noise.shape))
    if found != (noise_shape[0], size, tuple(noise_shape)):
        raise UserError(
            f"{name} has {found[0]} pictures of {found[1]} pixels and noise {found[2]}, but the model takes "
            f"{noise_shape[0]} of {size} and {tuple(noise_shape)}: make the data again at that size, or "
            "change the model's configuration"
        )


def check_rig(dataset: QuadrupleDataset, config: GeneratorConfig, name: str = "the quadruples") -> None:
    """Say it now when a generator would imagine other views than one teacher drew.

    Raises:
        UserError: naming the options that fit; one elevation of all views is the input's, and may be any.
    """
    found = first_whole(dataset).rig
    distance = float(found.positions[0].norm())
    fovy = math.degrees(2 * math.atan(found.height / 2 / float(found.Ks[0, 1, 1])))
    azimuths, elevations = torch.rad2deg(found.azimuths) % 360, torch.rad2deg(found.elevations)
    level = float(elevations.max() - elevations.min()) < 1
    own = config.rig_at(float(elevations.mean()) if level else ELEVATION)
    away = (found.positions - own.positions).abs().max(), (found.Ks - own.Ks).abs().max() / found.width
    if away[0] > 0.03 or away[1] > 0.01:
        words = [",".join(f"{x:g}" for x in v.round(decimals=1).tolist()) for v in (azimuths, elevations)]
        raise UserError(
            f"the views of {name} are not those that this generator imagines: give "
            f"generator.azimuths=[{words[0]}] generator.elevations=[{'' if level else words[1]}] "
            f"generator.distance={distance:.4g} generator.fovy={fovy:.4g}"
        )


def validation_batch(renders: str, size: int, noise_shape: Sequence[int]) -> Sample | None:
    """Eight fixed samples of the folder `renders` for contact sheets; None for "", or where all are damaged.

    Raises:
        UserError: as `check_fit`.
    """
    if not renders:
        return None
    objects = RenderedObjects([renders], tolerant=True)
    held = RenderDataset(objects, 0, noise_shape, free_fraction=0, recolour=0)
    check_fit(held, size, noise_shape, "validation_renders")
    shown, damaged = shown_batch(held)
    if from_launcher("RANK") == 0:  # each process reads them
        for error in damaged:
            print(f"warning: left out of the contact sheet: {error}", file=sys.stderr)
    return shown


def shown_batch(dataset: RenderDataset | QuadrupleDataset, count: int = 8) -> tuple[Sample | None, list[str]]:
    """The first `count` samples that are not damaged, None where all are, and what is wrong with others."""
    found: list[Sample] = []
    damaged: list[str] = []
    for index in range(8 * count):
        if len(found) == count:
            break
        try:
            found.append(dataset[index])
        except UserError as error:
            damaged.append(str(error))
    return Sample.collate(found) if found else None, sorted(set(damaged))
