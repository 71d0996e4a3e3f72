"""A turn around the object as a video or an animation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dd3g.cameras import ELEVATION, Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import replacing
from dd3g.rasterizer import rasterize

SUFFIXES = (".mp4", ".webp", ".gif")


@torch.no_grad()
def render_turntable(
    gaussians: Gaussians,
    frames: int = 48,
    size: int = 256,
    elevation: float = ELEVATION,
    background: float = 1.0,
) -> np.ndarray:
    """Pictures of one object from even azimuths, from the front on, the camera moving towards +x.

    Args:
        gaussians: one object (no batch dimensions), any device.
        frames: number of pictures F, >= 1.
        size: square picture size in pixels.
        elevation: degrees, up is positive.
        background: grey level in 0..1.

    Returns:
        (F, size, size, 3) uint8 sRGB.
    """
    cameras = Cameras.orbit([360.0 * i / frames for i in range(frames)], elevation, size)
    cameras = cameras.to(gaussians.means.device)
    # A few views at a time, because a rasteriser that draws them together also holds them together.
    parts = [cameras[i : i + 8] for i in range(0, frames, 8)]
    views = [rasterize(gaussians, part, background, antialiased=True).rgb for part in parts]
    pixels = torch.cat(views).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.movedim(1, -1).cpu().numpy()


def save_turntable(images: np.ndarray, path: str | Path, fps: float = 24) -> Path:
    """Write pictures as a video that loops.

    Args:
        images: (F, H, W, 3) uint8.
        path: ends in .mp4, .webp or .gif. An .mp4 needs the extra `video`; without it a .webp is written.
        fps: pictures a second.

    Returns:
        The file that was written; its suffix tells whether an .mp4 became a .webp.

    Raises:
        UserError: on another suffix, a place that can't be written to, or a video that ffmpeg can't finish.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"unknown video format {path.suffix!r} of {path}; use one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4":
        if _ffmpeg_is_here():
            with replacing(path) as partial:
                _write_mp4(images, partial, fps)
            return path
        path = path.with_suffix(".webp")
    first, *rest = [Image.fromarray(image) for image in images]
    with replacing(path) as partial:
        first.save(partial, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=85)
    return path


def _ffmpeg_is_here() -> bool:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def _write_mp4(images: np.ndarray, path: Path, fps: float) -> None:
    from imageio_ffmpeg import get_ffmpeg_exe

    _, height, width, _ = images.shape
    # H.264 halves the colour resolution, so both sides must be even.
    images = np.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{images.shape[2]}x{images.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    video = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18"]
    # Run here and not through imageio_ffmpeg's writer, which takes a failed ffmpeg for a finished one.
    done = subprocess.run(
        [get_ffmpeg_exe(), "-y", "-v", "error", *source, *video, str(path)],
        input=images.tobytes(),
        capture_output=True,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(said[-1] if said else f"ffmpeg ended with code {done.returncode}")
