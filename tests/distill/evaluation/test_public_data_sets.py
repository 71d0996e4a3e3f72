"""Every shipped protocol, end to end on real objects that are laid out as each public data set is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.evaluation import compare as tool
from distill.evaluation.protocol import Evaluation

sys.path.append(str(Path(__file__).parents[2] / "dd3g" / "meshes"))
from test_camera_layouts import blender_poses  # noqa: E402
from test_layouts import zip_folder  # noqa: E402

REAL = Path(os.environ.get("DD3G_DATA", "data")) / "objects" / "dev-eval"
OBJECTS = ("ycb_mug", "gso_dino_4")
UIDS = {name: f"{k:032x}" for k, name in enumerate(OBJECTS)}
# Layout -> mesh file of an object, its texture, and the axis that points up.
PLACES = {
    "gso": ("{n}/meshes/model.obj", "{n}/materials/textures/texture.png", "z"),
    "omniobject3d": ("raw_scans/toy/{n}/Scan/Scan.obj", "raw_scans/toy/{n}/Scan/Scan.jpg", "y"),
    "ycb": ("{n}/google_16k/textured.obj", "{n}/google_16k/texture_map.png", "z"),
    "toys4k": ("toys4k_obj_files/toy/{n}/mesh.obj", "toys4k_obj_files/toy/{n}/texture.png", "y"),
}
GLBS = {"abo": "3dmodels/original/X/{n}.glb", "objaverse": "glbs/000-001/{u}.glb", "meshes": "{n}/model.glb"}


def lay_out(name: str, root: Path) -> None:
    """Real objects as the data set has them: the same triangles and textures, other files and axes."""
    import trimesh

    for thing in OBJECTS:
        source = REAL / thing / "model.glb"
        words = {"n": thing, "u": UIDS[thing]}
        if name in GLBS:
            path = root / GLBS[name].format(**words)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
            continue
        home = root.parent / "unzipped" / thing if name == "gso-zip" else root
        mesh_name, picture, up = PLACES["gso" if name == "gso-zip" else name]
        words["n"] = "." if name == "gso-zip" else thing
        path, texture = home / mesh_name.format(**words), home / picture.format(**words)
        for part in (path, texture):
            part.parent.mkdir(parents=True, exist_ok=True)
        (mesh,) = trimesh.load_scene(source, process=False).dump()
        mesh.visual.material.baseColorTexture.convert("RGB").save(texture, quality=100, subsampling=0)
        vertices = np.asarray(mesh.vertices)
        vertices = vertices[:, [0, 2, 1]] * [1, -1, 1] if up == "z" else vertices
        lines = [f"mtllib {path.stem}.mtl", "usemtl m", *(f"v {x} {y} {z}" for x, y, z in vertices)]
        lines += [f"vt {u} {v}" for u, v in mesh.visual.uv]
        lines += ["f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in mesh.faces]
        path.write_text("\n".join(lines) + "\n")
        path.with_suffix(".mtl").write_text(f"newmtl m\nmap_Kd {texture.name}\n")
        if name == "gso-zip":
            root.mkdir(exist_ok=True)
            zip_folder(home, root / f"{thing}.zip")


def evaluate(data: Path, out: Path, protocol: str, *changes: str, **more) -> dict:
    words = ["supersample=1", *changes]
    rows = ["baseline=flat card", "baseline=true shape in our decoder"]
    asked = Evaluation(
        protocol, words, row=rows, baselines=False, page=False, sheet_objects=0, device="cpu", **more
    )
    return tool.evaluate(data, out, asked)


SMALL = ("sizes=[32]", "test_rings=[[20,2,45]]", "metrics=[]", "rig=false")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Scores of the plain meshes."""
    folder = tmp_path_factory.mktemp("plain")
    lay_out("meshes", folder / "data")
    return evaluate(folder / "data", folder / "out", "house", *SMALL)


needs_objects = pytest.mark.skipif(not REAL.is_dir(), reason="needs $DD3G_DATA/objects/dev-eval")


