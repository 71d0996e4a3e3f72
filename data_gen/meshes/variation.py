"""Random light, colours and shape for rendered objects; all draws come from the generator passed in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dd3g.meshes.mesh import Mesh, corner_normals, normalised
from dd3g.meshes.rendering import Light

SOLIDS = ("parts", "gradient", "checks", "noise", "two-tone", "stripes")


def random_light(rng: np.random.Generator) -> Light:
    """Ambient light and one or two slightly tinted lights, from above more often than from below."""
    count = int(rng.integers(1, 3))
    directions = rng.normal(size=(count, 3))
    directions[0, 1] = abs(directions[0, 1])
    colors = rng.uniform([0.2], [0.6], (count, 1)) / count * rng.uniform(0.85, 1.15, (count, 3))
    return Light(float(rng.uniform(0.45, 0.8)), directions, colors)


def random_color_matrix(rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, 4) affine sRGB map: hue, saturation, contrast, brightness; any hue at all one time in four."""
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else rng.normal(0, 0.25)
    grey = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    saturation = rng.uniform(0.5, 1.4)
    # Rotation about the grey axis; what is off that axis is scaled by the saturation.
    turn = grey + saturation * (np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * across)
    contrast, brightness = rng.uniform(0.75, 1.25), rng.normal(0, 0.07)
    return np.concatenate([contrast * turn, np.full((3, 1), 0.5 - 0.5 * contrast + brightness)], 1)


def reshaped(mesh: Mesh, rng: np.random.Generator) -> tuple[Mesh, float]:
    """Random stretch (0.75..1.3 an axis), mirror, tilt (at most 15 degrees) and yaw, normalised again.

    Returns:
        the mesh, and the azimuth, 0..360 degrees, from which its front is seen now.
    """
    stretch = rng.uniform(0.75, 1.3, 3) * [rng.choice([-1.0, 1.0]), 1, 1]
    pitch, roll = np.radians(np.clip(rng.normal(0, 6, 2), -15, 15))
    yaw = rng.uniform(-np.pi, np.pi)
    turn = _rotation(1, yaw) @ _rotation(0, pitch) @ _rotation(2, roll)
    vertices = normalised((mesh.vertices * stretch) @ turn.T)
    changed = replace(mesh, vertices=vertices, normals=corner_normals(vertices, mesh.faces))
    return changed, -math.degrees(yaw) % 360


def painted(mesh: Mesh, rng: np.random.Generator, size: int = 48) -> tuple[Mesh, str]:
    """Give a mesh without texture a random one that fills space.

    Returns:
        the mesh, and the name of the texture, one of `SOLIDS`.
    """
    kind = SOLIDS[rng.integers(len(SOLIDS))]
    palette = random_palette(rng, 6)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)  # (S, S, S, 3) places
    if kind == "parts":
        labels = part_labels(mesh)
        colors = random_palette(rng, int(labels.max()) + 1)[labels]
        return replace(mesh, colors=np.repeat(colors[:, None], 3, 1).astype(np.float32)), kind
    direction = rng.normal(size=3) * [0.5, 1, 0.5]
    along = grid @ (direction / np.linalg.norm(direction))
    if kind == "gradient":
        t = ((along + 1) / 2).clip(0, 1)[..., None]
        volume = palette[0] * (1 - t) + palette[1] * t
    elif kind == "checks":
        period = rng.uniform(0.2, 0.6)
        cell = np.floor((grid + rng.uniform(0, 1, 3)) / period).sum(-1).astype(int)
        volume = palette[cell % 2]
    elif kind == "stripes":
        volume = palette[np.floor(along / rng.uniform(0.1, 0.4)).astype(int) % int(rng.integers(2, 5))]
    elif kind == "two-tone":
        volume = palette[(along > rng.uniform(-0.3, 0.3)).astype(int)]
    else:
        t = _smooth_noise(rng, size, int(rng.integers(3, 9)))
        volume = palette[0] * (1 - t[..., None]) + palette[1] * t[..., None]
    grain = 1 + rng.uniform(0, 0.3) * (_smooth_noise(rng, size, 16) - 0.5)
    solid = (255 * (volume * grain[..., None]).clip(0, 1)).astype(np.uint8)
    return replace(mesh, solid=solid), kind


def random_palette(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count, 3) sRGB colours, mid-saturated, with some greys."""
    hue, value = rng.uniform(0, 1, (count, 1)), rng.uniform(0.25, 1.0, (count, 1))
    saturation = rng.uniform(0, 0.9, (count, 1)) * (rng.random((count, 1)) > 0.2)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - wheel))


def part_labels(mesh: Mesh) -> NDArray[np.int64]:
    """(F,) connected component of each face; vertices at one position count as joined."""
    from trimesh.graph import connected_component_labels

    _, place = np.unique(np.round(mesh.rest.astype(np.float64), 5), axis=0, return_inverse=True)
    faces = place.reshape(-1)[mesh.faces]
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    labels = connected_component_labels(ends, int(faces.max()) + 1)
    return np.unique(labels[faces[:, 0]], return_inverse=True)[1]


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    i, j = [k for k in range(3) if k != axis]
    R = np.eye(3)
    R[i, i] = R[j, j] = np.cos(angle)
    R[i, j], R[j, i] = -np.sin(angle), np.sin(angle)
    return R


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float64]:
    """(size, size, size) trilinear value noise in 0..1."""
    values = rng.random((cells + 1,) * 3)
    x = (np.arange(size) + 0.5) / size * cells
    i, f = x.astype(int), x - x.astype(int)
    for axis in range(3):
        weight = f.reshape([-1 if k == axis else 1 for k in range(3)])
        values = np.take(values, i, axis) * (1 - weight) + np.take(values, i + 1, axis) * weight
    return values
