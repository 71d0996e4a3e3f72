"""CLIP's vision transformer up to its last block but one, with the names of the published tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.nn.blocks import attention
from dd3g.nn.config import ClipVisionConfig

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipVision(nn.Module):
    """Pictures -> the tokens that ImageDream sees: the output of the last block but one."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embeddings = _Embeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.hidden_size)  # so spelled in the published files
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(ClipBlock(c) for _ in range(c.num_hidden_layers - 1))
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """(B, 3, S, S) in 0..1 -> (B, 1 + patches, D)."""
        size = (self.config.image_size, self.config.image_size)
        if rgb.shape[-2:] != size:
            rgb = F.interpolate(rgb, size, mode="bicubic", antialias=True).clamp(0, 1)
        x = self.pre_layrnorm(self.embeddings((rgb - self.mean) / self.std))
        layers: Any = self.encoder.layers
        for layer in layers:
            x = layer(x)
        return x


class _Embeddings(nn.Module):
    def __init__(self, c: ClipVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(c.hidden_size) * c.hidden_size**-0.5)
        self.patch_embedding = nn.Conv2d(3, c.hidden_size, c.patch_size, c.patch_size, bias=False)
        self.position_embedding = nn.Embedding((c.image_size // c.patch_size) ** 2 + 1, c.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class ClipBlock(nn.Module):
    """Attention and a feed-forward, each behind a norm and with a skip."""

    def __init__(self, c: ClipVisionConfig) -> None:
        super().__init__()
        self.heads = c.num_attention_heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(c.hidden_size), nn.LayerNorm(c.hidden_size)
        parts = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({part: nn.Linear(c.hidden_size, c.hidden_size) for part in parts})
        width, inner = c.hidden_size, c.intermediate_size
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        h = self.layer_norm1(x)
        q, k, v = (self.self_attn[part](h) for part in ("q_proj", "k_proj", "v_proj"))
        x = x + self.self_attn["out_proj"](attention(q, k, v, self.heads))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))))
