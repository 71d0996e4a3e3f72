"""Pictures of an object that come with their cameras."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import FOVY, Cameras
from dd3g.errors import UserError
from dd3g.meshes.layouts import RING, FoundObject
from dd3g.picture import read_rgba, resize_rgba

# A world with z up to ours: x right, y up, what was y goes away from us.
_Z_UP = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
_FLIP = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))  # OpenGL's camera to OpenCV's


def read_views(found: FoundObject, size: int) -> tuple[Tensor, Cameras]:
    """Read an object whose layout holds views, and resize its pictures to `size` pixels a side.

    Returns:
        (V, 4, size, size) straight alpha in 0..1, and cameras (V,) in a world with y up.

    Raises:
        UserError: a missing or unreadable file, pictures that are not square or without alpha, or cameras
            that are not as the layout's files have them.
    """
    readers = {"nerf": _transforms, "cameras": _cameras, "zero123": _numbered, "syncdreamer": _ring}
    try:
        paths, viewmats, K = readers[found.layout.name](found.path)
        _check(viewmats, K)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, ArithmeticError) as error:
        raise UserError(
            f"{found.path} does not hold cameras as {found.layout.title} do: {error or type(error).__name__}"
        ) from error
    rgba = torch.stack([_picture(path, size) for path in paths])
    Ks = K * torch.tensor([size, size, 1.0], dtype=torch.float64)[:, None]
    return rgba, Cameras(viewmats.float(), Ks.float().repeat(len(paths), 1, 1), size, size)


def _check(viewmats: Tensor, K: Tensor) -> None:
    """Raise ValueError at cameras that see nothing, or nothing as it is: their numbers would mean nothing."""
    if not (K.isfinite().all() and 0.05 < float(K[0, 0]) < 1e3 and 0.05 < float(K[1, 1]) < 1e3):
        raise ValueError(
            "a field of view is between 0 and 168 degrees, in radians where it is camera_angle_x"
        )
    turns = viewmats[:, :3, :3]
    off = (turns @ turns.mT - torch.eye(3, dtype=turns.dtype)).abs().amax((1, 2))
    wrong = ~(off < 0.01) | ~(torch.linalg.det(turns) > 0) | ~viewmats[:, :3, 3].isfinite().all(1)
    if wrong.any():
        raise ValueError(f"the matrix of view {int(wrong.nonzero()[0])} is not a rotation and shift")
    near = viewmats[:, :3, 3].norm(dim=1) < 1e-3
    if near.any():
        raise ValueError(f"view {int(near.nonzero()[0])} stands in the middle of the object")


def _picture(path: Path, size: int) -> Tensor:
    image = read_rgba(path, str(path))
    if image.width != image.height:
        raise UserError(f"{path} is {image.width} x {image.height}: only square pictures can be compared")
    if image.getchannel("A").getextrema()[0] == 255:
        raise UserError(f"{path} has no transparent pixel: an evaluation needs the object's mask as alpha")
    rgba = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).float() / 255
    return resize_rgba(rgba, size)


def _pinhole(fov: float) -> Tensor:
    """(3, 3) intrinsics of a picture of side 1 from its field of view in radians."""
    focal = 0.5 / math.tan(fov / 2) if 0 < fov < math.pi else math.nan
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)


def _transforms(path: Path) -> tuple[list[Path], Tensor, Tensor]:
    """NeRF's file: cameras to a world with z up, OpenGL axes, in frames[].transform_matrix."""
    meta: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if not meta["frames"]:
        raise ValueError("it has no views")
    poses = torch.tensor([frame["transform_matrix"] for frame in meta["frames"]], dtype=torch.float64)
    poses = torch.cat([poses[:, :3, :3] / poses[:, :3, :3].norm(dim=1, keepdim=True), poses[:, :3, 3:]], 2)
    last = torch.tensor([[[0.0, 0, 0, 1]]], dtype=torch.float64).expand(len(poses), 1, 4)
    world = _Z_UP @ torch.cat([poses, last], 1)
    if "fl_x" in meta:
        width, height = float(meta["w"]), float(meta["h"])
        rows = [[meta["fl_x"] / width, 0, meta.get("cx", width / 2) / width],
                [0, meta.get("fl_y", meta["fl_x"]) / height, meta.get("cy", height / 2) / height],
                [0, 0, 1]]  # fmt: skip
        K = torch.tensor(rows, dtype=torch.float64)
    else:
        K = _pinhole(float(meta["camera_angle_x"]))
    paths = [_named(path.parent, frame["file_path"]) for frame in meta["frames"]]
    return paths, _FLIP @ torch.linalg.inv(world), K


def _named(folder: Path, name: str) -> Path:
    """The picture that a frame means: with or without suffix, beside the file or in its `images`."""
    last = Path(name).name  # some files name a path of the machine that rendered them
    for path in (folder / name, folder / f"{name}.png", folder / "images" / name, folder / "images" / last,
                 folder / "images" / f"{last}.png", folder / last, folder / f"{last}.png"):  # fmt: skip
        if path.is_file():
            return path
    return folder / "images" / f"{name}.png"


def _cameras(path: Path) -> tuple[list[Path], Tensor, Tensor]:
    """Ours: `pictures`, `viewmats` (V, 4, 4) world to OpenCV camera with y up, and `fovy` in degrees."""
    meta = json.loads(path.read_text("utf-8"))
    viewmats = torch.tensor(meta["viewmats"], dtype=torch.float64)
    if viewmats.shape != (len(meta["pictures"]), 4, 4):
        raise ValueError(f"{len(meta['pictures'])} pictures, viewmats of shape {tuple(viewmats.shape)}")
    return [path.parent / name for name in meta["pictures"]], viewmats, _pinhole(math.radians(meta["fovy"]))


def _numbered(path: Path) -> tuple[list[Path], Tensor, Tensor]:
    """Zero-1-to-3's: a .npy (3, 4) a picture, world with z up to Blender's camera; lens 35, sensor 32."""
    files = sorted(path.parent.glob("[0-9]*.npy"))
    matrices = torch.stack([torch.from_numpy(np.load(f, allow_pickle=False)).double()[:3] for f in files])
    last = torch.tensor([[[0.0, 0, 0, 1]]], dtype=torch.float64).expand(len(files), 1, 4)
    viewmats = _FLIP @ torch.cat([matrices, last], 1) @ torch.linalg.inv(_Z_UP)
    return [f.with_suffix(".png") for f in files], viewmats, _pinhole(2 * math.atan(16 / 35))


def _ring(path: Path) -> tuple[list[Path], Tensor, Tensor]:
    """SyncDreamer's: 16 azimuths from Blender's x axis on, elevation 30, distance 1.5; lens 35, sensor 32."""
    rig = Cameras.orbit([90 + 22.5 * k for k in range(16)], 30.0, radius=1.5, fovy=FOVY)
    return [path.parent / name for name in RING], rig.viewmats.double(), _pinhole(2 * math.atan(16 / 35))
