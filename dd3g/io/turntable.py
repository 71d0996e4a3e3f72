"""A turn around the object as a video, an animation or pictures."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dd3g.cameras import ELEVATION, RADIUS, Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import replacing, replacing_all
from dd3g.rasterizer import rasterize

VIDEOS = {  # arguments of ffmpeg, for pictures without and with alpha
    ".mp4": ("-c:v libx264 -pix_fmt yuv420p -crf 18", ""),
    ".webm": (
        "-c:v libvpx-vp9 -pix_fmt yuv420p -crf 24 -b:v 0",
        "-c:v libvpx-vp9 -pix_fmt yuva420p -crf 24 -b:v 0",
    ),
}
SUFFIXES = (*VIDEOS, ".webp", ".gif", ".png")
AT_ONCE = 1 << 22  # pixels that are drawn together


@torch.no_grad()
def render_turntable(
    gaussians: Gaussians,
    frames: int = 48,
    size: int = 256,
    elevation: float = ELEVATION,
    background: float | Sequence[float] | None = 1.0,
    antialiased: bool = True,
    distance: float = RADIUS,
) -> np.ndarray:
    """Pictures of one object from even azimuths, from the front on, the camera moving towards +x.

    Args:
        gaussians: one object (no batch dimensions), any device.
        frames: number of pictures F, >= 1.
        size: square picture size in pixels.
        elevation: degrees, up is positive.
        background: grey level or sRGB in 0..1; None is transparent.
        antialiased: as in `rasterize`.
        distance: of the camera to the origin, world units.

    Returns:
        (F, size, size, 3) uint8 sRGB, or straight RGBA where the background is transparent.

    Raises:
        UserError: when a number is out of range.
    """
    behind = torch.as_tensor(0.0 if background is None else background).float()
    if frames < 1 or size < 1 or not distance > 0 or behind.shape not in ((), (3,)):
        raise UserError(
            "a turntable needs 1 or more frames and pixels, a distance above 0, and a background of one grey "
            f"level or three sRGB values; got {frames}, {size}, {distance:g} and {background}"
        )
    cameras = Cameras.orbit([360.0 * i / frames for i in range(frames)], elevation, size, distance)
    far = max(cameras.far, distance + float(gaussians.means.norm(dim=-1).max()) if len(gaussians) else 0)
    cameras = replace(cameras, near=min(cameras.near, 0.1 * distance), far=far)
    cameras = cameras.to(gaussians.means.device)
    behind = behind.to(gaussians.means.device)
    pixels = np.empty((frames, size, size, 4 if background is None else 3), np.uint8)
    # A few views at a time, because a rasteriser that draws them together also holds them together.
    step = min(8, max(1, AT_ONCE // size**2))
    for i in range(0, frames, step):
        view = rasterize(gaussians, cameras[i : i + step], behind, antialiased=antialiased)
        rgb = view.rgb
        if background is None:
            rgb = torch.cat([rgb / view.alpha.clamp(min=1e-6), view.alpha], 1)
        pixels[i : i + step] = rgb.clamp(0, 1).mul(255).round().to(torch.uint8).movedim(1, -1).cpu()
    return pixels


def save_turntable(images: np.ndarray, path: str | Path, fps: float = 24) -> Path:
    """Write pictures as a video or an animation that loops.

    Args:
        images: (F, H, W, 3) uint8, or straight RGBA (not for .mp4).
        path: ends in .mp4, .webm, .webp or .gif. The first two need the extra `video`; without it a .webp is
            written.
        fps: pictures a second.

    Returns:
        The file that was written; its suffix shows whether a video became a .webp.

    Raises:
        UserError: on another suffix, a place that can't be written to, or a video that ffmpeg can't finish.
    """
    path = Path(path)
    check_movie(path, images.shape[-1] == 4)
    if path.suffix.lower() in VIDEOS:
        if _ffmpeg_is_here():
            with replacing(path) as partial:
                _write_video(images, partial, fps)
            return path
        path = path.with_suffix(".webp")
    if path.suffix.lower() == ".gif" and images.shape[-1] == 4:
        images = images.copy()
        images[..., 3] = np.where(images[..., 3] < 128, 0, 255)  # a .gif knows no more
    first, rest = Image.fromarray(images[0]), (Image.fromarray(image) for image in images[1:])
    with replacing(path) as partial:
        options: dict[str, Any] = {"quality": 85} if path.suffix.lower() == ".webp" else {"disposal": 2}
        first.save(partial, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, **options)
    return path


def save_frames(images: np.ndarray, path: str | Path) -> list[Path]:
    """Write each picture to a .png: NAME.png where there is one, else NAME-000.png, NAME-001.png and so on.

    Args:
        images: (F, H, W, 3) uint8, or straight RGBA.
        path: NAME.png.

    Raises:
        UserError: when they can't be written.
    """
    path = Path(path)
    digits = max(3, len(str(len(images) - 1)))
    paths = [path.with_name(f"{path.stem}-{i:0{digits}d}{path.suffix}") for i in range(len(images))]
    paths = [path] if len(images) == 1 else paths
    with replacing_all(path.parent) as folder:
        for image, target in zip(images, paths, strict=True):
            Image.fromarray(image).save(folder / target.name)
    return paths


def check_movie(path: Path, transparent: bool) -> None:
    """Refuse a name that is none of `SUFFIXES`, or cannot hold what is asked for.

    Raises:
        UserError: names what would be right.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"unknown video format {path.suffix!r} of {path}: use one of {', '.join(SUFFIXES)}")
    if transparent and suffix in VIDEOS and not VIDEOS[suffix][1]:
        raise UserError(f"{path}: {suffix} has no transparency, use one of .webm, .webp, .gif, .png")


def _ffmpeg_is_here() -> bool:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def _write_video(images: np.ndarray, path: Path, fps: float) -> None:
    from imageio_ffmpeg import get_ffmpeg_exe

    _, height, width, _ = images.shape
    # Both codecs halve the colour resolution, so both sides must be even.
    if height % 2 or width % 2:
        images = np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{images.shape[2]}x{images.shape[1]}"
    alpha = images.shape[3] == 4
    pixels = "rgba" if alpha else "rgb24"
    source = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-r", str(fps), "-i", "-"]
    video = VIDEOS[path.suffix.lower()][alpha].split()
    video += ["-fflags", "+bitexact"]  # else a .webm bears a number of its own each time
    # Run here and not through imageio_ffmpeg's writer, which takes a failed ffmpeg for a finished one.
    done = subprocess.run(
        [get_ffmpeg_exe(), "-y", "-v", "error", *source, *video, str(path)],
        input=np.ascontiguousarray(images).data,
        capture_output=True,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"ffmpeg ended with code {done.returncode}")
