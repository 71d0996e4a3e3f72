"""Carving against brute force, and on bodies whose matter is known."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import trimesh
from scipy.ndimage import maximum_filter
from stand_ins.tiny_objects import write_cube

from data_gen.meshes import volumes
from data_gen.meshes.objects import HALF, Options
from data_gen.meshes.volumes import DISTANCE, FOVY, PIXELS, RARE, SLACK, VIEWS, carve, filled, packed
from data_gen.render import main, render_folder
from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.meshes.mesh import load_mesh
from dd3g.meshes.rendering import Light, nearest_surface, render_mesh
from dd3g.rig import BAND
from distill.samples.renders import RenderedObject, RenderedObjects


def mesh_of(shape, tmp_path, scale=1.0):
    """A trimesh as `load_mesh` reads it, farthest vertex at `scale`."""
    shape.export(tmp_path / "mesh.glb")
    mesh = load_mesh(tmp_path / "mesh.glb")
    mesh.vertices = mesh.vertices * np.float32(scale)
    return mesh


def centres(n, half):
    a = (np.arange(n) + 0.5) / n * 2 * half - half
    return np.stack(np.meshgrid(a, a, a, indexing="ij"), -1)


def test_carving_asks_every_view_about_every_voxel_without_surface(tmp_path):
    mesh = mesh_of(trimesh.creation.torus(0.6, 0.25), tmp_path)
    n, half, views, pixels = 14, 1.1, 5, 28
    points = centres(n, half).reshape(-1, 3)
    twin = np.ones(len(points), bool)
    cameras = Cameras.all_around(views, pixels, DISTANCE * half, FOVY)
    for v in range(views):
        nearest = maximum_filter(nearest_surface(mesh, cameras[v]), 3)
        viewmat, K = cameras.viewmats[v].double().numpy(), cameras.Ks[v].double().numpy()
        local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
        u, w = np.floor(local[:, :2] / local[:, 2:] * K[0, 0] + K[0, 2]).astype(int).T
        inside = (u >= 0) & (w >= 0) & (u < pixels) & (w < pixels)
        seen = np.where(inside, nearest[w.clip(0, pixels - 1), u.clip(0, pixels - 1)], 0)
        with np.errstate(divide="ignore"):
            twin &= (seen > 0) & (local[:, 2] >= 1 / seen - SLACK * 2 * half / n)
    found = carve(mesh, half, n, views).reshape(-1)
    assert 0.05 < twin.mean() < 0.5 and found[twin].all()
    touched = np.zeros((n, n, n), bool)
    for corners in mesh.vertices[mesh.faces].astype(np.float64):
        shares = np.random.default_rng(0).dirichlet([1, 1, 1], 1000)  # points of the triangle
        i, j, k = ((shares @ corners + half) / (2 * half) * n).astype(int).T
        touched[i, j, k] = True
    assert touched.reshape(-1)[found & ~twin].all()  # and what is not touched is in neither
    assert found[touched.reshape(-1)].mean() > 0.95  # the others are touched at a corner


def test_the_nearest_surface_is_the_renderers_depth(tmp_path):
    mesh = mesh_of(trimesh.creation.icosphere(2), tmp_path, 0.5)
    cameras = Cameras.orbit([30.0], [20.0], 32)
    light = Light(1.0, np.zeros((1, 3)) + [0, 1, 0], np.zeros((1, 3)))
    _, depth = render_mesh(mesh, cameras, light, supersample=1)
    nearest = nearest_surface(mesh, cameras[0])
    assert np.array_equal(nearest > 0, depth[0] > 0)
    np.testing.assert_allclose(1 / nearest[nearest > 0], depth[0][nearest > 0], rtol=1e-5)


def test_a_sphere_fills_its_volume(tmp_path):
    found = carve(mesh_of(trimesh.creation.icosphere(4), tmp_path), 1.02, 64)
    radius = np.linalg.norm(centres(64, 1.02), axis=-1)
    voxel = 2 * 1.02 / 64
    assert found[radius < 1 - 0.2 * voxel].all() and not found[radius > 1 + 2.5 * voxel].any()
    assert found.mean() * 2.04**3 == pytest.approx(4 / 3 * np.pi, rel=0.08)


@pytest.mark.parametrize("n", [64, 65])
def test_a_sheet_of_no_thickness_is_a_voxel_or_two_thick(tmp_path, n):
    sheet = trimesh.Trimesh([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    found = carve(mesh_of(sheet, tmp_path), 1.02, n)
    side = np.sqrt(0.5)
    grid = centres(n, 1.02)
    within = (np.abs(grid[..., :2]) < side - 0.05).all(-1)
    thickness = (found & within).sum(2)[within[:, :, 0]]
    assert thickness.min() >= 1 and thickness.max() <= 3
    assert not found[(np.abs(grid[..., 2]) > 0.1) | (np.abs(grid[..., :2]) > side + 0.1).any(-1)].any()


def cross():
    """A voxel and its six neighbours."""
    i, j, k = np.indices((3, 3, 3)) - 1
    return abs(i) + abs(j) + abs(k) <= 1


def box(open_above):
    """A box with walls of a quarter of its side, hollow inside; without its lid's middle if it is open."""
    outer, inner = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((0.5, 0.5, 0.5))
    if not open_above:
        return trimesh.util.concatenate([outer, inner])
    floor = trimesh.creation.box((1, 0.25, 1))
    floor.apply_translation((0, -0.375, 0))
    walls = [floor]
    for axis, sign in ((0, 1), (0, -1), (2, 1), (2, -1)):
        wall = trimesh.creation.box([0.25 if k == axis else 1 for k in range(3)])
        wall.apply_translation([sign * 0.375 if k == axis else 0 for k in range(3)])
        walls.append(wall)
    return trimesh.util.concatenate(walls)


