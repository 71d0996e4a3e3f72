from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from stand_ins.tiny_objects import CUBE, write_cube

from dd3g.cameras import Cameras
from dd3g.meshes.mesh import Mesh, corner_normals, load_mesh
from dd3g.meshes.rendering import Light, render_mesh
from dd3g.srgb import to_srgb

AMBIENT = Light(1.0, np.zeros((1, 3)) + [0, 1, 0], np.zeros((1, 3)))


def soup(rng: np.random.Generator, triangles: int) -> Mesh:
    vertices = rng.uniform(-0.5, 0.5, (3 * triangles, 3)).astype(np.float32)
    faces = np.arange(3 * triangles, dtype=np.int32).reshape(-1, 3)
    colors = rng.uniform(0, 1, (triangles, 3, 3)).astype(np.float32)
    nothing = np.zeros((0, 0, 0, 3), np.uint8)
    uvs, texture = np.zeros((triangles, 3, 2), np.float32), np.full(triangles, -1, np.int32)
    return Mesh(vertices, faces, corner_normals(vertices, faces), uvs, colors, texture, [], vertices, nothing)


def ray_trace(mesh: Mesh, cameras: Cameras, v: int, s: int) -> tuple[np.ndarray, np.ndarray]:
    """Every sample's ray against every triangle (Moller-Trumbore), in float64."""
    big = cameras.resized(cameras.width * s)
    big = Cameras(big.viewmats.double(), big.Ks.double(), big.width, big.height)
    origins, directions = big.rays()
    o, rays = origins[v, 0, 0].numpy(), directions[v].numpy()
    n = big.width
    color, depth = np.full((n, n, 3), np.nan), np.full((n, n), np.inf)
    for f, face in enumerate(mesh.faces):
        a, b, c = mesh.vertices[face].astype(np.float64)
        edges = np.broadcast_to(np.stack([b - a, c - a], 1), (n, n, 3, 2))
        t, u, w = np.moveaxis(np.linalg.solve(np.concatenate([-rays[..., None], edges], -1), o - a), -1, 0)
        hit = (u >= 0) & (w >= 0) & (u + w <= 1) & (t > 0) & (t < depth)
        depth[hit] = t[hit]  # directions have camera depth 1, so t is camera z
        color[hit] = (np.stack([1 - u - w, u, w], -1) @ mesh.colors[f])[hit]
    return color, depth


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, 3])
def test_equals_ray_tracing(s):
    mesh = soup(np.random.default_rng(3), 6)
    cameras = Cameras.orbit([20, 200], [10, -30], size=12)
    rgba, depth = render_mesh(mesh, cameras, AMBIENT, supersample=s)
    for v in range(2):
        color, z = ray_trace(mesh, cameras, v, s)
        n = cameras.width
        color = color.reshape(n, s, n, s, 3).swapaxes(1, 2).reshape(n, n, s * s, 3)
        z = z.reshape(n, s, n, s).swapaxes(1, 2).reshape(n, n, s * s)
        covered = np.isfinite(z)
        assert 0.1 < covered.mean() < 0.9
        assert np.array_equal(rgba[v, ..., 3], np.floor(255 * covered.mean(-1) + 0.5))
        for y, x in zip(*np.nonzero(covered.any(-1)), strict=True):
            samples = covered[y, x]
            assert np.abs(rgba[v, y, x, :3] - 255 * color[y, x, samples].mean(0)).max() <= 0.51
            assert depth[v, y, x] == pytest.approx(np.sort(z[y, x, samples])[samples.sum() // 2], abs=1e-5)
        assert not rgba[v][~covered.any(-1)].any() and not depth[v][~covered.any(-1)].any()


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_cube_from_every_side(tmp_path, suffix):
    write_cube(tmp_path / f"cube{suffix}")
    mesh = load_mesh(tmp_path / f"cube{suffix}")
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 1).max() < 1e-6
    mesh.vertices = mesh.vertices * np.float32(0.5)
    views = {"+z": (0, 0), "+x": (90, 0), "-z": (180, 0), "-x": (270, 0), "+y": (0, 80)}
    cameras = Cameras.orbit([a for a, _ in views.values()], [e for _, e in views.values()], size=17)
    rgba, depth = render_mesh(mesh, cameras, AMBIENT)
    for v, name in enumerate(views):
        assert rgba[v, 8, 8].tolist() == CUBE[name] + [255]
        assert rgba[v, 0, 0].tolist() == [0, 0, 0, 0]
    half = 0.5 / np.sqrt(3)
    assert depth[:4, 8, 8] == pytest.approx(1.5 - half, abs=1e-5)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_texture_is_upright_and_not_mirrored(tmp_path, suffix):
    picture = np.zeros((8, 8, 3), np.uint8)  # quarters as seen: red, green / blue, white
    picture[:4, :4, 0] = picture[:4, 4:, 1] = picture[4:, :4, 2] = 255
    picture[4:, 4:] = 255
    card = trimesh.Trimesh(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]],
        [[0, 1, 2], [0, 2, 3]],
        visual=trimesh.visual.TextureVisuals(
            uv=[[0, 0], [1, 0], [1, 1], [0, 1]],
            material=trimesh.visual.material.SimpleMaterial(Image.fromarray(picture), diffuse=[255] * 4),
        ),
        process=False,
    )
    (tmp_path / "card").mkdir()
    card.export(tmp_path / "card" / f"card{suffix}")
    mesh = load_mesh(tmp_path / "card" / f"card{suffix}")
    mesh.vertices = mesh.vertices * np.float32(0.5)
    rgba, _ = render_mesh(mesh, Cameras.orbit([0, 180], 0, size=32), AMBIENT)
    front = rgba[0, [12, 12, 20, 20], [12, 20, 12, 20], :3]
    assert front.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    back = rgba[1, [12, 12, 20, 20], [12, 20, 12, 20], :3]
    assert back.tolist() == [[0, 255, 0], [255, 0, 0], [255, 255, 255], [0, 0, 255]]


