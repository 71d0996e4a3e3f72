from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import tools.render_objects
from data_gen.mesh import Mesh, corner_normals, load_mesh, normalised
from data_gen.mesh_render import Light, render_mesh
from data_gen.objects import Item, Options, find_items, render_item, view_plan
from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard
from distill.renders import RenderedObjects
from tools.render_objects import render_folder

ROOT = Path(__file__).parents[1]
AMBIENT = Light(1.0, np.zeros((1, 3)) + [0, 1, 0], np.zeros((1, 3)))
SMALL = Options(size=16, supersample=2, quads=1, free_quads=1, novel=2, per_shard=2)


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


CUBE = {"+z": [255, 0, 0], "+x": [0, 255, 0], "-z": [0, 0, 255], "-x": [255, 255, 0], "+y": [255, 0, 255]}


def write_cube(path: Path, scale: float = 1.0) -> None:
    """A cube whose five visible faces have known colours; separate vertices, vertex colours."""
    box = trimesh.creation.box((scale, scale, scale))
    vertices, colors = [], []
    for face, normal in zip(box.faces, box.face_normals, strict=True):
        axis = int(np.abs(normal).argmax())
        name = ("+" if normal[axis] > 0 else "-") + "xyz"[axis]
        vertices.append(box.vertices[face])
        colors += [CUBE.get(name, [0, 255, 255]) + [255]] * 3
    mesh = trimesh.Trimesh(
        np.concatenate(vertices), np.arange(36).reshape(-1, 3), vertex_colors=colors, process=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)


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


def test_view_plan():
    plan = view_plan(Options(), np.random.default_rng(0), plain=True)
    assert len(plan["azimuth"]) == 5 * 4 + 8 and plan["novel"] == list(range(20, 28))
    assert plan["azimuth"][:4] == [0, 90, 180, 270] and plan["elevation"][:16] == [10.0] * 16
    for quad in plan["quads"]:
        steps = np.diff([plan["azimuth"][i] for i in quad]) % 360
        assert steps == pytest.approx([90, 90, 90], abs=1e-3)
        assert len({plan["elevation"][i] for i in quad}) == 1
    plan = view_plan(Options(eval=True), np.random.default_rng(0), plain=True)
    assert plan == view_plan(Options(eval=True, seed=9), np.random.default_rng(5), plain=True)
    assert plan["azimuth"][:4] == [0, 90, 180, 270] and len(plan["novel"]) == 16
    novel = [plan["elevation"][i] for i in plan["novel"]]
    assert min(novel) == -8 and max(novel) == 40 and len(set(novel)) == 16


def make_folder(folder: Path, count: int = 3) -> Path:
    for i in range(count):
        write_cube(folder / "things" / f"cube.{i}" / "model.glb", 1 + i)
    rows = [{"id": f"cube.{i}", "style": "scan" if i == 0 else "lowpoly", "source": "me", "licence": "CC0",
             "cluster": str(i)} for i in range(count)]  # fmt: skip
    with open(folder / "manifest.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder / "things"


def test_items_take_their_style_from_the_manifest(tmp_path):
    folder = make_folder(tmp_path)
    items = find_items(folder, replace(SMALL, variants=1, scan_variants=3), [], 0)
    assert [i.key for i in items] == ["cube_0-0", "cube_0-1", "cube_0-2", "cube_1-0", "cube_2-0"]
    assert dict(items[0].meta) == {"style": "scan", "source": "me", "licence": "CC0", "cluster": "0"}
    assert len(find_items(folder, SMALL, ["lowpoly"], 0)) == 4
    assert len(find_items(folder, SMALL, [], 1)) == 2
    with pytest.raises(UserError, match="no meshes of style pbr"):
        find_items(folder, SMALL, ["pbr"], 0)
    write_cube(folder / "cube_0.glb")
    with pytest.raises(UserError, match="cube_0-0"):
        find_items(folder, SMALL, [], 0)


def test_shards_can_be_read_back(tmp_path):
    summary = render_folder(make_folder(tmp_path), tmp_path / "out", SMALL)
    assert summary["items"] == 6 and summary["views"] == 6 * 10 and not summary["failed"]
    for objects in (RenderedObjects(tmp_path / "out"), RenderedObjects([tmp_path / "out"], cached=True)):
        assert len(objects) == 6
        item = objects[0]
        assert item.rgba.shape == (10, 4, 16, 16) and item.rgba.dtype == torch.uint8
        assert item.depth.shape == (10, 16, 16) and item.depth.dtype == torch.float32
        assert item.cameras.batch_shape == (10,) and item.cameras.width == 16
        assert torch.equal((item.depth > 0), (item.rgba[:, 3] > 0))
        assert 0.95 < item.depth[item.depth > 0].min() and item.depth.max() < 2.05
        azimuths = torch.rad2deg(item.cameras.azimuths) % 360
        assert torch.allclose(azimuths[1:4], torch.tensor([90.0, 180, 270]), atol=1e-2)
        assert item.meta["style"] == "scan" and item.meta == objects.meta(0) and item.novel == [8, 9]
        assert item.quads == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert objects[-1].meta["id"] == "cube.2" and objects[-1].meta["variant"] == 1
        with pytest.raises(IndexError):
            objects[6]
    assert objects.cached_megabytes == pytest.approx(6 * 10 * 256 * 6 / 1e6)
    two = RenderedObjects([tmp_path / "out", tmp_path / "out"])
    assert len(two) == 12 and two[7].meta == objects[1].meta


def test_damaged_sample_is_named(tmp_path):
    write_shard(tmp_path / "renders-00000.tar", [{"__key__": "thing-0", "json": "{}", "rgba.png": b"no"}])
    with pytest.raises(UserError, match="thing-0 in shard .*renders-00000.tar .*delete the shard"):
        RenderedObjects(tmp_path)[0]


def test_resume_makes_the_same_set(tmp_path):
    folder = make_folder(tmp_path)
    render_folder(folder, tmp_path / "out", SMALL)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.tar")}
    assert len(before) == 3
    (tmp_path / "out" / "renders-00001.tar").unlink()
    summary = render_folder(folder, tmp_path / "out", SMALL)
    assert summary["shards"] == 1 and summary["kept_shards"] == 2 and summary["items"] == 6
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.tar")} == before
    with pytest.raises(UserError, match="seed 0 -> 1"):
        render_folder(folder, tmp_path / "out", replace(SMALL, seed=1))
    # One more mesh would move items from shard to shard.
    write_cube(folder / "cube.00.glb")
    with pytest.raises(UserError, match=r"objects 6 items \w+ -> 8 items"):
        render_folder(folder, tmp_path / "out", SMALL)
    (folder / "cube.00.glb").rename(folder / "things.glb")
    (folder / "cube.2" / "model.glb").unlink()
    with pytest.raises(UserError, match=r"objects 6 items \w+ -> 6 items"):
        render_folder(folder, tmp_path / "out", SMALL)
    write_cube(folder / "cube.2" / "model.glb", 3)
    (folder / "things.glb").unlink()
    path = tmp_path / "out" / "renders-00002.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="renders-00002.tar is damaged .*delete it"):
        render_folder(folder, tmp_path / "out", SMALL)


def test_two_processes_make_the_same_bytes(tmp_path):
    folder = make_folder(tmp_path)
    render_folder(folder, tmp_path / "one", SMALL)
    render_folder(folder, tmp_path / "two", SMALL, processes=2)
    for path in (tmp_path / "one").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_in_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tools.render_objects, "_start_worker", killed)
    with pytest.raises(UserError, match="was killed, perhaps for lack of memory: run the same command again"):
        render_folder(make_folder(tmp_path), tmp_path / "out", SMALL, processes=2)


