"""EfficientNet-Lite0 (Tan and Le 2019) without its classifier, normalisations folded into convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Expansion, kernel, stride, channels and number of blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
TAPS = {2: 40, 4: 112, 6: 320}  # stages whose maps are given, with their channels
EPSILON = 1e-3  # of the published normalisations


class EfficientNetLite0(nn.Module):
    """Maps of a picture at an eighth, a sixteenth and a thirty-second of its side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, 2)
        stages, width = [], 32
        for expansion, kernel, stride, channels, count in STAGES:
            first = InvertedResidual(width, channels, expansion, kernel, stride)
            others = (InvertedResidual(channels, channels, expansion, kernel) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *others))
            width = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(B, 3, h, w) in -1..1 -> (B, 40, h/8, w/8), (B, 112, h/16, w/16) and (B, 320, h/32, w/32)."""
        x, maps = F.relu6(self.stem(picture)), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in TAPS:
                maps.append(x)
        return maps

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Take weights in the layout of the package efficientnet_lite_pytorch."""
        self.stem.fold(state, "_conv_stem", "_bn0")
        blocks = [m for m in self.stages.modules() if isinstance(m, InvertedResidual)]
        for number, block in enumerate(blocks):
            name = f"_blocks.{number}."
            if block.expand is not None:
                block.expand.fold(state, f"{name}_expand_conv", f"{name}_bn0")
            block.depthwise.fold(state, f"{name}_depthwise_conv", f"{name}_bn1")
            block.project.fold(state, f"{name}_project_conv", f"{name}_bn2")


class SameConv2d(nn.Conv2d):
    """With TensorFlow's padding `SAME`, whose larger half lies right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h/stride, w/stride), rounded up."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))

    @torch.no_grad()
    def fold(self, state: dict[str, Tensor], convolution: str, norm: str) -> None:
        """Take a published convolution without bias and the batch normalisation behind it."""
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        self.weight.copy_(state[f"{convolution}.weight"] * scale[:, None, None, None])
        self.get_parameter("bias").copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel alone, narrow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv2d(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv2d(wide, outputs, 1)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h/stride, w/stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.skips else y