def test_a_hidden_cavity_is_filled_and_an_open_one_is_hollow(tmp_path):
    scale = 1 / np.sqrt(0.75)  # of the loaded box, half of whose side is .5
    places = np.abs(centres(48, 1.02)) / scale
    cavity, whole = (places < 0.2).all(-1), (places < 0.48).all(-1)
    closed = carve(mesh_of(box(False), tmp_path), 1.02, 48)
    assert closed[whole].all() and closed[cavity].all()
    hollow = carve(mesh_of(box(True), tmp_path), 1.02, 48)
    assert hollow[cavity].mean() < 0.1 and hollow[whole].mean() > 0.75


def test_what_the_generators_views_hardly_look_into_is_filled(tmp_path):
    """Shells of one voxel as furniture has them: a chest without a bottom, a shade; not under a table."""
    n, half, scale = 64, 1.02, 1 / np.sqrt(0.75)
    x, y, z = np.moveaxis(centres(n, half) / scale, -1, 0)
    within = np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 0.45
    chest = trimesh.creation.box((1, 1, 1))
    chest.update_faces(chest.triangles_center[:, 1] > -0.49)
    matter = carve(mesh_of(chest, tmp_path), half, n)
    assert matter[within].mean() < 0.2 and filled(matter, half)[within].mean() > 0.97
    shade = trimesh.creation.cylinder(0.5, 1.4, sections=48)
    shade.update_faces(abs(shade.triangles_center[:, 2]) < 0.69)
    shade.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    matter = carve(mesh_of(shade, tmp_path), half, n)
    inner = (np.hypot(x, z) * scale < 0.5) & (abs(y + 0.2) < 0.2)  # views from above see the upper part
    assert matter[inner].mean() < 0.2 and filled(matter, half)[inner].all()
    top = trimesh.creation.box((1, 0.1, 1))
    top.apply_translation((0, 0.45, 0))
    legs = [trimesh.creation.box((0.1, 1, 0.1)) for _ in range(4)]
    for leg, (a, b) in zip(legs, ((1, 1), (1, -1), (-1, 1), (-1, -1)), strict=True):
        leg.apply_translation((0.45 * a, 0, 0.45 * b))
    matter = carve(mesh_of(trimesh.util.concatenate([top, *legs]), tmp_path), half, n)
    below = within & (y < 0.2) & (np.maximum(abs(x), abs(z)) < 0.3)
    assert not filled(matter, half)[below].any()
    assert (filled(matter, half) & ~matter).mean() < 0.01


