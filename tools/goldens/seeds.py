"""Which seed a folder of goldens was made with, where its files do not say."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dd3g.nn.blocks import timestep_embedding
from tools.goldens import made_up
from tools.goldens.golden import Compared, Golden
from tools.goldens.unet import LEVELS

LAST = 99_999  # seed that is tried, besides larger ones that names and texts of the folder hold
TEXTS = (".json", ".txt", ".md", ".py", ".yaml")
SAME = 0.01  # rmse / rms; another seed has more than 1
PIXELS = 4  # a side of the grid of pixels that identifies a picture
FEW = 8  # outputs that identify a network; a draw of fewer rows is the beginning of that of all


def find_seeds(folder: Path) -> dict[str, int]:
    """Name of each file -> the first seed with which its made-up picture, or smallest network, comes out."""
    found: dict[str, int] = {}
    noted = _noted(folder)
    for kind, (array, make) in PROBES.items():
        for path in sorted(folder.glob(f"{kind}*.npz")):
            with contextlib.suppress(Exception):  # whatever is wrong is said when its turn comes
                golden = Golden.read(path, 1)
                likely = dict.fromkeys((*found.values(), *noted))
                seed = _first(golden, make, likely) if array in golden else None
                if seed is not None:
                    found[golden.name] = seed
    return found


def _noted(folder: Path) -> list[int]:
    """Numbers over `LAST` that stand in the folder's names and texts."""
    words = [str(folder.resolve()), *(path.stem for path in folder.iterdir())]
    words += [
        path.read_text(errors="replace")
        for path in folder.glob("*.*")
        if path.suffix in TEXTS and path.is_file()
    ]
    return sorted(n for n in {int(d) for text in words for d in re.findall(r"\d{6,20}", text)} if n > LAST)


def _first(golden: Golden, make: Callable[[Golden], Compared], likely: Iterable[int]) -> int | None:
    for seed in (*likely, *range(LAST + 1)):
        if make(replace(golden, seed=seed)).agrees:
            return seed
    return None


def _picture(golden: Golden) -> Compared:
    wanted, (height, width) = golden["picture"], golden.picture_sides
    every = max(1, min(wanted.shape[:2]) // PIXELS)
    found = made_up.picture("picture", height, width, golden.seed, step=height // len(wanted) * every)
    return Compared("picture", found, wanted[::every, ::every], SAME)


def _levels(array: str, name: str) -> Callable[[Golden], Compared]:
    """A picture `name` that an array holds in 255ths, over its alpha."""

    def make(golden: Golden) -> Compared:
        height, width = golden[array].shape[:2]
        step = max(1, min(height, width) // PIXELS)
        found = made_up.picture(name, height, width, golden.seed, step=step)
        return Compared(array, (255 * found).round(), golden[array][::step, ::step, :3], SAME)

    return make


def _time_embed(golden: Golden) -> Compared:
    hidden, width = golden.about["shapes"]["time_embed.0.weight"]
    shapes = {"0.weight": (hidden, width), "0.bias": (hidden,), "2.weight": (FEW, hidden), "2.bias": (FEW,)}
    w = {n: made_up.weight(f"time_embed.{n}", shape, golden.seed) for n, shape in shapes.items()}
    inner = timestep_embedding(torch.tensor(LEVELS), width).numpy() @ w["0.weight"].T + w["0.bias"]
    found = inner / (1 + np.exp(-inner)) @ w["2.weight"].T + w["2.bias"]
    return Compared("part.time_embed", found, golden["part.time_embed"][:, :FEW], SAME)


# Beginning of a file's name -> array, and what it is compared with; the quick ones first.
PROBES: dict[str, tuple[str, Callable[[Golden], Compared]]] = {
    "pipeline_mvdream": ("picture", _picture),
    "zero123pp": ("input_rgba", _levels("input_rgba", "zpicture")),
    "lgm": ("preprocess.rgba", _levels("preprocess.rgba", "lgm.picture")),
    "unet_mvdream": ("part.time_embed", _time_embed),
}
