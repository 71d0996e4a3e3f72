"""Shapes of published networks, by the names of their config.json; a command shows them without torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MultiViewUNetConfig:
    """Shape of a multi-view U-Net, by the names of the published config.json."""

    model_channels: int = 320
    channel_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    num_res_blocks: int = 2
    attention_resolutions: list[int] = field(default_factory=lambda: [4, 2, 1])
    num_head_channels: int = 64
    transformer_depth: int = 1
    context_dim: int = 1024
    camera_dim: int = 16
    ip_dim: int = 0  # tokens of the picture that cross-attention sees; 0 is MVDream
    image_dim: int = 1280  # channels of the image encoder's tokens
    in_channels: int = 4
    out_channels: int = 4
    image_size: int = 32  # of the latents in training; nothing depends on it


@dataclass
class ClipVisionConfig:
    """Shape of the transformer, by the names of the published config.json; ViT-H/14."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
