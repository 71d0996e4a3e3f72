"""From how far above a picture was taken, told from the picture alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.nn.checkpoint import check_options, find_weights, load_weights, read_config, save_folder
from dd3g.nn.efficientnet import TAPS, EfficientNetLite0
from dd3g.pepd.frustum import resize
from dd3g.picture.framing import AUTO, FILL

SHIPPED = "elevation"  # name of the weights
SIZE = 64  # pixels of the renders that it learns from; larger pictures are reduced to it
SEEN = 128  # pixels of what the network sees, in which the object has always the same size
LOWEST, HIGHEST = -10.0, 50.0  # degrees that it learns


class ElevationNet(nn.Module):
    """EfficientNet-Lite0, and a linear head on the means of its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = EfficientNetLite0()
        self.norm = nn.LayerNorm(sum(TAPS.values()))
        self.head = nn.Linear(sum(TAPS.values()), 1)

    def forward(self, seen: Tensor) -> Tensor:
        """What `framed` gives, (B, 3, s, s) -> degrees (B,)."""
        means = torch.cat([maps.mean((2, 3)) for maps in self.features(seen)], 1)
        return self.head(F.dropout(self.norm(means), 0.2, self.training))[:, 0] * HIGHEST

    @torch.no_grad()
    def estimate(self, picture: Tensor) -> float:
        """Degrees from which a picture (4, S, S), straight RGBA in 0..1, looks down on its object."""
        device = self.head.weight.device
        seen = framed(resize(picture[None].float().to(device), SIZE)[0])
        both = torch.stack([seen, seen.flip(-1)])
        return float(self(both).mean().clamp(LOWEST, HIGHEST))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors; `dtype` is the stored type of the weights."""
        return save_folder(folder, self, {"kind": "elevation"}, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path = SHIPPED, device: str | torch.device = "cpu") -> ElevationNet:
        """Load a network by the name of shipped weights, or from its folder.

        Raises:
            UserError: when the folder does not hold one.
        """
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):  # as in `build`
            model = cls()
        load_weights(checked_folder(name), model)
        return model.to(device).eval()


def checked_folder(name: str | Path) -> Path:
    """The folder of weights of an `ElevationNet`.

    Raises:
        UserError: when there is none, or it holds something else.
    """
    folder = find_weights(name)
    check_options(folder, read_config(folder, "elevation"), ())
    return folder


def framed(rgba: Tensor, fill: float = FILL, shift: Tensor | None = None, roll: float = 0.0) -> Tensor:
    """The object alone on grey, centred, (3, SEEN, SEEN) in -1..1.

    Args:
        rgba: (4, S, S) straight, in 0..1.
        fill: part of the frame that the longer side of the object takes.
        shift: (2,) from the object's middle to the frame's, parts of half the frame.
        roll: radians by which the picture is turned.
    """
    size = rgba.shape[-1]
    low, high = torch.zeros(2), torch.full((2,), float(size))
    for axis in range(2):
        if len(found := (rgba[3] > 0.1).any(axis).nonzero()):
            low[axis], high[axis] = found[0, 0], found[-1, 0] + 1
    half = (high - low).max() / size / fill
    centre = (low + high) / size - 1 + (0 if shift is None else half * shift)
    c, s = torch.tensor(roll).cos(), torch.tensor(roll).sin()
    theta = torch.cat([half * torch.stack([c, -s, s, c]).view(2, 2), centre[:, None]], 1).to(rgba)
    grid = F.affine_grid(theta[None], [1, 4, SEEN, SEEN], align_corners=False)
    premultiplied = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    x = F.grid_sample(premultiplied[None], grid, align_corners=False)[0]
    return 2 * x[:3] - x[3:]


@lru_cache
def _shipped() -> ElevationNet:
    return ElevationNet.from_pretrained()


def estimated_elevation(picture: Tensor) -> float:
    """Degrees, in whole ones, from which a picture (4, S, S) looks down, by the weights that ship."""
    return round(_shipped().estimate(picture.cpu()))


def degrees_of(elevation: float | str, picture: Tensor) -> float:
    """An elevation that `check_how` has passed, in degrees: those of the picture (4, S, S) for "auto"."""
    return estimated_elevation(picture) if elevation == AUTO else float(elevation)
