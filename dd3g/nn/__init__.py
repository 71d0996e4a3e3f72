"""Blocks that the teacher and the generator share."""

from dd3g.nn.blocks import (
    MultiViewTransformer,
    MultiViewTrunk,
    PictureEncoder,
    ResidualBlock,
    camera_code,
    correspond,
    correspond_rgba,
    fourier,
    timestep_embedding,
)

__all__ = [
    "MultiViewTransformer",
    "MultiViewTrunk",
    "PictureEncoder",
    "ResidualBlock",
    "camera_code",
    "correspond",
    "correspond_rgba",
    "fourier",
    "timestep_embedding",
]
