"""Meshes of Gaussians: closed, turned outwards, coloured as the Gaussians are, and readable elsewhere."""

import io
import json
import math
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from stand_ins.shown import toy as thin

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd.mesh import mesh_of, strays
from dd3g.pepd.surface import HALF, LEVEL, surface_nets, surface_quads, unambiguous, without_cavities


def toy() -> Gaussians:
    """The ball of the viewer's tests, so dense that nothing shines through."""
    g = thin()
    return Gaussians(g.means, g.quats, g.scales * 1.5, torch.full_like(g.opacities, 0.95), g.colors)


def solid_of(points, quads) -> trimesh.Trimesh:
    """The quads cut into triangles, by nobody's code but trimesh's."""
    quads = np.asarray(quads)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return trimesh.Trimesh(np.asarray(points), faces, process=False)


def ball(n: int, radius: float) -> torch.Tensor:
    a = (torch.arange(n) + 0.5) / n * 2 * HALF - HALF
    x, y, z = torch.meshgrid(a, a, a, indexing="ij")
    return (LEVEL + (radius - (x * x + y * y + z * z).sqrt())).clamp(0, 1)


def test_strays_do_not_make_the_object_small():
    shown = toy()
    means = shown.means.clone()
    means[:3] = torch.tensor([[5.0, 0.0, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, -5000.0]])
    scattered = replace(shown, means=means)
    found = mesh_of(scattered, resolution=48)
    assert strays(scattered).nonzero()[:, 0].tolist() == [0, 1, 2]
    whole = mesh_of(shown, resolution=48)
    assert len(found.quads) == pytest.approx(len(whole.quads), rel=0.05)
    assert found.points.max(0) == pytest.approx(whole.points.max(0), abs=0.05)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_a_thin_part_is_of_the_object(size):
    """A pole of one in a hundred, twice as long as the rest is wide."""
    shown = toy()
    means = shown.means * 0.95 / shown.means.norm(dim=-1).max()
    pole = len(means) // 100
    means[:pole] = torch.tensor([0.0, 1.0, 0.0]) * torch.linspace(0.9, 1.9, pole)[:, None]
    assert not strays(replace(shown, means=size * means)).any()


def test_quads_close_a_ball_and_turn_outwards():
    field = ball(24, 0.4)
    points, normals = surface_nets(field, LEVEL)
    solid = solid_of(points, surface_quads(field, LEVEL))
    assert solid.is_watertight and solid.is_winding_consistent and solid.euler_number == 2
    assert solid.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.03)
    assert ((solid.vertex_normals * normals.numpy()).sum(-1) > 0.95).all()


def test_a_field_that_fills_the_cube_is_closed_at_its_faces():
    field = torch.ones(6, 6, 6)
    points, _ = surface_nets(field, LEVEL)
    solid = solid_of(points, surface_quads(field, LEVEL))
    assert solid.is_watertight and solid.volume > (2 * HALF * 5 / 6) ** 3


def test_noise_without_ambiguous_edges_is_closed():
    field = torch.rand(14, 14, 14, generator=torch.Generator().manual_seed(0))
    points, _ = surface_nets(field, LEVEL)
    assert not solid_of(points, surface_quads(field, LEVEL)).is_watertight  # four quads share a side
    mended = unambiguous(field, LEVEL)
    points, _ = surface_nets(mended, LEVEL)
    solid = solid_of(points, surface_quads(mended, LEVEL))
    assert solid.is_watertight and solid.is_winding_consistent and solid.volume > 0
    assert ((mended > LEVEL) >= (field > LEVEL)).all()


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(toy(), resolution=64)


