"""LGM: pictures and cameras in, Gaussians out; and its weights, safetensors in the published layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.errors import UserError, first_line
from dd3g.gaussians import Gaussians
from dd3g.hub_models import HUB_MODELS, check_digest, listed
from distill.lgm.network import BIG, Layout, MultiViewUNet
from distill.pictures import on_white

NAME = "lgm"  # of the published weights
SIZE = 256  # pixels per side of a view in training
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class LGM(nn.Module):
    """Four views and their cameras to Gaussians."""

    def __init__(self, layout: Layout = BIG) -> None:
        super().__init__()
        self.layout = layout
        self.unet = MultiViewUNet(layout)
        self.conv = nn.Conv2d(14, 14, 1)

    def forward(self, x: Tensor) -> Gaussians:
        """One pass over what `lgm_input` made.

        Args:
            x: (B, V, 9, S, S) views and rays; S a multiple of 2 ** (number of blocks down - 1).

        Returns:
            (B, V * s * s) Gaussians, view by view and row by row, s = S / `layout.shrink`, in the
            world of the rays.
        """
        views = x.shape[1]
        raw = self.conv(self.unet(x.flatten(0, 1), views)).unflatten(0, (-1, views))
        raw = raw.movedim(2, -1).flatten(1, 3)  # (B, N, 14)
        means, opacity, scales, quats, colors = raw.split([3, 1, 3, 4, 3], -1)
        return Gaussians(
            means=means.clamp(-1, 1),
            quats=F.normalize(quats, dim=-1),
            scales=0.1 * F.softplus(scales),
            opacities=opacity[..., 0].sigmoid(),
            colors=0.5 * colors.tanh() + 0.5,
        )

    @torch.no_grad()
    def reconstruct(self, views: Tensor, cameras: Cameras, size: int = SIZE) -> Gaussians:
        """Views of any elevation to Gaussians in the world of their cameras.

        Training turned every world so that the first view stood at azimuth and elevation 0; so does this, and
        turns the Gaussians back.

        Args:
            views: (B, V, 3, H, W) over white, or straight RGBA (B, V, 4, H, W), in 0..1.
            cameras: (V,) around the origin at radius 1.5, field of view 49.1 degrees.
            size: pixels per side that the network sees.

        Returns:
            (B, V * s * s) Gaussians.

        Raises:
            UserError: when the cameras are not such.
        """
        check_cameras(cameras)
        front = Cameras.orbit([0.0], 0.0).to(cameras.viewmats)
        back = cameras.camera_to_world[0] @ front.viewmats[0]  # the network's world to that of the views
        rig = replace(cameras, viewmats=cameras.viewmats @ back)
        return self(lgm_input(views, rig, size)).transformed(back[:3, :3])


def lgm_input(views: Tensor, cameras: Cameras, size: int = SIZE) -> Tensor:
    """What the network sees, (B, V, 9, size, size): normalised pictures over the Plücker rays of pixels.

    Views are (B, V, 3, H, W) over white, or straight RGBA (B, V, 4, H, W), in 0..1, of (V,) cameras.
    """
    views = on_white(views)
    B, V = views.shape[:2]
    small = F.interpolate(views.flatten(0, 1).contiguous(), (size, size), mode="bilinear")
    mean, std = (torch.tensor(c, dtype=views.dtype, device=views.device)[:, None, None] for c in (MEAN, STD))
    rays = cameras.resized(size).to(views).plucker()
    return torch.cat([((small - mean) / std).unflatten(0, (B, V)), rays.expand(B, V, 6, size, size)], 2)


def check_cameras(cameras: Cameras) -> None:
    """Refuse cameras that LGM was not trained with.

    Raises:
        UserError: other than four views around the object at azimuths 0, 90, 180, 270 and one elevation,
            radius 1.5 and field of view 49.1 degrees.
    """
    steps = torch.rad2deg(cameras.azimuths - cameras.azimuths[:1]) % 360
    heights = cameras.positions[:, 1]
    fovy = torch.rad2deg(2 * torch.atan(0.5 * cameras.height / cameras.Ks[:, 1, 1]))
    wanted = torch.arange(4) * 90.0
    fits = (
        len(cameras) == 4
        and bool(((steps.cpu() - wanted + 180) % 360 - 180).abs().max() < 1)
        and bool((heights - heights[0]).abs().max() < 0.02)
        and bool((cameras.positions.norm(dim=-1) - RADIUS).abs().max() < 0.02)
        and bool((fovy - FOVY).abs().max() < 0.5)
    )
    if not fits:
        raise UserError(
            "LGM reconstructs from four views at azimuths 0, 90, 180, 270 and one elevation, at radius "
            f"{RADIUS} under {FOVY} degrees; these are {len(cameras)} views at "
            f"{', '.join(f'{a:.0f}' for a in steps.tolist())}, radius {cameras.positions[0].norm():.2f}, "
            f"{fovy[0]:.1f} degrees: give a teacher with such a rig"
        )


def load_lgm(source: str | Path = NAME, device: str | torch.device = "cpu") -> LGM:
    """Read an LGM; the file's tensors determine its layout.

    Args:
        source: "lgm" or "lgm@revision" for the published weights, fetched where they are not on this machine;
            a safetensors file; or a folder with one.
        device: where it goes; weights are float32 there.

    Raises:
        UserError: when nothing usable is there, or what is there turns Gaussians the wrong way.
    """
    path = find_lgm(source)
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            with torch.device("meta"):  # 1.7 GB of random numbers are not drawn first
                model = LGM(Layout.of(shapes))
            own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
            wrong = sorted(n for n in own.keys() | shapes.keys() if own.get(n) != shapes.get(n))
            if wrong:
                raise ValueError(f"{len(wrong)} tensors differ, first {wrong[0]!r}")
            model.load_state_dict({name: file.get_tensor(name).float() for name in own}, assign=True)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{path}: no weights of LGM ({first_line(error)}); copy the file again, or give {NAME!r} for the "
            "published ones"
        ) from error
    return model.requires_grad_(False).to(device).eval()


def find_lgm(source: str | Path) -> Path:
    """The file that `load_lgm` reads."""
    path, published = Path(source), HUB_MODELS[NAME]
    asked = None if path.exists() else listed(str(source))
    if asked and asked.repo == published.repo:
        path = asked.fetch() / asked.files[0]
        if asked.sha256:  # what was fetched has it
            return path
    elif path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"{path} holds {len(files)} safetensors files: give the one with LGM's weights")
        path = files[0]
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"{path}: no safetensors file or folder with one; give {NAME!r} for the published weights"
        )
    if path.stat().st_size == published.size:
        try:
            check_digest(path, published.sha256[published.files[0]])
        except UserError as error:
            raise UserError(
                f"{path} is as large as {published.files[0]} and is another file: damaged, or "
                f"{published.repo}'s model_fp16.safetensors, whose rotations are wrong; give {NAME!r} to "
                "fetch the right one"
            ) from error
    return path