def write_card(path: Path, picture: Image.Image | None, factor=(255, 255, 255, 255), colors=None) -> None:
    """A triangle seen from the front, and what glTF multiplies: texture, factor and colours of vertices."""
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, baseColorFactor=factor)
    looks = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1]], material=material)
    if colors is not None:
        looks.vertex_attributes["color"] = np.array(colors, np.uint8)
    corners = [[-1, -1, 0], [1, -1, 0], [1, 1, 0]]
    trimesh.Trimesh(corners, [[0, 1, 2]], visual=looks, process=False).export(path)


def write_obj(path: Path, material: str, places: tuple[str, ...] = ("0 0", "1 0", "1 1")) -> None:
    lines = [f"mtllib {path.stem}.mtl", "usemtl a", "v 0 0 0", "v 1 0 0", "v 0 1 0"]
    path.write_text("\n".join([*lines, *(f"vt {p}" for p in places), "f 1/1 2/2 3/3", ""]))
    path.with_suffix(".mtl").write_text(f"newmtl a\n{material}\n")


def test_the_darkest_factors_are_not_white(tmp_path):
    """Of 255 levels 1 is the least above black; glTF's are linear, OBJ's are not."""
    write_card(tmp_path / "a.glb", None, (1, 0, 1, 255))
    dark = to_srgb(np.array([1, 0, 1]) / 255)
    assert load_mesh(tmp_path / "a.glb").colors[0, 0] == pytest.approx(dark)
    write_obj(tmp_path / "a.obj", "Kd 0.004 0.002 0")
    assert load_mesh(tmp_path / "a.obj").colors[0, 0] == pytest.approx([1 / 255, 1 / 255, 0])


def test_colours_of_vertices_are_multiplied_with_factor_and_texture(tmp_path):
    write_card(
        tmp_path / "a.glb",
        Image.new("RGB", (2, 2), (0, 128, 255)),
        (255, 51, 255, 255),
        [[255, 255, 0, 9], [0, 255, 51, 9], [255, 0, 255, 9]],
    )
    mesh = load_mesh(tmp_path / "a.glb")
    assert mesh.colors[0] == pytest.approx(to_srgb(np.array([[1, 0.2, 0], [0, 0.2, 0.2], [1, 0, 1]])))
    assert mesh.textures[0][0, 0].tolist() == [0, 128, 255]


def test_places_in_a_texture_that_are_no_numbers_are_its_corner(tmp_path):
    """The kernels look pixels up by them unchecked."""
    Image.new("RGB", (2, 2), (0, 200, 0)).save(tmp_path / "a.png")
    write_obj(tmp_path / "a.obj", "map_Kd a.png", ("nan -nan", "inf 1e300", "0.25 -inf"))
    mesh = load_mesh(tmp_path / "a.obj")
    assert mesh.uvs.tolist() == [[[0, 0], [0, 0], [0.25, 0]]]