def test_a_ball_of_gaussians_becomes_a_ball(mesh):
    """Red on its +x side, blue on -x, green above, with a yellow bar in front."""
    solid = solid_of(mesh.points, mesh.quads)
    assert solid.is_watertight and solid.is_winding_consistent
    assert solid.volume == pytest.approx(4 / 3 * math.pi * 0.43**3, rel=0.1)
    assert solid.bounds[0] == pytest.approx([-0.44, -0.44, -0.44], abs=0.04)
    assert ((solid.vertex_normals * mesh.normals).sum(-1) > 0).mean() > 0.995
    middle = mesh.points[mesh.quads].mean(1)
    height, width, _ = mesh.texture.shape
    at = (mesh.places.mean(1) * [width, height]).astype(int)
    colour = mesh.texture[at[:, 1], at[:, 0]] / 255
    for where, wanted in (
        ((middle[:, 0] > 0.25) & (middle[:, 1] < 0), [1, 0, 0]),
        ((middle[:, 0] < -0.25) & (middle[:, 1] < 0), [0, 0, 1]),
        (middle[:, 1] > 0.36, [0, 0.8, 0.2]),
    ):
        assert where.sum() > 50
        assert np.abs(np.median(colour[where], 0) - wanted).max() < 0.06


def test_neighbouring_patches_agree_on_their_edge(mesh):
    """Corners of the texture lie at texel centres; a point has one colour wherever its quads keep it."""
    height, width, _ = mesh.texture.shape
    at = np.rint(mesh.places * [width, height] - 0.5).astype(int)
    np.testing.assert_allclose(mesh.places * [width, height], at + 0.5, atol=1e-3)
    seen: dict[int, np.ndarray] = {}
    for quad, places in zip(mesh.quads[:500], at[:500], strict=True):
        for point, (x, y) in zip(quad.tolist(), places, strict=True):
            assert (
                np.abs(seen.setdefault(point, mesh.texture[y, x]) - mesh.texture[y, x].astype(int)) <= 1
            ).all()


def test_place_and_size_are_kept():
    turned = toy().transformed(translation=torch.tensor([10.0, 0.0, -3.0]), scale=5.0)
    mesh = mesh_of(turned, resolution=32)
    low, high = mesh.points.min(0), mesh.points.max(0)
    np.testing.assert_allclose((low + high) / 2, [10, 0, -3], atol=0.5)
    np.testing.assert_allclose(high - low, 5 * 0.86, rtol=0.15)


@pytest.mark.slow
def test_a_sheet_thinner_than_a_pixel_keeps_its_size():
    steps = torch.linspace(-0.4, 0.4, 41)
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    means = torch.stack([x, y, torch.zeros_like(x)], -1).view(-1, 3)
    count = len(means)
    sheet = Gaussians(
        means,
        torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        torch.tensor([0.02, 0.02, 0.0005]).expand(count, 3),
        torch.full((count,), 0.95),
        torch.full((count, 3), 0.5),
    )
    mesh = mesh_of(sheet)
    solid = solid_of(mesh.points, mesh.quads)
    assert solid.is_watertight and solid.volume > 0
    np.testing.assert_allclose(solid.bounds[:, :2], [[-0.4, -0.4], [0.4, 0.4]], atol=0.03)
    assert solid.area_faces[solid.face_normals[:, 2] > 0.9].sum() > 0.55  # without holes


def test_hollows_that_nobody_sees_are_filled():
    field = torch.zeros(12, 12, 12)
    field[1:6, 1:6, 1:6] = 1
    field[3, 3, 3] = field[3, 3, 4] = 0
    field[8:11, 8:11, 8:11] = 1
    field[9, 9, 9:] = 0  # reached from outside
    filled = without_cavities(field, LEVEL)
    assert (filled[3, 3, 3:5] > LEVEL).all() and (filled[9, 9, 9:] == 0).all()
    assert ((filled > LEVEL).sum() - (field > LEVEL).sum()) == 2
    assert len(solid_of(surface_nets(filled, LEVEL)[0], surface_quads(filled, LEVEL)).split()) == 2


