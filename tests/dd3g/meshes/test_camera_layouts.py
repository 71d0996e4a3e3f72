"""Pictures with cameras, in the exact layouts of public data sets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.meshes.layouts import find_objects
from dd3g.meshes.views import read_views

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
    rgba, cameras = read_views(found, 32)
    same_cameras(cameras, rig)
    assert (rgba[:, 3] == (pictures[..., 3] > 0)).all()
    # The cameras that were read see the ball where the pictures show it.
    assert (ball(cameras)[..., 3] != pictures[..., 3]).sum() <= 4
    rgba, cameras = read_views(found, 16)
    assert rgba.shape == (4, 4, 16, 16) and cameras.Ks[0, 0, 2] == 8


def test_intrinsics_in_pixels_and_scaled_poses(tmp_path):
    rig = Cameras.orbit(AZIMUTHS, ELEVATIONS, 32, 2.0, 40.0)
    save(ball(rig), [tmp_path / "ball" / f"{k}.png" for k in range(4)])
    poses = blender_poses(rig)
    poses[:, :3, :3] *= 3.0  # Blender's empties scale what hangs on them
    frames = [{"file_path": f"{k}.png", "transform_matrix": p.tolist()} for k, p in enumerate(poses)]
    focal = float(rig.Ks[0, 0, 0]) * 4
    meta = {"fl_x": focal, "fl_y": focal, "cx": 64, "cy": 64, "w": 128, "h": 128, "frames": frames}
    (tmp_path / "ball" / "transforms.json").write_text(json.dumps(meta))
    same_cameras(read_views(find_objects(tmp_path)[0][0], 32)[1], rig)
    for change, words in (({"frames": []}, "it has no views"), ({"w": 0}, "division by zero"),
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
    _, cameras = read_views(found, 256)
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

    assert len(read()[0]) == 2
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
