"""Blocks that the teacher and the generator share."""

from dd3g.nn.blocks import MultiViewTransformer, ResidualBlock
from dd3g.nn.embeddings import camera_code, fourier, timestep_embedding
from dd3g.nn.trunk import MultiViewTrunk, PictureEncoder, correspond, correspond_rgba

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