@pytest.mark.parametrize("suffix", ["obj", "usdz"])
def test_text_is_as_exact_as_numbers_far_from_the_origin(mesh, tmp_path, suffix):
    far = replace(mesh, points=(mesh.points + np.float32([1000, -500, 3])).astype(np.float32))
    path = far.save(tmp_path / f"x.mesh.{suffix}")[0]
    if suffix == "obj":
        lines = [line.split()[1:] for line in path.read_text().splitlines() if line.startswith("v ")]
    else:
        with zipfile.ZipFile(path) as package:
            text = package.read("object.usda").decode().partition("points = [")[2].partition("]")[0]
        lines = [row.split(",") for row in text.strip("()").split("), (")]
    np.testing.assert_array_equal(np.array(lines, np.float32), far.points)


def test_nothing_solid_is_an_error():
    with pytest.raises(UserError, match="none of the Gaussians has an opacity over 0.05"):
        mesh_of(toy().select(torch.zeros(0, dtype=torch.long)))
    faint = toy()
    faint = Gaussians(faint.means, faint.quats, faint.scales * 0.01, faint.opacities * 0.1, faint.colors)
    with pytest.raises(UserError, match="no surface"):
        mesh_of(faint, resolution=32)


def test_glb_is_read_by_trimesh(mesh, tmp_path):
    (path,) = mesh.save(tmp_path / "x.mesh.glb")
    data = path.read_bytes()
    assert len(data) == struct.unpack_from("<I", data, 8)[0] and len(data) % 4 == 0
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    (read,) = trimesh.load(path, process=False).geometry.values()
    assert len(read.vertices) == 4 * len(mesh.quads) and len(read.faces) == 2 * len(mesh.quads)
    np.testing.assert_allclose(read.vertices, mesh.points[mesh.quads].reshape(-1, 3), atol=1e-6)
    np.testing.assert_allclose(read.vertex_normals, mesh.normals[mesh.quads].reshape(-1, 3), atol=1e-5)
    texture = np.asarray(read.visual.material.baseColorTexture)[..., :3]
    np.testing.assert_array_equal(texture, mesh.texture)
    # trimesh's v runs upwards
    np.testing.assert_allclose(read.visual.uv, mesh.places.reshape(-1, 2) * [1, -1] + [0, 1], atol=1e-6)
    merged = trimesh.Trimesh(read.vertices, read.faces)  # corners of one place become one
    assert merged.is_watertight and merged.volume > 0


def test_usdz_is_a_zip_as_usd_wants_it(mesh, tmp_path):
    """Nothing compressed, each file at a multiple of 64 bytes, the scene first; and the same each time."""
    (path,) = mesh.save(tmp_path / "x.mesh.usdz")
    data = path.read_bytes()
    assert mesh.save(tmp_path / "y.mesh.usdz")[0].read_bytes() == data
    with zipfile.ZipFile(path) as package:
        assert package.testzip() is None
        entries = package.infolist()
        assert [entry.filename for entry in entries] == ["object.usda", "texture.png"]
        for entry in entries:
            name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
            assert entry.compress_type == zipfile.ZIP_STORED
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
        texture = np.asarray(Image.open(io.BytesIO(package.read("texture.png"))))
        assert package.read("object.usda").startswith(b"#usda 1.0\n")
    np.testing.assert_array_equal(texture, mesh.texture)


def test_obj_is_read_by_trimesh(mesh, tmp_path):
    files = mesh.save(tmp_path / "x.mesh.obj")
    assert [f.name for f in files] == ["x.mesh.obj", "x.mesh.mtl", "x.mesh.png"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    read = trimesh.load(files[0])
    assert len(read.faces) == 2 * len(mesh.quads)
    assert all(len(line.split()) == 4 for line in files[0].read_text().splitlines() if line.startswith("f "))
    merged = trimesh.Trimesh(read.vertices, read.faces)
    assert merged.is_watertight
    assert merged.volume == pytest.approx(solid_of(mesh.points, mesh.quads).volume, rel=1e-3)
    np.testing.assert_array_equal(np.asarray(read.visual.material.image.convert("RGB")), mesh.texture)
    assert Image.open(io.BytesIO(Path(files[2]).read_bytes())).size == mesh.texture.shape[1::-1]
