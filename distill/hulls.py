"""What a generator makes of rendered pictures, for an occupancy network that starts from it.

A few pictures of each object go through the generator; the hulls of its soft splats, along the rays of these
pictures, are kept beside the renders, since a step of the training is faster than one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.atomic import replacing
from dd3g.pepd import Generator
from dd3g.pepd.frustum import frustum_points, pixel_rays, slices
from dd3g.pepd.maps import resize
from dd3g.pepd.solid import Outlines, SolidOptions
from dd3g.progress import Progress
from dd3g.training import generator_for
from distill.carving import Together

PICTURES = 3  # of each object
AT_ONCE = 16  # pictures in a pass of the generator


@dataclass(frozen=True)
class Hulls:
    """Hulls of some pictures of each rendered object.

    Args:
        pictures: view indices by object.
        values: (K, D, S, S) uint8 by object, `least_alpha` times 255 at the slices along the rays.
    """

    pictures: Sequence[Sequence[int]]
    values: Sequence[Tensor]

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """(D, S, S) in 0..1 of the object and the k-th of its pictures."""
        index, k = place
        return self.values[index][k].float() / 255


@torch.inference_mode()
def hulls_of(
    generator: Generator, images: Tensor, elevations: Sequence[float], bins: int, seed: int
) -> Tensor:
    """Hulls (B, D, S, S) in 0..1 at the slices along the pictures' rays.

    Args:
        generator: made for pictures of S pixels a side.
        images: (B, 4, S', S') straight RGBA in 0..1.
        elevations: B degrees.
        bins: slices, D.
        seed: of the noise.
    """
    shape, size = generator.config.latent_shape, generator.config.size
    noise = torch.randn(len(images), *shape, generator=generator_for(seed, 0))
    azimuths = [360.0 * v / shape[0] for v in range(shape[0])]
    rigs = [Cameras.orbit(azimuths, elevation, size) for elevation in elevations]
    rig = Cameras(torch.stack([r.viewmats for r in rigs]), torch.stack([r.Ks for r in rigs]), size, size)
    device = generator.type_embedding.device
    soft = generator(noise.to(device), rig.to(device), resize(images, size).to(device)).to("cpu")
    rays, options = pixel_rays(size), SolidOptions()
    found = []
    for k, elevation in enumerate(elevations):
        points = frustum_points(rays, slices(bins), torch.deg2rad(torch.tensor(elevation)))
        found.append(Outlines.of(soft[k], options).hull(points.view(-1, 3)).view(points.shape[:-1]))
    return torch.stack(found)


def with_hulls(
    objects: Together, generator: str, pictures: Sequence[Sequence[int]], bins: int, device: str
) -> Hulls:
    """Hulls of these pictures of each object, from the files beside the renders or made now.

    Args:
        objects: renders; each shard gets a file of its own, which is used again by the same generator.
        generator: name or folder of it.
        pictures: view indices by object; at most `PICTURES` of each are taken.
        bins: slices, D.
        device: of the generator.

    Raises:
        UserError: no such generator, or a folder that cannot be written.
    """
    chosen = [[views[len(views) * k // PICTURES] for k in range(PICTURES)] for views in pictures]
    shards: dict[Path, list[int]] = {}
    for i in range(len(objects)):
        shards.setdefault(objects.shard(i), []).append(i)
    model = Generator.from_pretrained(generator, device=device)
    own = (tensor for name, tensor in model.state_dict().items() if not name.startswith("shape."))
    made_by = fingerprint(*(tensor.cpu().numpy().tobytes() for tensor in own))
    values: list[Tensor] = [torch.empty(0)] * len(objects)
    with Progress(total=len(objects), name="hulls") as progress:
        for shard, members in shards.items():
            path = shard.with_suffix(".hulls.npz")
            described = f"{made_by} {bins} {[chosen[i] for i in members]}"
            found = read(path, described)
            if found is None:
                found = made(objects, model, members, chosen, bins)
                write(path, described, found)
            for i, value in zip(members, found, strict=True):
                values[i] = value
            progress.advance(len(members))
    return Hulls(chosen, values)


def made(
    objects: Together,
    model: Generator,
    members: Sequence[int],
    chosen: Sequence[Sequence[int]],
    bins: int,
) -> Tensor:
    """Hulls (N, K, D, S, S) uint8 of the chosen pictures of some objects."""
    places = [(i, view) for i in members for view in chosen[i]]
    parts = []
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        items = [objects[i] for i, _ in part]
        images = torch.stack([item.rgba[v].float() / 255 for item, (_, v) in zip(items, part, strict=True)])
        elevations = [item.meta["elevation"][v] for item, (_, v) in zip(items, part, strict=True)]
        parts.append((hulls_of(model, images, elevations, bins, start) * 255).round().to(torch.uint8))
    return torch.cat(parts).unflatten(0, (len(members), PICTURES))


def read(path: Path, described: str) -> Tensor | None:
    """Hulls from a file, when it holds those that are described."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return torch.from_numpy(stored["hulls"]) if str(stored["described"]) == described else None
    except (OSError, ValueError, KeyError, BadZipFile):  # none, or damaged: it is made again
        return None


def write(path: Path, described: str, hulls: Tensor) -> None:
    """Keep hulls for the next run."""
    try:
        with replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, hulls=hulls.numpy(), described=np.array(described))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free some space") from error
