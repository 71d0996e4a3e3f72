from __future__ import annotations

import csv
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from stand_ins.forked import Forked
from stand_ins.tiny_objects import write_cube
from stand_ins.training_runs import files

from data_gen import render
from data_gen.meshes.objects import Item, Options, find_items, render_item, view_plan
from data_gen.meshes.variation import random_palette, reshaped
from data_gen.render import render_folder
from dd3g.errors import UserError
from dd3g.io.atomic import only_user
from dd3g.io.shards import Shards, write_shard
from dd3g.meshes.layouts import PLAIN, FoundObject
from dd3g.meshes.mesh import load_mesh, normalised
from distill.samples.renders import RenderedObjects

SMALL = Options(size=16, supersample=2, quads=1, free_quads=1, novel=2, per_shard=2)


def test_view_plan():
    plan = view_plan(Options(), np.random.default_rng(0), plain=True)
    assert len(plan["azimuth"]) == 5 * 4 + 8 and plan["novel"] == list(range(20, 28))
    assert plan["azimuth"][:4] == [0, 90, 180, 270] and plan["elevation"][:16] == [10.0] * 16
    for quad in plan["quads"]:
        steps = np.diff([plan["azimuth"][i] for i in quad]) % 360
        assert steps == pytest.approx([90, 90, 90], abs=1e-3)
        assert len({plan["elevation"][i] for i in quad}) == 1
    square = Options(quads=1, free_quads=0, square_quads=3)
    plan = view_plan(square, np.random.default_rng(1), plain=False, front=50.0)
    assert len(plan["quads"]) == 4 and plan["novel"] == list(range(16, 24))
    off = [(plan["azimuth"][v] - 50 + 45) % 90 - 45 for v in range(4, 16)]
    assert max(np.abs(off)) <= 10 and len(set(plan["elevation"][4:16])) == 3 and np.ptp(off) > 5
    plan = view_plan(Options(eval=True), np.random.default_rng(0), plain=True)
    assert plan == view_plan(Options(eval=True, seed=9), np.random.default_rng(5), plain=True)
    assert plan["azimuth"][:4] == [0, 90, 180, 270] and len(plan["novel"]) == 16
    novel = [plan["elevation"][i] for i in plan["novel"]]
    assert min(novel) == -8 and max(novel) == 40 and len(set(novel)) == 16


def test_the_front_of_a_turned_mesh_is_told(tmp_path):
    """A camera at that azimuth looks along the axis of the mesh that faced +z, whatever its tilt."""
    write_cube(tmp_path / "cube.glb")
    cube = load_mesh(tmp_path / "cube.glb")
    fronts = []
    for seed in range(8):
        turned, front = reshaped(cube, np.random.default_rng(seed))
        near, far = (turned.vertices[cube.vertices[:, 2] * side > 0].mean(0) for side in (1, -1))
        ahead, towards = (near - far)[[0, 2]], np.radians(front)
        assert ahead / np.hypot(*ahead) == pytest.approx([np.sin(towards), np.cos(towards)], abs=1e-5)
        fronts.append(front)
    assert np.ptp(fronts) > 180 and 0 <= min(fronts) <= max(fronts) <= 360


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
    items, missing = find_items(folder, replace(SMALL, variants=1, scan_variants=3), [], 0)
    assert missing == {}
    assert [i.key for i in items] == ["cube_0-0", "cube_0-1", "cube_0-2", "cube_1-0", "cube_2-0"]
    assert dict(items[0].meta) == {"style": "scan", "source": "me", "licence": "CC0", "cluster": "0"}
    assert len(find_items(folder, SMALL, ["lowpoly"], 0)[0]) == 4
    assert len(find_items(folder, SMALL, [], 1)[0]) == 2
    with pytest.raises(UserError, match="no meshes of style pbr"):
        find_items(folder, SMALL, ["pbr"], 0)
    write_cube(folder / "cube_0.glb")
    with pytest.raises(UserError, match="cube_0-0"):
        find_items(folder, SMALL, [], 0)