@needs_objects
@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLACES, "gso-zip", *GLBS])
def test_a_layout_changes_no_number(plain, tmp_path, name):
    """Renamed into each layout, the same objects give the same scores as the plain meshes."""
    lay_out(name, tmp_path / "data")
    there = evaluate(tmp_path / "data", tmp_path / "out", "house", *SMALL)
    ids = [o["id"] for o in there["objects"]]
    order = [ids.index(UIDS[n] if name == "objaverse" else n) for n in (o["id"] for o in plain["objects"])]
    assert len(ids) == 2 and there["data"]["failed"] == {}
    for row, columns in plain["per_object"].items():
        wanted, got = (np.array(c["psnr"]) for c in (columns, there["per_object"][row]))
        assert got[order] == pytest.approx(wanted, abs=0.05), row  # OBJ rounds, JPEG blurs


@needs_objects
@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["house", "grm", "spar3d", "syncdreamer", "splatter"])
def test_shipped_protocols_run_end_to_end(tmp_path, protocol):
    """At a few pixels; the true shape in our decoder must win, by a lot, whatever the cameras."""
    lay_out("gso", tmp_path / "gso")
    words = ["objects=[]"] if protocol == "syncdreamer" else []
    size = 64 if protocol == "spar3d" else 32  # it compares outlines, which drawing widens
    report = evaluate(tmp_path / "gso", tmp_path / "out", protocol, *words, size=size)
    card, true = (report["rows"][k] for k in ("flat card", "true shape in our decoder"))
    views = {"house": 16, "grm": 63, "spar3d": 16, "syncdreamer": 15, "splatter": 24}[protocol]
    assert report["data"]["novel_views"] == views and report["data"]["objects"] == 2
    assert true["novel"]["psnr"]["mean"] > card["novel"]["psnr"]["mean"] + 3
    assert true["novel"]["iou"]["mean"] > 0.75 and card["input"]["psnr"]["mean"] > 25
    if protocol in ("spar3d", "syncdreamer"):
        assert true["surface"]["chamfer"]["mean"] < 0.5 * card["surface"]["chamfer"]["mean"]
    if protocol == "spar3d":
        assert true["alignment"]["residual"]["mean"] < 0.1
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["protocol"]["hash"]


@needs_objects
@pytest.mark.slow
def test_pictures_with_cameras_give_what_their_mesh_gives(tmp_path):
    """OmniObject3D's render folders, drawn from the mesh by the protocol's own cameras."""
    import torch

    from distill.evaluation.protocol import load_protocol
    from distill.evaluation.targets import open_targets, plan

    lay_out("meshes", tmp_path / "plain")
    words = ["sizes=[32]", "test_rings=[[20,3,45]]", "metrics=[]", "rig=false", "supersample=1"]
    p = load_protocol("house", words)
    targets, _ = open_targets(tmp_path / "plain", p)
    from dd3g.cameras import Cameras

    for k, id in enumerate(targets.ids):
        azimuth, elevation, _, _ = plan(p, id)
        home = tmp_path / "omni" / "toy" / id / "render"
        (home / "images").mkdir(parents=True)
        cameras = Cameras.orbit(azimuth, elevation, 32, p.radius, p.fovy)
        frames = []
        for v, pose in enumerate(blender_poses(cameras)):
            pixels = (targets[k].rgba[v] * 255).round().byte().movedim(0, -1).numpy()
            Image.fromarray(pixels).save(home / "images" / f"r_{v}.png")
            frames.append({"file_path": f"r_{v}", "transform_matrix": pose.tolist()})
        angle = float(torch.deg2rad(torch.tensor(p.fovy)))
        (home / "transforms.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    plain = evaluate(tmp_path / "plain", tmp_path / "a", "house", *words)
    views = evaluate(tmp_path / "omni", tmp_path / "b", "house", *words)
    assert views["protocol"]["name"] == "house, own views" != plain["protocol"]["name"]
    assert views["protocol"]["hash"] != plain["protocol"]["hash"]
    for row, columns in plain["per_object"].items():
        assert views["per_object"][row]["psnr"] == pytest.approx(columns["psnr"], abs=0.05)
