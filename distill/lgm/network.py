"""LGM's U-Net with the names that its published files have, and the layouts that it is published in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 16
HALF = math.sqrt(0.5)  # keeps the variance of the sum of a branch and its shortcut


@dataclass(frozen=True)
class Layout:
    """Shape of an LGM; the three published ones are big, small and tiny."""

    down: tuple[int, ...]  # channels of each block on the way down; all but the last halve the map
    up: tuple[int, ...]  # channels of each block on the way up; all but the last double the map
    down_attention: tuple[bool, ...]  # whether the layers of these blocks look at all views; one a block
    up_attention: tuple[bool, ...]  # likewise
    down_layers: int = 2  # layers of a block on the way down, each of which is a skip connection
    mid_attention: bool = True  # whether the middle looks at all views

    def __post_init__(self) -> None:
        if not 0 < len(self.up) <= len(self.down):
            raise ValueError(f"{len(self.down)} blocks down and {len(self.up)} up do not make a U-Net")

    @property
    def shrink(self) -> int:
        """Side of a view by that of its map of Gaussians."""
        return 2 ** (len(self.down) - len(self.up))

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout that a file's tensors have, by their names and shapes.

        Raises:
            ValueError: when they are not those of an LGM.
        """

        def blocks(side: str) -> list[int]:
            pattern = re.compile(rf"unet\.{side}_blocks\.(\d+)\.nets\.0\.conv1\.weight")
            return sorted(int(m[1]) for name in shapes if (m := pattern.fullmatch(name)))

        def channels(side: str) -> tuple[int, ...]:
            return tuple(shapes[f"unet.{side}_blocks.{i}.nets.0.conv1.weight"][0] for i in blocks(side))

        def attention(side: str) -> tuple[bool, ...]:
            return tuple(f"unet.{side}_blocks.{i}.attns.0.norm.weight" in shapes for i in blocks(side))

        layers = sum(bool(re.fullmatch(r"unet\.down_blocks\.0\.nets\.\d+\.norm1\.weight", n)) for n in shapes)
        middle = "unet.mid_block.attns.0.norm.weight" in shapes
        return Layout(
            channels("down"), channels("up"), attention("down"), attention("up"), max(layers, 1), middle
        )


BIG = Layout(
    down=(64, 128, 256, 512, 1024, 1024),
    up=(1024, 1024, 512, 256, 128),
    down_attention=(False, False, False, True, True, True),
    up_attention=(True, True, True, False, False),
)
SMALL = replace(BIG, up=BIG.up[:4], up_attention=BIG.up_attention[:4])
TINY = Layout(
    down=(32, 64, 128, 256, 512),
    up=(512, 256, 128),
    down_attention=(False, False, False, False, True),
    up_attention=(True, False, False),
)


class Resnet(nn.Module):
    """Two convolutions and a shortcut, their sum scaled back to the variance of one."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.shortcut: nn.Module = nn.Conv2d(inside, outside, 1)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, h, w) -> (N, outside, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (h + self.shortcut(x)) * HALF


class SelfAttention(nn.Module):
    """Every token over all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, d)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViewAttention(nn.Module):
    """Attention over the pixels of all views of an object jointly."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, dim)
        self.attn = SelfAttention(dim)

    def forward(self, x: Tensor, views: int) -> Tensor:
        """(B * views, D, h, w) -> the same shape."""
        tokens = self.norm(x).unflatten(0, (-1, views)).movedim(2, -1)  # (B, V, h, w, D)
        h = self.attn(tokens.flatten(1, 3)).unflatten(1, tokens.shape[1:4])
        # Contiguous: on other strides torch's group norm sums naively, which costs three digits on CPUs.
        return (h.movedim(-1, 2).flatten(0, 1).contiguous() + x) * HALF


class Block(nn.Module):
    """Layers of one resolution: a resnet each, behind the first ones attention; then the map's size changes.

    Each layer takes its own number of channels `inside`; `attended` of them have attention behind them.
    """

    def __init__(self, inside: list[int], outside: int, attended: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Resnet(c, outside) for c in inside)
        self.attns = nn.ModuleList(ViewAttention(outside) for _ in range(attended))
        self.downsample: nn.Module | None = None  # halves the map
        self.upsample: nn.Module | None = None  # follows its doubling

    def forward(self, x: Tensor, views: int, skips: list[Tensor] | None = None) -> list[Tensor]:
        """Maps behind each layer and the change of size; on the way up each layer takes the last skip."""
        found = []
        for i, net in enumerate(self.nets):
            x = net(x if skips is None else torch.cat([x, skips.pop()], 1))
            x = self.attns[i](x, views) if i < len(self.attns) else x
            found.append(x)
        if self.downsample is not None:
            found.append(self.downsample(x))
        if self.upsample is not None:
            found.append(self.upsample(F.interpolate(x, scale_factor=2.0)))
        return found


class MultiViewUNet(nn.Module):
    """(B * views, 9, S, S) -> (B * views, 14, S / shrink, S / shrink)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        layers, channels = layout.down_layers, layout.down[0]
        self.conv_in = nn.Conv2d(9, channels, 3, padding=1)
        skips = [channels]
        self.down_blocks = nn.ModuleList()
        last = len(layout.down) - 1
        for i, (outside, attention) in enumerate(zip(layout.down, layout.down_attention, strict=True)):
            block = Block([channels] + [outside] * (layers - 1), outside, layers * attention)
            if i != last:
                block.downsample = nn.Conv2d(outside, outside, 3, stride=2, padding=1)
            self.down_blocks.append(block)
            skips += [outside] * (layers + (i != last))
            channels = outside
        self.mid_block = Block([channels] * 2, channels, int(layout.mid_attention))
        self.up_blocks = nn.ModuleList()
        last = len(layout.up) - 1
        for i, (outside, attention) in enumerate(zip(layout.up, layout.up_attention, strict=True)):
            before = [channels] + [outside] * layers
            inside = [c + skips.pop() for c in before]
            block = Block(inside, outside, len(inside) * attention)
            if i != last:
                block.upsample = nn.Conv2d(outside, outside, 3, padding=1)
            self.up_blocks.append(block)
            channels = outside
        self.norm_out = nn.GroupNorm(32, channels)
        self.conv_out = nn.Conv2d(channels, 14, 3, padding=1)

    def forward(self, x: Tensor, views: int) -> Tensor:
        """Views of one object stand side by side in the batch."""
        skips = [self.conv_in(x.contiguous())]
        for block in self.down_blocks:
            skips += block(skips[-1], views)
        x = self.mid_block(skips[-1], views)[-1]
        for block in self.up_blocks:
            x = block(x, views, skips)[-1]
        return self.conv_out(F.silu(self.norm_out(x)))