def test_looks_are_counted_as_in_plain_numpy():
    n, half = 12, 1.0
    g = np.random.default_rng(3)
    matter = g.random((n, n, n)) < 0.2
    matter[3:9, 3:9, 3:9] = g.random((6, 6, 6)) < 0.6
    size = PIXELS * n
    cameras = Cameras.all_around(VIEWS, size, DISTANCE * half, FOVY, *BAND)
    voxels, pairs = centres(n, half)[matter], centres(n // 2, half).reshape(-1, 3)
    looks = np.zeros(len(pairs), int)
    for viewmat, K in zip(cameras.viewmats.double().numpy(), cameras.Ks.double().numpy(), strict=True):

        def pixels(points, viewmat=viewmat, K=K):
            local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
            column, row = np.floor(local[:, :2] / local[:, 2:] * K[0, 0] + K[0, 2]).astype(int).T
            return row, column, local[:, 2]

        depth = np.full((size + 2, size + 2), np.inf)  # with a rim
        for row, column, z in zip(*pixels(voxels), strict=True):
            if -1 <= row <= size and -1 <= column <= size:
                window = depth[max(row, 0) : row + 3, max(column, 0) : column + 3]
                np.minimum(window, z, out=window)
        row, column, z = pixels(pairs)
        inside = (row >= 0) & (column >= 0) & (row < size) & (column < size)
        nearest = depth[1:-1, 1:-1][row.clip(0, size - 1), column.clip(0, size - 1)]
        looks += ~inside | (z < nearest)
    hidden = (looks < RARE).reshape((n // 2,) * 3) | matter.reshape(n // 2, 2, n // 2, 2, n // 2, 2).any(
        (1, 3, 5)
    )
    hidden = -maximum_filter(-hidden.astype(int), footprint=cross(), mode="constant", cval=0) > 0
    wanted = matter | hidden.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert (wanted & ~matter).sum() > 20
    assert np.array_equal(filled(matter, half), wanted)


def test_a_mesh_must_lie_in_the_cube(tmp_path):
    with pytest.raises(ValueError, match="reaches 1 from the origin, but the cube only 0.5"):
        carve(mesh_of(trimesh.creation.icosphere(1), tmp_path), 0.5)


def test_bits_are_packed_in_a_fixed_order():
    matter = np.zeros((2, 2, 2), bool)
    matter[0, 0, 1] = matter[1, 1, 0] = True
    assert zlib.decompress(packed(matter)) == bytes([0b01000010])
    meta = {"volume": {"resolution": 2, "half": 1.0}}
    item = RenderedObject(None, None, None, meta, packed(matter))
    assert np.array_equal(item.volume.numpy(), matter)


SMALL = Options(size=32, supersample=2, quads=1, free_quads=0, novel=2, variants=2)


def test_volumes_are_stored_as_drawn(tmp_path):
    """The cube of each variant, reshaped and scaled, has its matter where its depth says it begins."""
    write_cube(tmp_path / "meshes/cube/model.glb")
    render_folder(tmp_path / "meshes", tmp_path / "with", replace(SMALL, volumes=True))
    render_folder(tmp_path / "meshes", tmp_path / "without", SMALL)
    for cached in (False, True):
        objects, plain = RenderedObjects(tmp_path / "with", cached), RenderedObjects(tmp_path / "without")
        for with_volume, without in zip(objects, plain, strict=True):
            assert without.volume is None and "volume" not in without.meta
            assert np.array_equal(with_volume.rgba, without.rgba)
            assert with_volume.meta["volume"] == {"resolution": 128, "half": HALF}
            matter = with_volume.volume.numpy()
            origins, directions = with_volume.cameras.rays()
            seen = with_volume.depth > 0
            for shift, expected in ((0.03, True), (-0.06, False)):
                points = origins + (with_volume.depth + shift)[..., None] * directions
                i, j, k = ((points[seen].numpy() + HALF) / (2 * HALF) * 128).astype(int).clip(0, 127).T
                assert (matter[i, j, k] == expected).mean() > 0.9
    sizes = [
        np.prod(np.ptp(np.argwhere(o.volume.numpy()), 0) + 1) for o in RenderedObjects(tmp_path / "with")
    ]
    assert sizes[0] != sizes[1]


def test_a_damaged_volume_is_named():
    meta = {"id": "thing", "volume": {"resolution": 4, "half": 1.0}}
    for bits in (b"no", zlib.compress(bytes(7)), zlib.compress(bytes(9)), zlib.compress(bytes(10**6))):
        with pytest.raises(UserError, match="volume of thing is damaged"):
            _ = RenderedObject(None, None, None, meta, bits).volume


def test_a_folder_of_an_earlier_version_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(volumes, "carve", partial(carve, resolution=16))
    write_cube(tmp_path / "meshes/cube/model.glb")
    line = [str(tmp_path / "meshes"), "-o", str(tmp_path / "out"), "--size", "16", "--supersample", "2"]
    line += ["--quads", "1", "--free-quads", "0", "--novel", "2", "--processes", "1"]
    assert main(line) == 0
    path = tmp_path / "out/options.json"
    before = json.loads(path.read_text())
    assert before.pop("volumes") is False and set(asdict(Options())) - set(before) == {"volumes"}
    path.write_text(json.dumps(before))
    assert main(line) == 0
    assert main([*line, "--volumes"]) == 2 and "volumes False -> True" in capsys.readouterr().err
    assert main([*line[:2], str(tmp_path / "new"), *line[3:], "--volumes"]) == 0
    assert "volume.bits" in Shards(tmp_path / "new")[0]
