"""A perceptual distance from the VGG16 trunk of a public edge detector."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.errors import UserError, needed
from dd3g.models import require_model

BLOCKS = (2, 2, 3, 3, 3)  # convolutions of VGG16's five blocks
MEAN_BGR = (104.007, 116.669, 122.679)


class VggDistance(nn.Module):
    """Squared distance of unit-length VGG16 features, averaged over pixels and summed over five depths.

    LPIPS' form (Zhang et al. 2018, eq. 1) without its learnt channel weights, on the weights of HED, which
    were fine-tuned for edges: a training loss, and not comparable with LPIPS figures. Without a path it takes
    the fetched `hed_vgg16`.

    Raises:
        UserError: when the file or h5py is missing, or the file holds something else.
    """

    mean: Tensor  # (3, 1, 1) BGR

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        path = require_model("hed_vgg16") if path is None else Path(path)
        with needed("the perceptual loss reads an .h5 file: install h5py, or dd3g[train]"):
            import h5py
        self.blocks = nn.ModuleList()
        try:
            with h5py.File(path, "r") as file:
                for b, count in enumerate(BLOCKS, 1):
                    names = ["conv2d", *(f"conv2d_{i}" for i in range(1, count))]
                    layers = [file[f"block{b}/layers/{name}/vars"] for name in names]
                    self.blocks.append(nn.ModuleList(_convolution(v["0"][()], v["1"][()]) for v in layers))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged or holds no VGG16 of HED ({error}): delete it and get it again with "
                "`dd3g models fetch hed_vgg16`"
            ) from error
        self.register_buffer("mean", torch.tensor(MEAN_BGR)[:, None, None])
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """RGB (N, 3, H, W) in 0..1 -> activations (N, C_b, H / 2^b, W / 2^b), b = 0 ... 4; H, W >= 16."""
        x = 255 * images.flip(1) - self.mean
        found = []
        for b, block in enumerate(self.blocks):
            x = F.max_pool2d(x, 2) if b else x
            for convolution in block:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            found.append(x)
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """RGB (N, 3, H, W) in 0..1, twice -> (N,) distances."""
        total = torch.zeros(len(a), device=a.device)
        for features in self.features(torch.cat([a, b])):
            x, y = F.normalize(features, dim=1, eps=1e-3).chunk(2)
            total = total + (x - y).square().sum(1).mean((1, 2))
        return total


def _convolution(kernel: object, bias: object) -> nn.Conv2d:
    """3x3 convolution from HWIO and O arrays."""
    weight = torch.as_tensor(kernel).permute(3, 2, 0, 1).contiguous()
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=1)
    layer.load_state_dict({"weight": weight, "bias": torch.as_tensor(bias)})
    return layer
