"""Where matter is: one picture -> occupancy and colour along the rays of the camera that took it.

Occupancy is a residual on the inflated silhouette, so that a network that knows nothing already gives a
closed body that agrees with the picture. With `revolved` the network mixes in, pixel by pixel, the largest
body of revolution within that silhouette.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.nn.blocks import MultiViewTransformer, ResidualBlock
from dd3g.nn.checkpoint import build, load_weights, read_config, save_folder
from dd3g.pepd.config import OccupancyConfig
from dd3g.pepd.frustum import (
    LIMIT,
    OUTSIDE,
    TAN,
    frustum_places,
    inflate,
    pixel_rays,
    plucker,
    resize,
    revolved,
    sampled,
    slices,
    spread,
    template,
    upright_depth,
)

PEAK = 8.0  # logits that a place on a ray falls by for each that it is less likely than the likeliest


class OccupancyNet(nn.Module):
    """U-Net of PEPD's blocks whose output channels are slices of the camera's frustum."""

    # Made once: a tensor of the host in `forward` would stop a GPU at every step.
    rays: Tensor  # (2, S, S)
    depths: Tensor  # (D,)

    def __init__(self, config: OccupancyConfig) -> None:
        super().__init__()
        self.config = c = config
        half, quarter = c.widths
        emb = c.width
        self.camera = nn.Sequential(nn.Linear(4, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.stem = nn.Conv2d(4 + 1 + 2 + 6 + c.revolved, c.fine, 3, padding=1)
        self.down1 = down(c.fine, half)
        self.encode1 = ResidualBlock(half, emb, half)
        self.down2 = down(half, quarter)
        self.encode2 = nn.ModuleList(ResidualBlock(quarter, emb, quarter) for _ in range(2))
        self.down3 = down(quarter, c.width)
        self.place = nn.Parameter(torch.randn(1, c.width, c.size // 8, c.size // 8) * 0.02)
        self.residual = nn.ModuleList(ResidualBlock(c.width, emb, c.residual_hidden) for _ in range(c.depth))
        self.transformer = nn.ModuleList(MultiViewTransformer(c.width, c.heads) for _ in range(c.depth))
        self.up2 = up(c.width, quarter)
        self.decode2 = nn.ModuleList(ResidualBlock(quarter, emb, quarter) for _ in range(2))
        self.up1 = up(quarter, half)
        self.decode1 = nn.ModuleList(ResidualBlock(half, emb, half) for _ in range(2))
        self.up0 = up(half, c.bins)
        self.skip = nn.Conv2d(c.fine, c.bins, 1)
        self.occupancy = head(c.bins, c.bins)
        self.color = head(half, 4 * c.color_bins)
        self.round = head(half, 1) if c.revolved else None
        self.register_buffer("rays", pixel_rays(c.size), persistent=False)
        self.register_buffer("depths", slices(c.bins), persistent=False)

    def forward(self, image: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor]:
        """One pass.

        Args:
            image: (B, 4, S, S) straight RGBA in 0..1.
            elevation: (B,) of the camera, radians, up is positive.

        Returns:
            Occupancy logits (B, D, S, S) at the depths `slices` along the rays of the pixels, and the colour
            volume (B, 4, Dc, S/2, S/2): gate and residual, see `color_at`.
        """
        alpha = image[:, 3:]
        rgb = (2 * image[:, :3] - 1) * alpha
        half = inflate(alpha)
        grid = (self.rays / TAN).expand(len(image), -1, -1, -1)
        body = template(half, upright_depth(self.rays, elevation), self.depths)
        maps = [rgb, 2 * alpha - 1, 10 * half, grid, plucker(self.rays, elevation)]
        if self.round is not None:
            turned = revolved(alpha, self.rays, elevation, self.depths)
            maps.append(turned.amax(1, keepdim=True) / LIMIT)  # where such a body would be seen
        sin, cos = elevation.sin(), elevation.cos()
        emb = self.camera(torch.stack([sin, cos, 4 * sin * cos, 2 * sin * sin], 1))

        full = self.stem(torch.cat(maps, 1))
        at_half = self.encode1(self.down1(full), emb)
        at_quarter = self.down2(at_half)
        for block in self.encode2:
            at_quarter = block(at_quarter, emb)
        y = self.down3(at_quarter) + self.place
        for residual, transformer in zip(self.residual, self.transformer, strict=True):
            y = residual(y, emb)
            tokens = transformer(y.flatten(2).transpose(1, 2))
            y = tokens.transpose(1, 2).unflatten(2, y.shape[-2:])
        y = at_quarter + self.up2(y)
        for block in self.decode2:
            y = block(y, emb)
        y = at_half + self.up1(y)
        for block in self.decode1:
            y = block(y, emb)
        residue = self.occupancy(self.up0(y) + self.skip(full)).float()
        volume = self.color(y).float().unflatten(1, (4, self.config.color_bins))
        if self.round is not None:
            share = F.interpolate((self.round(y).float() - 2).sigmoid(), scale_factor=2, mode="bilinear")
            body = torch.lerp(body, turned, share)
        return residue + body, volume

    def shape(self, picture: Tensor, elevation: Tensor) -> Shape:
        """What the network finds in one picture and in its mirror image, averaged.

        Args:
            picture: (4, S, S) straight RGBA of any size, on the CPU.
            elevation: () of its camera, radians.
        """
        device = self.rays.device
        image = resize(picture[None].float(), self.config.size)
        both = torch.cat([image, image.flip(-1)]).to(device)
        logits, volume = (
            ((found[:1] + found[1:].flip(-1)) / 2).float().cpu()
            for found in self(both, elevation.to(device).expand(2))
        )
        return Shape(logits, volume, image, elevation[None])

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors; `dtype` is the stored type of the weights."""
        return save_folder(folder, self, {"kind": "shape", **asdict(self.config)}, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> OccupancyNet:
        """Load a network from its folder.

        Raises:
            UserError: when the folder does not hold one.
        """
        model = build(folder, read_config(folder, "shape"), OccupancyConfig, cls)
        load_weights(folder, model)
        return model.to(device).eval()


@dataclass(frozen=True)
class Shape:
    """Occupancy and colours along the rays of one picture's camera, which stands at azimuth 0."""

    logits: Tensor  # (1, D, S, S) of occupancy, at the slices of the frustum
    volume: Tensor  # (1, 4, Dc, S/2, S/2) of colour, see `color_at`
    image: Tensor  # (1, 4, S, S) straight RGBA
    elevation: Tensor  # (1,) radians

    @staticmethod
    def mean(found: Sequence[Shape]) -> Shape:
        """Of what networks that were trained apart find in one picture: they err in different places."""
        logits = torch.stack([s.logits for s in found]).mean(0)
        return replace(found[0], logits=logits, volume=torch.stack([s.volume for s in found]).mean(0))

    def occupancy(self, points: Tensor) -> Tensor:
        """Logits (P,) at world points (P, 3), `OUTSIDE` beyond the frustum."""
        places = frustum_places(points[None], self.elevation)
        grid = places[:, None, None]
        found = F.grid_sample(self.logits[:, None], grid, align_corners=False, padding_mode="border")
        return torch.where((places[0].abs() < 1).all(-1), found.view(-1), OUTSIDE)

    def shown(self, certainty: float) -> Shape:
        """The same with matter on each ray that shows the object, as the picture says.

        A network in doubt about the depth of a thin part spreads its probability along the ray until none of
        it is matter. Its likeliest place is raised to the logit `certainty`, less likely ones by less.
        """
        likeliest = self.logits.amax(1, keepdim=True)
        raised = self.logits.maximum(certainty - PEAK * (likeliest - self.logits))
        return replace(self, logits=torch.where(self.image[:, 3:] > 0.5, raised, self.logits))

    def colors(self, points: Tensor) -> Tensor:
        """Colours (P, 3), sRGB, at world points (P, 3)."""
        return color_at(self.volume, self.image, frustum_places(points[None], self.elevation))[0]


def down(channels: int, width: int) -> nn.Sequential:
    """Half the side."""
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, width, 1))