def test_a_public_data_set_is_drawn_upright_under_its_names(tmp_path):
    """Google's scans are z up; what lacks files is named, and pictures of objects are refused."""
    write_cube(tmp_path / "cube.glb")
    block = trimesh.load(tmp_path / "cube.glb", force="mesh")
    block.apply_scale([1, 1, 3])
    for name in ("tower", "bare"):
        (tmp_path / f"gso/{name}/meshes").mkdir(parents=True)
        block.export(tmp_path / f"gso/{name}/meshes/model.obj")
    (tmp_path / "gso/tower/materials/textures").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "gso/tower/materials/textures/texture.png")
    summary = render_folder(tmp_path / "gso", tmp_path / "out", replace(SMALL, eval=True))
    assert summary["items"] == 1 and list(summary["failed"]) == ["bare"]
    (item,) = RenderedObjects(tmp_path / "out")
    alpha = item.rgba[0, 3]
    assert item.meta["id"] == "tower" and (alpha.amax(1) > 0).sum() > 2 * (alpha.amax(0) > 0).sum()
    (tmp_path / "views/a").mkdir(parents=True)
    (tmp_path / "views/a/cameras.json").write_text("{}")
    with pytest.raises(UserError, match="pictures with cameras.json, nothing to draw: `dd3g evaluate` reads"):
        find_items(tmp_path / "views", SMALL, [], 0)


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
        assert item.meta["style"] == "scan" and item.meta == objects.meta(0) and item.meta["novel"] == [8, 9]
        assert item.meta["quads"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert objects[-1].meta["id"] == "cube.2" and objects[-1].meta["variant"] == 1
        with pytest.raises(IndexError):
            objects[6]
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


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(tmp_path, forked_workers):
    folder = make_folder(tmp_path)
    render_folder(folder, tmp_path / "one", SMALL)
    render_folder(folder, tmp_path / "two", SMALL, processes=2)
    for path in (tmp_path / "one").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_seed_and_variant_change_the_picture_but_not_the_plain_one(tmp_path):
    write_cube(tmp_path / "cube.glb")
    pictures = {}
    for seed in (0, 1):
        for variant in (0, 1):
            item = Item(FoundObject("cube", tmp_path / "cube.glb", PLAIN), variant, (("style", "x"),))
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


def test_one_colour_of_a_palette_in_five_is_grey():
    palette = random_palette(np.random.default_rng(0), 2000)
    assert palette.shape == (2000, 3) and palette.min() >= 0 and palette.max() <= 1
    assert (np.ptp(palette, axis=1) < 1e-6).mean() == pytest.approx(0.2, abs=0.03)


SMALL_FLAGS = "--size 16 --supersample 2 --quads 1 --free-quads 1 --novel 2 --processes 1".split()


def test_corrupt_mesh_is_reported_and_skipped(tmp_path, capsys):
    folder = make_folder(tmp_path)
    (folder / "broken.glb").write_bytes(b"glTF, or so it says")
    (folder / "empty.obj").write_text("v 0 0 0\n")
    (folder / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    np.savez(folder / "far.npz", V=np.zeros((3, 3), np.int16), F=np.array([[0, 1, 9]]))
    words = [str(folder), *SMALL_FLAGS, "--variants", "1", "--output", str(tmp_path / "out")]
    assert render.main(words) == 1
    said = capsys.readouterr()
    assert "4 failed" in said.out and "Traceback" not in said.err
    for name in ("broken-0", "empty-0", "far-0", "line-0"):
        assert f"skipped {name}: " in said.err
    shards = Shards(tmp_path / "out")
    assert [shards.key(i) for i in range(len(shards))] == ["cube_0-0", "cube_1-0", "cube_2-0"]
    assert render.main([*words, "--json"]) == 1
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert set(failed) == {"broken-0", "empty-0", "far-0", "line-0"}
    for name in ("link", os.fsdecode(b"\xff")):
        (folder / f"{name}.glb").symlink_to("nowhere")
    assert render.main([*words[:-1], str(tmp_path / "other")]) == 1
    said = capsys.readouterr()
    assert "3 items of 7 objects" in said.out and "6 failed" in said.out
    assert "link.glb cannot be opened: it is a link to nothing" in said.err
    assert "its name is not UTF-8: rename its file or folder" in said.err


def test_bad_folders_are_one_clear_line(tmp_path, capsys):
    assert render.main([str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "nowhere is not a folder" in error and not (tmp_path / "out").exists()
    folder = make_folder(tmp_path)
    (tmp_path / "file").write_text("")
    assert render.main([str(folder), "--output", str(tmp_path / "file")]) == 2
    assert "file (File exists): choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_kill_and_resume(tmp_path, capsys):
    folder = make_folder(tmp_path, 12)
    flags = [*SMALL_FLAGS, "--size", "64", "--novel", "20", "--per-shard", "1"]
    process = Forked("-m", "tools.render_objects", folder, *flags, "--output", tmp_path / "killed")
    while len(list((tmp_path / "killed").glob("*.tar"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list((tmp_path / "killed").glob("*.tar")))
    assert 2 <= done < 24
    assert render.main([str(folder), *flags, "--output", str(tmp_path / "killed"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["kept_shards"] == done and summary["items"] == 24
    render_folder(folder, tmp_path / "whole", replace(SMALL, size=64, novel=20, per_shard=1))
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_links_to_meshes_and_folders_are_followed(tmp_path):
    folder = make_folder(tmp_path / "real", 2)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/all").symlink_to(folder, target_is_directory=True)
    (tmp_path / "linked/one.glb").symlink_to(folder / "cube.0/model.glb")
    items, _ = find_items(tmp_path / "linked", SMALL, [], 0)
    assert sorted({i.found.id for i in items}) == ["all/cube.0", "all/cube.1", "one"]


def test_a_replaced_mesh_and_a_folder_in_use_are_noticed(tmp_path):
    folder, out = make_folder(tmp_path, 2), tmp_path / "out"
    options = replace(SMALL, variants=1, scan_variants=1)
    render_folder(folder, out, options, limit=1)
    before = files(out)
    write_cube(folder / "cube.0/model.glb", 7.0)
    with pytest.raises(UserError, match="started with other options .mesh files .*another --output$"):
        render_folder(folder, out, options, limit=1)
    write_cube(folder / "cube.0/model.glb", 1.0)
    with only_user(out), pytest.raises(UserError, match="out is in use by process"):
        render_folder(folder, out, options, limit=1)
    render_folder(folder, out, options, limit=1)
    assert files(out) == before
    # What made no shard binds to nothing.
    (out / "renders-00000.tar").rename(tmp_path / "kept.tar")
    render_folder(folder, out, replace(options, size=24), limit=1)
    (out / "renders-00000.tar").unlink()
    render_folder(folder, out, options, limit=1)
    assert files(out) == before
    for damage in (b"[]", b"{", b"\xff"):
        kept = (out / "options.json").read_bytes()
        (out / "options.json").write_bytes(damage)
        with pytest.raises(UserError, match="options.json is damaged: delete it and run the same command"):
            render_folder(folder, out, options, limit=1)
        (out / "options.json").write_bytes(kept)
    # A folder of an earlier version, which did not look at the meshes.
    stored = json.loads((out / "options.json").read_text())
    assert stored.pop("mesh files")
    (out / "options.json").write_text(json.dumps(stored))
    render_folder(folder, out, options, limit=1)
