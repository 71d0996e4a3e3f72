"""Small files in the exact layouts of public data sets."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.meshes.layouts import NAMES, find_objects
from dd3g.meshes.rendering import Light, render_mesh
from dd3g.meshes.views import read_views

EVEN = Light(1.0, np.zeros((0, 3)), np.zeros((0, 3)))
# A slab that is 3 wide, 2 high (z), 1 deep, its front (-y) red and the rest blue: z up.
CORNERS = np.array([[x, y, z] for x in (-1.5, 1.5) for y in (-0.5, 0.5) for z in (-1, 1)])
FACES = [(1, 2, 4, 3, 1), (5, 7, 8, 6, 1), (3, 4, 8, 7, 1), (1, 3, 7, 5, 1), (2, 6, 8, 4, 1), (1, 5, 6, 2, 0)]


def write_obj(path: Path, picture: str, z_up: bool = True) -> None:
    """The slab as a textured OBJ with its MTL; the texture's left half is red, the right one blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = CORNERS if z_up else CORNERS[:, [0, 2, 1]] * [1, 1, -1]
    lines = [
        f"mtllib {path.stem}.mtl",
        *(f"v {x} {y} {z}" for x, y, z in corners),
        "vt 0.25 0.5",
        "vt 0.75 0.5",
    ]
    lines.append("usemtl material_0")
    for *corner, blue in FACES:
        for triangle in ((0, 1, 2), (0, 2, 3)):
            lines.append("f " + " ".join(f"{corner[k]}/{blue + 1}" for k in triangle))
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text(f"newmtl material_0\nKd 1 1 1\nmap_Kd {picture}\n")


def write_texture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = (255, 0, 0)
    pixels[:, 4:] = (0, 0, 255)
    Image.fromarray(pixels).save(
        path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {})
    )


def write_gso(folder: Path) -> None:
    write_obj(folder / "meshes" / "model.obj", "texture.png")
    write_texture(folder / "materials" / "textures" / "texture.png")
    (folder / "metadata.pbtxt").write_text('name: "slab"\n')


def zip_folder(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))


def looks_right(mesh) -> bool:
    """Three wide, two high, one deep, and red from the front alone."""
    width, height, depth = np.ptp(mesh.vertices, 0)
    assert width / depth == pytest.approx(3, abs=1e-4) and height / depth == pytest.approx(2, abs=1e-4)
    rgba, _ = render_mesh(mesh, Cameras.orbit([0.0, 180.0], 0.0, 16, radius=4.0), EVEN, supersample=1)
    wanted = np.array([[255, 0, 0, 255], [0, 0, 255, 255]])
    return bool((abs(rgba[:, 8, 8].astype(int) - wanted) <= 2).all())  # JPEG rounds


def write_layout(name: str, root: Path) -> None:
    """One slab called `slab` (or a uid) as the data set has it."""
    if name == "gso":
        write_gso(root / "slab")
    elif name == "gso-zip":
        write_gso(root.parent / "unzipped")
        root.mkdir()
        zip_folder(root.parent / "unzipped", root / "slab.zip")
    elif name == "omniobject3d":
        write_obj(root / "raw_scans" / "box" / "slab" / "Scan" / "Scan.obj", "Scan.jpg", z_up=False)
        write_texture(root / "raw_scans" / "box" / "slab" / "Scan" / "Scan.jpg")
    elif name == "ycb":
        write_obj(root / "slab" / "google_16k" / "textured.obj", "texture_map.png")
        write_texture(root / "slab" / "google_16k" / "texture_map.png")
    elif name == "toys4k":
        write_obj(root / "toys4k_obj_files" / "box" / "slab" / "mesh.obj", "texture.png", z_up=False)
        write_texture(root / "toys4k_obj_files" / "box" / "slab" / "texture.png")
    else:
        import trimesh

        write_obj(root.parent / "made" / "slab.obj", "texture.png", z_up=False)
        write_texture(root.parent / "made" / "texture.png")
        places = {"abo": "3dmodels/original/B/slab.glb", "meshes": "any/slab.glb"}
        path = root / places.get(name, f"hf-objaverse-v1/glbs/000-023/{UID}.glb")
        path.parent.mkdir(parents=True)
        trimesh.load_scene(root.parent / "made" / "slab.obj", process=False).export(path)


UID = "0123456789abcdef0123456789abcdef"
MESH_LAYOUTS = ("gso", "gso-zip", "omniobject3d", "ycb", "toys4k", "abo", "objaverse", "meshes")


