"""Made-up objects: solids against brute force, closed surfaces, and a command that goes on."""

import json
from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import label

from data_gen.__main__ import main
from data_gen.meshes.procedural import KINDS, REACH, Space, melted, procedural_shape, tool
from dd3g.meshes.layouts import find_objects
from dd3g.meshes.mesh import load_mesh

SPACE = Space(12)
POINTS = SPACE.points.reshape(-1, 3).astype(np.float64)


def to_points(distance):
    return distance.reshape(-1)


def test_the_grid_is_that_of_voxel_centres():
    axis = np.unique(SPACE.points[..., 0])
    np.testing.assert_allclose(axis, (np.arange(12) + 0.5) / 6 * REACH - REACH, atol=1e-6)
    assert (SPACE.points[3, 5, 7] == [SPACE.x[3, 5, 7], SPACE.y[3, 5, 7], SPACE.z[3, 5, 7]]).all()


def test_a_rod_is_a_row_of_balls():
    a, b = np.array([-0.5, 0.1, 0.2]), np.array([0.4, -0.6, 0.3])
    t = np.linspace(0, 1, 2001)[:, None]
    for last in (0.2, 0.05):
        apart = np.linalg.norm(POINTS[:, None] - (a + t * (b - a)), axis=-1)
        nearest = apart.argmin(1)  # its radius counts, even where a thicker ball is nearer
        twin = apart.min(1) - (0.2 + (last - 0.2) * t[nearest, 0])
        np.testing.assert_allclose(to_points(SPACE.rod(a, b, 0.2, last)), twin, atol=1e-3)


def test_a_box_is_the_nearest_point_of_a_box():
    centre, half = np.array([0.1, -0.2, 0.0]), np.array([0.5, 0.3, 0.7])
    found, offset = to_points(SPACE.box(centre, half, 0.05)), np.abs(POINTS - centre)
    inner = half - 0.05
    outside = np.linalg.norm(offset - offset.clip(max=inner), axis=1)
    twin = np.where(outside > 0, outside, (offset - inner).max(1)) - 0.05
    np.testing.assert_allclose(found, twin, atol=1e-5)


def test_a_ball_and_a_turned_solid_hold_the_points_they_should():
    scaled = (POINTS - [0.2, 0, 0]) / [0.6, 0.4, 0.3]
    assert ((to_points(SPACE.ball([0.2, 0, 0], [0.6, 0.4, 0.3])) < 0) == ((scaled**2).sum(1) < 1)).all()
    heights, radii = np.array([-0.7, 0.1, 0.6]), np.array([0.3, 0.8, 0.5])
    x, y, z = POINTS.T
    for corners in (2, 8):
        beside = (np.abs(x) ** corners + np.abs(z) ** corners) ** (1 / corners)
        inside = (beside < np.interp(y, heights, radii)) & (y > -0.7) & (y < 0.6)
        assert ((to_points(SPACE.turned(radii, heights, corners)) < 0) == inside).all()


def test_melting_adds_only_near_the_seam():
    a, b = SPACE.ball([-0.3, 0, 0], [0.5] * 3), SPACE.ball([0.4, 0, 0], [0.4] * 3)
    found, union = melted(a, b, 0.1), np.minimum(a, b)
    far = np.abs(a - b) > 0.1
    np.testing.assert_allclose(found[far], union[far], atol=1e-6)
    assert (found[~far] < union[~far] + 1e-6).all() and (union - found).max() <= 0.1 / 4 + 1e-6


@pytest.mark.parametrize("index", range(2 * len(KINDS)))
def test_objects_are_closed_and_right_side_out(index):
    kind, vertices, faces = procedural_shape(Space(32), 3, index)
    assert kind == KINDS[index % len(KINDS)].__name__
    edges = Counter((int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True))
    assert all(edges[b, a] == count for (a, b), count in edges.items())
    corners = vertices[faces].astype(np.float64)
    volume = np.linalg.det(corners).sum() / 6
    assert 0.005 < volume < 4.2
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(vertices.min(0), -vertices.max(0), atol=1e-5)


def test_a_tool_is_in_one_piece():
    space = Space(64)
    pieces = [label(tool(space, np.random.default_rng(seed)) < 0)[1] for seed in range(60)]
    assert pieces == [1] * 60


def test_an_object_is_that_of_its_seed_and_index():
    (_, first, _), (_, again, _), (_, other, _) = (procedural_shape(Space(24), seed, 4) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and (first.shape != other.shape or not np.allclose(first, other))


def test_the_command_writes_shapes_and_goes_on(tmp_path, capsys):
    words = ["objects", "-o", str(tmp_path), "--resolution", "24", "--processes", "1"]
    assert main([*words, "--count", "2"]) == 0
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(times) == ["0-00000-vessel.npz", "0-00001-vessel.npz"]
    capsys.readouterr()
    assert main([*words, "--count", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"objects": 3, "output": str(tmp_path)}
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name in times} == times
    found, _ = find_objects(tmp_path)
    assert [(o.id, o.style) for o in found] == [
        ("0-00000-vessel", "shape"), ("0-00001-vessel", "shape"), ("0-00002-package", "shape"),
    ]  # fmt: skip
    assert main([*words, "--count", "1", "--seed", "1"]) == 0
    assert len(list(tmp_path.iterdir())) == 4
    _, vertices, faces = procedural_shape(Space(24), 0, 2)
    mesh = load_mesh(found[2].path, normal=False)
    np.testing.assert_allclose(mesh.vertices, vertices, atol=1 / 32767)
    assert np.array_equal(mesh.faces, faces)
