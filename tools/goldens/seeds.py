"""Which seed a folder of goldens was made with: its files need not tell it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from dd3g.nn.embeddings import timestep_embedding
from tools.goldens.golden import PART, Golden
from tools.goldens.unet import LEVELS

LAST = 1000  # seed that is tried


def find_seed(folder: Path) -> int:
    """The first seed with which some file's made-up input, or its smallest network, comes out; else 1."""
    for name, (array, make) in PROBES.items():
        path = folder / f"{name}.npz"
        if not path.is_file():
            continue
        golden = Golden.read(path, 1)
        if array not in golden:
            continue
        for seed in (1, *range(LAST + 1)):
            one = replace(golden, seed=seed)
            if one.compare(array, make(one), PART).agrees:
                return seed
    return 1


def _time_embed(golden: Golden) -> Tensor:
    shapes = {k: v for k, v in golden.about["shapes"].items() if k.startswith("time_embed.")}
    w = golden.state(shapes)
    sinusoid = timestep_embedding(torch.tensor(LEVELS), shapes["time_embed.0.weight"][1])
    hidden = silu(linear(sinusoid, w["time_embed.0.weight"], w["time_embed.0.bias"]))
    return linear(hidden, w["time_embed.2.weight"], w["time_embed.2.bias"])


def _picture(golden: Golden) -> np.ndarray:
    side = golden.about.get("picture_size", 200)
    step = side // len(golden["picture"])
    return golden.picture("picture", side, side)[::step, ::step]


def _drawn(golden: Golden) -> np.ndarray:
    rgba = golden["preprocess.rgba"]
    return np.concatenate([(255 * golden.picture("lgm.picture", *rgba.shape[:2])).round(), rgba[..., 3:]], -1)


PROBES: dict[str, tuple[str, Callable[[Golden], np.ndarray | Tensor]]] = {
    "unet_mvdream": ("part.time_embed", _time_embed),
    "pipeline_mvdream": ("picture", _picture),
    "lgm": ("preprocess.rgba", _drawn),
}