def test_seed_and_variant_change_the_picture_but_not_the_plain_one(tmp_path):
    write_cube(tmp_path / "cube.glb")
    pictures = {}
    for seed in (0, 1):
        for variant in (0, 1):
            item = Item(str(tmp_path / "cube.glb"), "cube", variant, (("style", "x"),))
            pictures[seed, variant] = render_item(item, replace(SMALL, seed=seed, eval=True))["rgba.png"]
    assert pictures[0, 0] == pictures[1, 0]
    assert len(set(pictures.values())) == 3


def test_untextured_shape_gets_a_texture(tmp_path):
    box = trimesh.creation.icosphere(2)
    vertices = (normalised(box.vertices) * 32767).round().astype(np.int16)
    for i in range(12):
        np.savez(tmp_path / f"ball{i}.npz", V=vertices, F=box.faces.astype(np.uint16))
    summary = render_folder(tmp_path, tmp_path / "out", replace(SMALL, variants=1, per_shard=20))
    assert summary["items"] == 12
    objects = RenderedObjects(tmp_path / "out")
    assert {objects.meta(i)["style"] for i in range(12)} == {"shape"}
    assert len({objects.meta(i)["texture"] for i in range(12)}) >= 3
    means = torch.stack([o.rgba[0, :3, 8, 8].float() for o in objects])
    assert means.std(0).min() > 20


def run(*arguments: str | Path, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.render_objects", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


SMALL_FLAGS = "--size 16 --supersample 2 --quads 1 --free-quads 1 --novel 2 --processes 1".split()


def test_corrupt_mesh_is_reported_and_skipped(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "broken.glb").write_bytes(b"glTF, or so it says")
    (folder / "empty.obj").write_text("v 0 0 0\n")
    np.savez(folder / "far.npz", V=np.zeros((3, 3), np.int16), F=np.array([[0, 1, 9]]))
    flags = [*SMALL_FLAGS, "--variants", "1", "--output", tmp_path / "out"]
    first = run(folder, *flags)
    assert first.returncode == 1, first.stderr
    assert "3 failed" in first.stdout and "Traceback" not in first.stderr
    for name in ("broken-0", "empty-0", "far-0"):
        assert f"skipped {name}: " in first.stderr
    shards = Shards(tmp_path / "out")
    assert [shards.key(i) for i in range(len(shards))] == ["cube_0-0", "cube_1-0", "cube_2-0"]
    again = run(folder, *flags, "--json")
    assert again.returncode == 1
    assert set(json.loads(again.stdout)["failed"]) == {"broken-0", "empty-0", "far-0"}


def test_bad_folders_are_one_clear_line(tmp_path):
    result = run(tmp_path / "nowhere", "--output", tmp_path / "out")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "holds no meshes" in result.stderr and not (tmp_path / "out").exists()
    folder = make_folder(tmp_path)
    (tmp_path / "file").write_text("")
    result = run(folder, "--output", tmp_path / "file")
    assert result.returncode == 2 and "error: cannot write in" in result.stderr


def test_kill_and_resume(tmp_path):
    folder = make_folder(tmp_path, 12)
    flags = [*SMALL_FLAGS, "--size", "64", "--novel", "20", "--per-shard", "1"]
    command = [sys.executable, "-m", "tools.render_objects", str(folder), *flags, "--output"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "killed").glob("*.tar"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list((tmp_path / "killed").glob("*.tar")))
    assert 2 <= done < 24
    result = run(folder, *flags, "--output", tmp_path / "killed", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["kept_shards"] == done and summary["items"] == 24
    render_folder(folder, tmp_path / "whole", replace(SMALL, size=64, novel=20, per_shard=1))
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


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
