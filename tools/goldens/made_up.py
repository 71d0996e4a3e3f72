"""Made-up weights, inputs and pictures: each tensor is one draw, seeded by its own name.

A checkpoint that nobody may copy is replaced by one that everybody can compute: a weight's name is its key in
the published file, so that goldens need to hold only what comes out.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

# Wider draws here: attention that attends, and conditions that are felt.
_SHARP = ("to_q", "to_k", "q_proj", "k_proj", "qkv", "emb")


def normal(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Standard normal float64 draws of a shape."""
    stream = np.random.PCG64(zlib.crc32(name.encode()) ^ seed)
    return np.random.Generator(stream).standard_normal(tuple(shape))


def picture(name: str, height: int, width: int, seed: int, channels: int = 3, step: int = 1) -> np.ndarray:
    """A smooth picture (height, width, channels), float32 in 0..1: five cosines each way, squashed.

    Only every `step`-th pixel of every `step`-th row is made.
    """
    order = np.arange(5)
    rows, columns = (
        np.cos(np.pi * order * (np.arange(0, n, step)[:, None] + 0.5) / n) for n in (height, width)
    )
    waves = normal(name, (channels, 5, 5), seed) / (1 + order[:, None] + order)
    return (1 / (1 + np.exp(-2 * np.einsum("yk,ckl,xl->yxc", rows, waves, columns)))).astype(np.float32)


def weight(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """The float32 weight called `name`."""
    leaf = name.rsplit(".", 1)[-1]
    mean = 0.0
    if leaf == "weight" and len(shape) > 1:  # a matrix, a convolution, a table
        std = (1.5 if any(part in name for part in _SHARP) else 0.7) / math.sqrt(math.prod(shape[1:]))
    elif leaf == "weight":  # the gain of a norm
        mean, std = 1.0, 0.05
    elif leaf == "bias":
        std = 0.05
    else:  # a parameter by itself, such as latents
        std = 0.7 / math.sqrt(shape[-1])
    return (mean + std * normal(name, shape, seed)).astype(np.float32)