@pytest.mark.parametrize("level", [0, 32768])
def test_grey_textures_of_16_bits(tmp_path, level):
    Image.fromarray(np.full((2, 2), level, np.uint16)).save(tmp_path / "a.png")
    write_obj(tmp_path / "a.obj", "map_Kd a.png")
    assert load_mesh(tmp_path / "a.obj").textures[0][0, 0].tolist() == [level >> 8] * 3
    Image.fromarray(np.full((2, 2), 99, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="its texture holds 16-bit values up to 99, all black"):
        load_mesh(tmp_path / "a.obj")


def test_extensions_that_change_what_is_drawn_are_refused(tmp_path):
    def write(*names: str) -> Path:
        change = partial(dict.update, extensionsRequired=[*names])
        trimesh.creation.box().export(tmp_path / "a.glb", tree_postprocessor=change)
        return tmp_path / "a.glb"

    assert len(load_mesh(write("KHR_materials_unlit", "EXT_texture_webp")).faces) == 12
    for name in ("KHR_draco_mesh_compression", "KHR_texture_basisu"):
        with pytest.raises(ValueError, match=f"^it needs {name}, which is not read: export it without$"):
            load_mesh(write("KHR_materials_unlit", name))


def test_texture_is_perspective_correct(tmp_path):
    picture = np.repeat(np.linspace(0, 255, 256).round().astype(np.uint8)[None, :, None], 2, 0).repeat(3, 2)
    vertices = np.array(
        [[-0.5, -0.5, 0.5], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5], [-0.5, 0.5, 0.5]], np.float32
    )
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    uv = np.array([[0.01, 0], [0.99, 0], [0.99, 1], [0.01, 1]], np.float32)[faces]
    mesh = Mesh(vertices, faces, corner_normals(vertices, faces), uv, np.ones((2, 3, 3), np.float32),
                np.zeros(2, np.int32), [picture], vertices, np.zeros((0, 0, 0, 3), np.uint8))  # fmt: skip
    cameras = Cameras.orbit([0], 0, size=31)
    rgba, depth = render_mesh(mesh, cameras, AMBIENT, supersample=1)
    x = np.arange(31) + 0.5
    z = depth[0, 15]
    inside = z > 0
    world_x = (
        (x - 15.5) / cameras.Ks[0, 0, 0].item() * z
    )  # of the point that each pixel of the middle row sees
    u = 0.01 + 0.98 * (world_x + 0.5)
    assert inside.sum() > 15
    assert np.abs(rgba[0, 15, inside, 0] - (u[inside] * 256 - 0.5)).max() < 1.0
    assert z[inside] == pytest.approx(1.5 + world_x[inside], abs=1e-5)


def test_light_is_fixed_in_the_world_and_faces_have_two_sides():
    vertices = np.array([[-0.5, 0, -0.5], [0.5, 0, -0.5], [0, 0, 0.5]], np.float32)
    for winding in ([0, 1, 2], [0, 2, 1]):
        faces = np.array([winding], np.int32)
        mesh = replace(soup(np.random.default_rng(0), 1), vertices=vertices, faces=faces, rest=vertices)
        mesh.normals, mesh.colors = corner_normals(vertices, faces), np.ones((1, 3, 3), np.float32)
        light = Light(0.25, np.array([[0.0, 2.0, 0.0]]), np.array([[0.5, 0.25, 0.0]]))
        rgba, _ = render_mesh(mesh, Cameras.orbit([0, 130, 0], [50, 20, -50], size=17), light)
        above, other, below = (view[view[..., 3] == 255][0, :3].tolist() for view in rgba)
        assert above == other == [191, 128, 64]  # 0.25 + intensity x cos 0
        assert below == [64, 64, 64]
        assert np.array_equal(
            rgba, render_mesh(mesh, Cameras.orbit([0, 130, 0], [50, 20, -50], 17), light)[0]
        )


def test_corner_normals():
    ball = trimesh.creation.icosphere(3)
    normals = corner_normals(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32))
    assert (normals * ball.vertices[ball.faces]).sum(-1).min() > np.cos(np.radians(2))
    box = trimesh.creation.box()
    normals = corner_normals(np.asarray(box.vertices, np.float32), np.asarray(box.faces, np.int32))
    assert np.allclose(normals, box.face_normals[:, None], atol=1e-6)


def test_color_matrix_applies_to_the_surface():
    mesh = soup(np.random.default_rng(1), 4)
    swap = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0.5]])
    cameras = Cameras.orbit([0], size=16)
    plain, _ = render_mesh(mesh, cameras, AMBIENT)
    other, _ = render_mesh(mesh, cameras, AMBIENT, swap)
    assert np.array_equal(other[..., [1, 0, 3]], plain[..., [0, 1, 3]])
    assert set(np.unique(other[plain[..., 3] > 0][:, 2])) == {128}


def test_real_scan():
    path = (
        Path(os.environ.get("DD3G_DATA", ""))
        / "objects"
        / "dev-eval"
        / "gso_crayola_crayons_24_count"
        / "model.glb"
    )
    if not path.is_file():
        pytest.skip("needs the objects: set DD3G_DATA to the data folder")
    mesh = load_mesh(path)
    mesh.vertices = mesh.vertices * np.float32(0.55)
    rgba, depth = render_mesh(mesh, Cameras.orbit([0, 90, 180, 270]))
    area = (rgba[..., 3] > 127).sum((1, 2))
    assert area[0] > 2 * area[1] and area[2] > 2 * area[3]  # a flat box, its broad side to the front
    box = rgba[0][rgba[0, ..., 3] == 255][:, :3].mean(0)
    assert box[0] > 100 and box[1] > 60 and box[2] < 70  # yellow and green
    assert abs(depth[depth > 0].mean() - 1.4) < 0.2
