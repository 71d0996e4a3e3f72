"""ST-LPIPS, a shift-tolerant perceptual distance; not LPIPS, and not comparable with its numbers."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dd3g.errors import UserError, first_line


class STLPIPS:
    """Anti-aliased AlexNet features with learnt weights (Ghildyal and Liu 2022, "Shift-tolerant LPIPS").

    Args:
        path: the file `stlpips_alex` of `dd3g.models`.

    Raises:
        UserError: when the file does not hold these weights.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.convs = [
                (state[f"net.slice{name}.weight"], state[f"net.slice{name}.bias"])
                for name in ("1.0", "2.5", "3.9", "4.11", "5.13")
            ]
            self.shift, self.scale = state["scaling_layer.shift"], state["scaling_layer.scale"]
            self.lins = [state[f"lin{i}.model.1.weight"] for i in range(5)]
        except Exception as error:  # torch.load fails in many ways on a foreign file
            raise UserError(
                f"{path} does not hold the ST-LPIPS weights ({first_line(error)}): delete it and run "
                "`dd3g models fetch stlpips_alex`"
            ) from error

    @torch.inference_mode()
    def __call__(self, a: Tensor | list[Tensor], b: Tensor | list[Tensor]) -> Tensor:
        """(V,) distance of RGB pictures (V, 3, H, W) in 0..1, or of their `features`; 0 for equal ones."""
        fa, fb = (self.features(x) if isinstance(x, Tensor) else x for x in (a, b))
        layers = zip(fa, fb, self.lins, strict=True)
        return torch.stack([F.conv2d((x - y).square(), lin).mean((1, 2, 3)) for x, y, lin in layers]).sum(0)

    @torch.inference_mode()
    def features(self, rgb: Tensor) -> list[Tensor]:
        """Five layers of unit-length channels, for pictures that are compared more than once."""
        x = (2 * rgb - 1 - self.shift) / self.scale
        (w1, b1), (w2, b2), (w3, b3), (w4, b4), (w5, b5) = self.convs
        one = _blur(F.conv2d(x, w1, b1, padding=2)).relu()
        two = F.conv2d(_blur(F.max_pool2d(one, 3, 1)), w2, b2, padding=2).relu()
        three = F.conv2d(_blur(F.max_pool2d(two, 3, 1)), w3, b3, padding=1).relu()
        four = F.conv2d(three, w4, b4, padding=1).relu()
        five = F.conv2d(four, w5, b5, padding=1).relu()
        return [F.normalize(f, dim=1, eps=1e-10) for f in (one, two, three, four, five)]


def _blur(x: Tensor) -> Tensor:
    """Binomial 3 x 3 low-pass, then every second pixel."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