def up(channels: int, width: int) -> nn.Sequential:
    """Twice the side."""
    return nn.Sequential(nn.Conv2d(channels, 4 * width, 1), nn.PixelShuffle(2))


def head(channels: int, width: int) -> nn.Sequential:
    """From a map to an output that starts small."""
    last = nn.Conv2d(channels, width, 1)
    with torch.no_grad():
        last.weight.mul_(0.05)
        last.get_parameter("bias").zero_()
    return nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(), last)


def color_at(volume: Tensor, image: Tensor, places: Tensor) -> Tensor:
    """Colours of points of the frustum: a gate between their pixel and the picture's mean, and a residual.

    Args:
        volume: (B, 4, Dc, h, w) from the network.
        image: (B, 4, S, S) straight RGBA.
        places: (B, P, 3) from `frustum_places`.

    Returns:
        (B, P, 3) sRGB in 0..1.
    """
    alpha = image[:, 3:]
    seen = sampled(spread(image[:, :3], alpha), places[..., :2])  # (B, 3, P)
    mean = (image[:, :3] * alpha).sum((2, 3)) / alpha.sum((2, 3)).clamp(min=1.0)
    found = F.grid_sample(volume, places[:, None, None], align_corners=False, padding_mode="border")
    found = found[:, :, 0, 0]  # (B, 4, P)
    gate = (found[:, :1] + 2).sigmoid()
    start = (seen * gate + mean[..., None] * (1 - gate)).clamp(0.02, 0.98)
    return (start.logit() + found[:, 1:]).sigmoid().transpose(1, 2)