@pytest.mark.parametrize("name", MESH_LAYOUTS)
def test_meshes_of_each_data_set_stand_upright_in_their_colours(tmp_path, name):
    write_layout(name, tmp_path / "data")
    (found,), missing = find_objects(tmp_path / "data")
    wanted = {"objaverse": UID, "meshes": "any/slab"}.get(name, "slab")
    assert (found.id, found.layout.name, found.layout.holds, missing) == (wanted, name, "mesh", {})
    assert looks_right(found.mesh())
    assert find_objects(tmp_path / "data", name)[0] == [found]
    deeper, *_ = [p for p in sorted((tmp_path / "data").iterdir()) if p.is_dir()] or [tmp_path / "data"]
    assert find_objects(deeper)[0][0].path == found.path  # a folder of the layout may be named itself


def test_what_is_missing_is_named(tmp_path):
    write_gso(tmp_path / "whole")
    write_gso(tmp_path / "bare")
    (tmp_path / "bare" / "materials" / "textures" / "texture.png").unlink()
    found, missing = find_objects(tmp_path)
    assert [o.id for o in found] == ["whole"]
    assert missing == {"bare": "Google Scanned Objects: it lacks materials/textures/texture.png"}
    with pytest.raises(UserError, match=r"lacks 2 of 3 objects of the list: sofa, bare \(Google Scanned"):
        find_objects(tmp_path, wanted=["whole", "sofa", "bare"])
    assert [o.id for o in find_objects(tmp_path, wanted=["whole"])[0]] == ["whole"]
    (tmp_path / "whole" / "meshes" / "model.obj").unlink()
    with pytest.raises(
        UserError, match="no complete object .2 are not.: (whole|bare), .* lacks (mat|meshes/mod)"
    ):
        find_objects(tmp_path)


@pytest.mark.parametrize("name", ["gso", "gso-zip", "omniobject3d", "ycb", "toys4k"])
def test_a_scan_without_its_colours_is_no_grey_one(tmp_path, name):
    """A material or a texture that an OBJ names and that is not there."""
    write_layout(name, tmp_path / "data")
    home = tmp_path / ("unzipped" if name == "gso-zip" else "data")
    (library,) = home.rglob("*.mtl")
    lost = library.name

    def mesh():
        if name == "gso-zip":
            zip_folder(home, tmp_path / "data" / "slab.zip")
        return find_objects(tmp_path / "data")[0][0].mesh()

    words = library.read_text()
    library.unlink()
    with pytest.raises(ValueError, match=f"names {lost}, which is not there"):
        mesh()
    library.write_text(words.replace("map_Kd ", "map_Kd -s 1 1 1 lost_"))
    with pytest.raises(ValueError, match="names lost_.*, which is not there"):
        mesh()
    library.write_text(words)
    assert looks_right(mesh())


def test_archives_that_are_cut_or_hold_something_else_are_named(tmp_path):
    write_gso(tmp_path / "unzipped")
    data = tmp_path / "data"
    data.mkdir()
    zip_folder(tmp_path / "unzipped", data / "whole.zip")
    (tmp_path / "unzipped/materials/textures/texture.png").unlink()
    zip_folder(tmp_path / "unzipped", data / "bare.zip")
    (data / "cut.zip").write_bytes((data / "whole.zip").read_bytes()[:400])
    found, missing = find_objects(data)
    assert [o.id for o in found] == ["whole"] and sorted(missing) == ["bare", "cut"]
    assert "lacks a whole archive" in missing["cut"] and "materials/textures/tex" in missing["bare"]
    (data / "whole.zip").unlink()
    with pytest.raises(UserError, match="no complete object .2 are not.: bare, .* lacks materials"):
        find_objects(data)
    write_layout("meshes", data)  # archives of another kind beside meshes
    assert [o.id for o in find_objects(data)[0]] == ["any/slab"]


