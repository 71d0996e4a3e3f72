"""Targets of an evaluation, drawn from meshes, and rows whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.meshes.mesh import Mesh, corner_normals
from dd3g.meshes.rendering import Light, render_mesh
from dd3g.pepd import GeneratorConfig
from distill.evaluation.predictors import (
    Prediction,
    Target,
)
from distill.pictures import on_white

AZIMUTHS = [0, 90, 180, 270, 20, 100, 110, 170, 250, 340]
RIG, NOVEL = [0, 1, 2, 3], list(range(4, 10))


def ellipsoid(color: tuple[float, float, float] = (0.8, 0.3, 0.2), radii=(0.4, 0.3, 0.4)) -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(3)
    vertices = (np.asarray(ball.vertices) * radii).astype(np.float32)
    return plain(vertices, np.asarray(ball.faces), color)


def plain(vertices: np.ndarray, faces: np.ndarray, color=(1.0, 1.0, 1.0)) -> Mesh:
    vertices, faces = vertices.astype(np.float32), faces.astype(np.int32)
    colors = np.broadcast_to(np.float32(color), (len(faces), 3, 3)).copy()
    uvs, none = np.zeros((len(faces), 3, 2), np.float32), np.full(len(faces), -1, np.int32)
    normals, solid = corner_normals(vertices, faces), np.zeros((0, 0, 0, 3), np.uint8)
    return Mesh(vertices, faces, normals, uvs, colors, none, [], vertices, solid)


def target_of(mesh: Mesh, name: str = "thing", style: str = "scan", size: int = 32, elevation=10.0) -> Target:
    cameras = Cameras.orbit(AZIMUTHS, [elevation] * 4 + [10.0] * 6, size)
    light = Light(1.0, np.array([[0.0, 1, 0]]), np.zeros((1, 3)))
    rgba = torch.from_numpy(render_mesh(mesh, cameras, light)[0]).movedim(-1, 1).float() / 255
    return Target(name, style, rgba, cameras, torch.tensor(AZIMUTHS).float(), RIG, NOVEL)


def perfect(target: Target, views: list[int]) -> Prediction:
    return Prediction(views, on_white(target.rgba[views]), target.rgba[views, 3:])


def only_rig(target: Target, views: list[int]) -> Prediction:
    return Prediction(RIG, on_white(target.rgba[RIG]), None)


class Stub(nn.Module):
    """A generator that answers with one ball; the noise decides how large it is."""

    config = GeneratorConfig(size=16, latent_shape=(4, 4, 2, 2))

    def __init__(self, radius: float = 0.3) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius))
        self.pictures: list[tuple[int, bool]] = []

    def forward(
        self, noise: Tensor, cameras: Cameras, image: Tensor, front: Cameras | None = None
    ) -> Gaussians:
        B = len(noise)
        scale = self.radius * (4 * noise.mean((1, 2, 3, 4))).exp()[:, None, None].expand(B, 1, 3)
        color = image[:, :3].sum((2, 3)) / image[:, 3:].sum((2, 3))
        quats = torch.tensor([1.0, 0, 0, 0]).expand(B, 1, 4)
        return Gaussians(torch.zeros(B, 1, 3), quats, scale, torch.full((B, 1), 0.99), color[:, None])

    def compiled(self) -> Stub:
        return self

    def generate(self, picture: Tensor, seed: int = 0, raw: bool = False) -> Gaussians:
        self.pictures.append((picture.shape[-1], raw))
        return self(torch.zeros(1, 4, 4, 2, 2), Cameras.default_rig(32), picture[None])[0]


def write_renders(folder: Path, count: int = 3, size: int = 32) -> None:
    """Shards as `dd3g data render` makes them, of boxes."""
    import trimesh

    from data_gen.meshes.objects import Options
    from data_gen.render import render_folder

    meshes = folder.parent / "meshes"
    meshes.mkdir(exist_ok=True)
    for i in range(count):
        trimesh.creation.box((1, 1 + i, 1)).export(meshes / f"box{i}.glb")
    render_folder(meshes, folder, Options(size=size, supersample=2, eval=True))
