"""LGM: networks of the published kinds at few channels, their cameras, and the rows of their files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.io import ply
from dd3g.io.splats import MIN_OPACITY
from dd3g.picture import load_image
from distill.lgm import LGM, Layout, lgm_input
from distill.pictures import on_white
from tools.goldens.golden import PART, Compared, Golden, recorded

# rmse / rms. The goldens were computed in float64.
PASS = {torch.float32: 2e-4, torch.float64: 5e-6}
FRAMING = 0.1  # the authors' frame leaves out the object's last row and column, and resamples otherwise


def check(golden: Golden) -> Iterator[Compared]:
    """Compare every array of the file."""
    views = golden.about.get("views") or (len(golden["input"]) if "input" in golden else 4)
    azimuths = [360.0 * v / views for v in range(views)]
    # The authors roll the diffusion's frames: the second one shows the front.
    drawn = np.stack([golden.picture(f"view{(v + 1) % views}", 256, 256) for v in range(views)])
    pictures = torch.from_numpy(drawn).movedim(-1, 1)[None].contiguous()
    for place, (name, found) in enumerate(sorted(golden.about["shapes"].items())):
        size = golden.about["configs"][name]["input_size"]
        x = lgm_input(pictures, Cameras.orbit(azimuths, 0.0, size), size)
        if place == 0:
            yield from check_inputs(golden, x, azimuths)
        shapes = {k: tuple(s) for k, s in found.items()}
        model = LGM(Layout.of(shapes))
        model.load_state_dict(golden.state(shapes))
        for dtype in (golden.dtype, torch.float64):
            yield from check_network(golden, name, model.to(dtype).eval(), x.to(dtype), parts=place == 0)
    yield from check_cameras(golden)
    yield from check_files(golden)


def check_inputs(golden: Golden, x: Tensor, azimuths: list[float]) -> Iterator[Compared]:
    """What the first network sees, and rays of another elevation."""
    inputs = {"input": x[0], "rays": x[0, :, 3:]}
    for array, elevation in golden.named("rays.elevation"):
        inputs[array] = Cameras.orbit(azimuths, -float(elevation), x.shape[-1]).plucker()
    for array, found in inputs.items():
        if array in golden:
            yield golden.compare(array, thinned(found, golden[array]), PART)


def check_network(golden: Golden, name: str, model: LGM, x: Tensor, parts: bool) -> Iterator[Compared]:
    """One network, and the inner maps that the file holds of it; single modules are the first network's."""
    after = "" if x.dtype == golden.dtype else f" in {str(x.dtype).removeprefix('torch.')}"
    tolerance = PASS.get(x.dtype, PASS[torch.float32])
    inner = recorded(model, (key for _, key in golden.named(f"{name}.") if key != "gaussians"))
    gaussians = model(x)
    for key, outputs in inner.items():
        array = f"{name}.{key}"
        yield golden.compare(array, thinned(outputs[-1], golden[array]), tolerance, after)
    if (array := f"{name}.gaussians") in golden:
        found = rows(gaussians[0])
        found = found[:: -(-len(found) // len(golden[array]))]
        yield golden.compare(array, found, tolerance, after)
    if not parts:
        return
    for kind, draw in (("resnet", "lgm.h"), ("attn", "lgm.m")):
        for array, key in golden.named(f"part.{kind}."):
            part, count = model.unet.get_submodule(key), len(golden[array])
            channels = len(part.get_parameter("norm1.weight" if kind == "resnet" else "norm.weight"))
            h = golden.normal(draw, (count, channels, *golden[array].shape[2:])).to(x.dtype)
            answer = part(h) if kind == "resnet" else part(h, count)
            yield golden.compare(array, answer, PART, after)


def check_cameras(golden: Golden) -> Iterator[Compared]:
    """Poses and rays; the authors count elevation downwards, and their cameras look along -z."""
    for array, key in golden.named("orbit_camera."):
        elevation, azimuth, radius = (
            float(v)
            for v in re.fullmatch(r"(.+?)\.(.+?)\.(.+)", key).groups()  # type: ignore[union-attr]
        )
        pose = Cameras.orbit([azimuth], -elevation, radius=radius).camera_to_world[0].clone()
        pose[:3, 1:3] *= -1
        yield golden.compare(array, pose, PART)
    for array, key in golden.named("get_rays."):
        elevation, azimuth = (float(v) for v in key.split(".")[:2])
        origin, directions = Cameras.orbit([azimuth], -elevation, 256).rays()
        if key.endswith("origin"):
            yield golden.compare(array, origin[0, 0, 0], PART)
        else:
            unit = torch.nn.functional.normalize(directions[0], dim=-1).movedim(-1, 0)
            yield golden.compare(array, thinned(unit, golden[array].transpose(2, 0, 1)).movedim(0, -1), PART)


def check_files(golden: Golden) -> Iterator[Compared]:
    """Rows of a .ply file, what reading them gives, and how the picture is framed."""
    if "ply.gaussians" in golden:
        found = gaussians_of(torch.from_numpy(golden["ply.gaussians"]))
        yield golden.compare("ply.gaussians", rows(ply.from_raw(ply.to_raw(found))), PART)
        if "ply.rows" in golden:
            yield golden.compare("ply.rows", ply.to_raw(found.pruned(MIN_OPACITY)), PART)
    if "ply.loaded" in golden and "ply.rows" in golden:
        yield golden.compare("ply.loaded", rows(ply.from_raw(golden["ply.rows"])), PART)
    if "preprocess.rgba" in golden and "preprocess.recentred" in golden:
        rgba, wanted = golden["preprocess.rgba"], golden["preprocess.recentred"]
        drawn = (255 * golden.picture("lgm.picture", *rgba.shape[:2])).round()
        yield golden.compare("preprocess.rgba", np.concatenate([drawn, rgba[..., 3:]], -1), PART)
        framed = on_white(load_image(rgba, len(wanted)).rgba)
        white = on_white(torch.from_numpy(wanted).movedim(-1, 0) / 255)
        yield Compared("preprocess.recentred", framed.numpy(), white.numpy(), FRAMING)
        if "preprocess.white" in golden:
            small = thinned(framed, golden["preprocess.white"].transpose(2, 0, 1)).movedim(0, -1)
            yield golden.compare("preprocess.white", small, FRAMING)


def thinned(found: Tensor, wanted: np.ndarray) -> Tensor:
    """The channels and pixels (..., C, H, W) that a file keeps: the first ones, and evenly spaced ones."""
    channels, step = wanted.shape[-3], -(-found.shape[-1] // wanted.shape[-1])
    return found[..., :channels, ::step, ::step]


def rows(g: Gaussians) -> Tensor:
    """(N, 14) in the authors' order."""
    return torch.cat([g.means, g.opacities[..., None], g.scales, g.quats, g.colors], -1)


def gaussians_of(found: Tensor) -> Gaussians:
    """The inverse of `rows`."""
    means, opacity, scales, quats, colors = found.split([3, 1, 3, 4, 3], -1)
    return Gaussians(means, quats, scales, opacity[:, 0], colors)