def test_a_wrong_folder_is_told_what_would_be_right(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no objects: give a folder of meshes \(.glb .obj .npz"):
        find_objects(tmp_path)
    with pytest.raises(
        UserError, match="is not a folder of YCB: expected NAME/google_16k/textured.obj and texture_map"
    ):
        find_objects(tmp_path, "ycb")
    with pytest.raises(UserError, match="no layout 'gsox': choose auto or one of gso, gso-zip"):
        find_objects(tmp_path, "gsox")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_objects(tmp_path / "nowhere")
    assert len(NAMES) == 12
    for folder in ("a", "b"):
        write_gso(tmp_path / folder / "slab")
    with pytest.raises(UserError, match="two objects are called 'slab'"):
        find_objects(tmp_path)


def test_styles_come_from_a_manifest(tmp_path):
    write_layout("meshes", tmp_path / "data")
    (tmp_path / "data" / "manifest.csv").write_text("id,style\nslab,scan\n")
    assert find_objects(tmp_path / "data")[0][0].style == "scan"


# ---- pictures with cameras -------------------------------------------------------------------------------


def ball(cameras: Cameras, place=(0.3, 0.1, 0.2), radius=0.12) -> torch.Tensor:
    """(V, S, S, 4) uint8 of a green ball: rays that pass it (in our world)."""
    origins, directions = cameras.rays()
    d = torch.nn.functional.normalize(directions, dim=-1)
    o = origins.expand_as(d) - torch.tensor(place)
    b = (o * d).sum(-1)
    hit = b**2 - (o * o).sum(-1) + radius**2 > 0
    rgba = torch.zeros(*hit.shape, 4, dtype=torch.uint8)
    rgba[hit] = torch.tensor([0, 200, 0, 255], dtype=torch.uint8)
    return rgba


def save(pictures: torch.Tensor, paths: list[Path]) -> None:
    for picture, path in zip(pictures, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.numpy()).save(path)


Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # our world to Blender's


def blender_poses(cameras: Cameras) -> np.ndarray:
    """(V, 4, 4) Blender's camera to its world."""
    flip = np.diag([1.0, -1, -1, 1])
    return Z_UP @ np.linalg.inv(cameras.viewmats.double().numpy()) @ flip


def same_cameras(got: Cameras, wanted: Cameras) -> None:
    torch.testing.assert_close(got.viewmats, wanted.viewmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.Ks, wanted.Ks, atol=1e-3, rtol=1e-4)


AZIMUTHS, ELEVATIONS = [20.0, 100.0, 200.0, 290.0], [30.0, 0.0, -20.0, 60.0]


@pytest.mark.parametrize("style", ["nerf", "omniobject3d", "blender_renders_24_views", "zero123", "cameras"])
def test_cameras_of_each_layout_see_what_their_pictures_show(tmp_path, style):
    fovy = 49.134343 if style == "zero123" else 40.0
    rig = Cameras.orbit(AZIMUTHS, ELEVATIONS, 32, 2.0, fovy)
    pictures, folder = ball(rig), tmp_path / "data" / "ball"
    if style not in ("zero123", "cameras"):
        home = folder / {"omniobject3d": "render", "nerf": ""}.get(style, style)
        names = [f"r_{k}" if style == "omniobject3d" else f"./test/r_{k}" for k in range(4)]
        images = [home / ("images" if style == "omniobject3d" else "") / f"{name}.png" for name in names]
        frames = [
            {"file_path": name, "transform_matrix": pose.tolist()}
            for name, pose in zip(names, blender_poses(rig), strict=True)
        ]
        save(pictures, images)
        meta = {"camera_angle_x": math.radians(fovy), "frames": frames}
        (home / ("transforms.json" if style == "omniobject3d" else "transforms_test.json")).write_text(
            json.dumps(meta)
        )
    elif style == "zero123":
        save(pictures, [folder / f"{k:03d}.png" for k in range(4)])
        for k, pose in enumerate(blender_poses(rig)):
            np.save(folder / f"{k:03d}.npy", np.linalg.inv(pose)[:3])
    else:
        save(pictures, [folder / f"{k}.png" for k in range(4)])
        meta = {"fovy": fovy, "viewmats": rig.viewmats.tolist(), "pictures": [f"{k}.png" for k in range(4)]}
        (folder / "cameras.json").write_text(json.dumps(meta))
    (found,), _ = find_objects(tmp_path / "data")
    assert (found.id, found.layout.holds) == ("ball", "views")
    views = read_views(found, 32)
    same_cameras(views.cameras, rig)
    assert (views.rgba[:, 3] == (pictures[..., 3] > 0)).all()
    # The cameras that were read see the ball where the pictures show it.
    assert (ball(views.cameras)[..., 3] != pictures[..., 3]).sum() <= 4
    small = read_views(found, 16)
    assert small.rgba.shape == (4, 4, 16, 16) and small.cameras.Ks[0, 0, 2] == 8


def test_intrinsics_in_pixels_and_scaled_poses(tmp_path):
    rig = Cameras.orbit(AZIMUTHS, ELEVATIONS, 32, 2.0, 40.0)
    save(ball(rig), [tmp_path / "ball" / f"{k}.png" for k in range(4)])
    poses = blender_poses(rig)
    poses[:, :3, :3] *= 3.0  # Blender's empties scale what hangs on them
    frames = [{"file_path": f"{k}.png", "transform_matrix": p.tolist()} for k, p in enumerate(poses)]
    focal = float(rig.Ks[0, 0, 0]) * 4
    meta = {"fl_x": focal, "fl_y": focal, "cx": 64, "cy": 64, "w": 128, "h": 128, "frames": frames}
    (tmp_path / "ball" / "transforms.json").write_text(json.dumps(meta))
    same_cameras(read_views(find_objects(tmp_path)[0][0], 32).cameras, rig)
    for change, words in (({"frames": []}, "there is no view"), ({"w": 0}, "division by zero"),
                          ({"fl_x": math.nan}, "a field of view is between")):  # fmt: skip
        (tmp_path / "ball" / "transforms.json").write_text(json.dumps(meta | change))
        with pytest.raises(UserError, match=words):
            read_views(find_objects(tmp_path)[0][0], 32)


def test_rendered_gso_of_syncdreamer(tmp_path):
    """Blender's (cos a cos e, sin a cos e, sin e) at 1.5, 16 azimuths, elevation 30, lens 35 on 32."""
    a, e = 2 * np.pi * np.arange(16) / 16, math.radians(30)
    blender = 1.5 * np.stack([np.cos(a) * math.cos(e), np.sin(a) * math.cos(e), np.full(16, math.sin(e))], 1)
    ours = torch.from_numpy(blender @ Z_UP[:3, :3]).float()
    half = torch.zeros(16, 8, 8, 4, dtype=torch.uint8)
    half[:, :4] = 255
    save(half, [tmp_path / "GSO" / "chicken-gt" / f"{k:03d}.png" for k in range(16)])
    (found,), _ = find_objects(tmp_path / "GSO")
    assert (found.id, found.layout.name) == ("chicken", "syncdreamer")
    cameras = read_views(found, 256).cameras
    torch.testing.assert_close(cameras.positions, ours, atol=1e-5, rtol=0)
    assert float(cameras.Ks[0, 0, 0]) == pytest.approx(256 * 35 / 32, abs=1e-3)
    (tmp_path / "GSO" / "chicken-gt" / "007.png").unlink()
    with pytest.raises(UserError, match="chicken, GSO-30 as rendered by SyncDreamer: it lacks 007.png"):
        find_objects(tmp_path / "GSO")


def test_bad_pictures_and_cameras_are_told(tmp_path):
    rig = Cameras.orbit(AZIMUTHS[:2], ELEVATIONS[:2], 16, 2.0, 40.0)
    meta = {"fovy": 40.0, "viewmats": rig.viewmats.tolist(), "pictures": ["0.png", "1.png"]}
    home = tmp_path / "ball"
    save(ball(rig), [home / "0.png", home / "1.png"])

    def read(**changes):
        (home / "cameras.json").write_text(json.dumps(meta | changes))
        return read_views(find_objects(tmp_path)[0][0], 16)

    assert read().rgba.shape[0] == 2
    with pytest.raises(UserError, match="2.png"):
        read(pictures=["0.png", "2.png"])
    with pytest.raises(UserError, match="does not hold cameras as .*: 1 pictures, viewmats of shape"):
        read(pictures=["0.png"])
    Image.new("RGB", (16, 16)).save(home / "1.png")
    with pytest.raises(
        UserError, match="1.png has no transparent pixel: an evaluation needs the object's mask"
    ):
        read()
    Image.new("RGBA", (16, 12), (9, 9, 9, 128)).save(home / "1.png")
    with pytest.raises(UserError, match="1.png is 16 x 12: only square"):
        read()
    save(ball(rig)[1:], [home / "1.png"])
    mirrored, flat, inside, lost = (rig.viewmats.clone() for _ in range(4))
    mirrored[1, 0] *= -1
    flat[1, :3] = 0
    inside[1, :3, 3] = 0
    lost[1, 0, 3] = torch.nan
    for viewmats in (mirrored, flat, lost):
        with pytest.raises(
            UserError, match="does not hold cameras as .*: the matrix of view 1 is not a rotation"
        ):
            read(viewmats=viewmats.tolist())
    with pytest.raises(UserError, match="view 1 stands in the middle of the object"):
        read(viewmats=inside.tolist())
    for fovy in (0, -40, 200, math.nan):
        with pytest.raises(UserError, match="a field of view is between 0 and 168 degrees"):
            read(fovy=fovy)
    with pytest.raises(UserError, match="0 pictures"):
        read(pictures=[], viewmats=[])
    (home / "cameras.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold cameras"):
        read_views(find_objects(tmp_path)[0][0], 16)
