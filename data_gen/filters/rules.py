"""Which pictures may go into a set: scores of a cut-out, thresholds, and a reason for each one left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dd3g.command.setting import check_ranges, setting

if TYPE_CHECKING:
    from data_gen.filters.mattes import Matted

SIDE = 128  # pixels per side at which form, colour and sharpness are measured
OBJECT = 128  # alpha of 255 from which a pixel belongs to the object
_CLEAR, _OPAQUE = 26, 230  # alpha of 255 between which a pixel is neither background nor object
_INSIDE = 250  # alpha of 255 from which a colour is free of the background's
_BLUR = 5  # pixels
_FLAT = 1.0  # mean squared step of luminance from pixel to pixel below which sharpness cannot be judged
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

UNSAFE = "unsafe"
# Reason code -> (score, threshold, what is wrong); judged in this order. A score below its min_ threshold or
# above its max_ threshold rejects.
RULES = {
    "small": ("coverage", "min_coverage", "the object covers too little of the picture"),
    "large": ("coverage", "max_coverage", "the object covers nearly all of the picture"),
    "border": ("border", "max_border", "the object is cut off by the picture's border"),
    "parts": ("main", "min_main", "the object is in several parts"),
    "soft": ("soft", "max_soft", "too much of the matte is half transparent"),
    "flat": ("aspect", "min_aspect", "the object is far longer than wide"),
    "sparse": ("fill", "min_fill", "the object fills too little of its box"),
    "thin": ("thickness", "min_thickness", "the object is nowhere thick"),
    "blur": ("sharpness", "min_sharpness", "the picture is blurred"),
    "contrast": ("contrast", "min_contrast", "the object has hardly any light and shade"),
    "grey": ("colourfulness", "min_colourfulness", "the object has hardly any colour"),
    "garish": ("colourfulness", "max_colourfulness", "the colours are overdone"),
    UNSAFE: ("unsafe", "max_unsafe", "the safety checker objects"),
    "clip": ("clip", "min_clip", "the picture does not show what the prompt says"),
    "ugly": ("aesthetic", "min_aesthetic", "the aesthetic score is low"),
}
# What the shard worker itself finds, beside the rules.
UNREADABLE = "unreadable"
NO_OBJECT = "no_object"
DUPLICATE = "duplicate"
REASONS = {
    UNREADABLE: "the file cannot be opened as a picture",
    NO_OBJECT: "the matte found no object",
    **{code: text for code, (_, _, text) in RULES.items()},
    DUPLICATE: "an earlier picture of the set looks nearly the same",
}


@dataclass
class FilterConfig:
    """Thresholds; the defaults of the measured ones each reject about one in a hundred good renders.

    A threshold at the end of its score's range rejects nothing.
    """

    min_coverage: float = setting(0.01, "of the picture as drawn, 0..1", 0, 1)
    max_coverage: float = setting(0.85, "likewise", 0, 1)
    max_border: float = setting(
        0.005, "share of the picture's outermost pixels that show the object, 0..1", 0, 1
    )
    min_main: float = setting(0.9, "share of the object in its largest part, 0..1", 0, 1)
    max_soft: float = setting(
        0.2, "share of the matte that is half transparent beyond its outline, 0..1", 0, 1
    )
    min_aspect: float = setting(0.04, "shorter over longer side of the object's box, 0..1", 0, 1)
    min_fill: float = setting(0.1, "share of that box that the object covers, 0..1", 0, 1)
    min_thickness: float = setting(
        0.02, "diameter of the largest disc inside the object, over the frame", 0, 1
    )
    min_sharpness: float = setting(0.3, "0..1, about 0.3 for a Gaussian blur of 1.5 % of the frame", 0, 1)
    min_contrast: float = setting(2.0, "standard deviation of luminance on the object, 0..127", 0, 127.5)
    min_colourfulness: float = setting(0.0, "Hasler and Suesstrunk's measure, 0..about 180", 0)
    max_colourfulness: float = setting(130.0, "likewise", 0)
    duplicate_distance: int = setting(
        4, "bits of 64 by which hashes of repeats may differ; -1 keeps all", -1, 62
    )
    clip: str = setting("", "folder of a CLIP model")
    min_clip: float = setting(0.2, "cosine of picture and prompt, -1..1", -1, 1)
    aesthetic: str = setting("", ".safetensors head on the pooled CLIP features; needs clip")
    min_aesthetic: float = setting(4.5, "1..10 for the LAION predictors", -math.inf)
    safety: str = setting("", "folder of a diffusers safety checker, or .safetensors head on CLIP")
    max_unsafe: float = setting(0.5, "0..1", 0, 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("coverage", "colourfulness"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(f"min_{name} {low:g} is above max_{name} {high:g}: no picture could pass")
        if not self.clip and (self.aesthetic or self.safety.endswith(".safetensors")):
            head = "aesthetic" if self.aesthetic else "safety"
            raise ValueError(f"{head} {getattr(self, head)!r} works on CLIP features: set clip as well")


def judge(scores: dict[str, float], config: FilterConfig) -> str:
    """The first reason to reject a picture with these scores, "" to keep it.

    Scores that are not there, such as those of models that are not configured, are not judged.
    """
    for code, (score, threshold, _) in RULES.items():
        value, limit = scores.get(score), getattr(config, threshold)
        if value is not None and (value < limit if threshold.startswith("min_") else value > limit):
            return code
    return ""


def measure(matted: Matted) -> dict[str, float]:
    """Scores of a cut-out that need no model, each a finite number; about 2 ms at 256 pixels.

    `coverage` and `border` are of the picture as drawn, `soft` of the framed matte, the others of the framed
    picture at 128 pixels. Their ranges stand in `FilterConfig`.
    """
    solid = matted.alpha >= OBJECT  # (H, W)
    edge = np.concatenate([solid[0], solid[-1], solid[1:-1, 0], solid[1:-1, -1]])
    alpha = matted.rgba[..., 3]
    present = alpha >= _CLEAR
    half = _eroded(present & (alpha < _OPAQUE))  # an outline's own soft pixels lie at its border
    small = _reduced(matted.rgba)
    scores = {
        "coverage": float(solid.mean()),
        "border": float(edge.mean()),
        "soft": float(half.sum()) / max(float(present.sum()), 1.0),
        **_form(small[..., 3]),
        **_colour(small),
    }
    return {name: round(float(value), 4) for name, value in scores.items()}


def _reduced(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if len(rgba) <= SIDE:
        return rgba
    image = Image.fromarray(rgba).reduce(len(rgba) // SIDE)  # several times faster than resizing
    return np.asarray(image if image.width == SIDE else image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _form(alpha: NDArray[np.uint8]) -> dict[str, float]:
    """Scores of an object's outline, (S, S)."""
    from scipy.ndimage import distance_transform_cdt, label

    mask = alpha >= OBJECT
    if not mask.any():
        return {"main": 0.0, "aspect": 0.0, "fill": 0.0, "thickness": 0.0}
    # Down to faint pixels: thin parts, such as a chair's legs, are faint at this size.
    sizes = np.bincount(label(alpha >= _CLEAR, np.ones((3, 3)))[0].ravel())[1:]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A ring of background: what touches the frame is as thin there as anywhere.
    depth = distance_transform_cdt(np.pad(box, 1), "chessboard").max()
    return {
        "main": sizes.max() / sizes.sum(),
        "aspect": min(box.shape) / max(box.shape),
        "fill": box.mean(),
        "thickness": (2 * depth - 1) / len(mask),
    }


def _colour(rgba: NDArray[np.uint8]) -> dict[str, float]:
    """Scores of the colours on the object, (S, S, 4)."""
    inside = rgba[..., 3] >= _INSIDE
    if not inside.any():
        return {"sharpness": 0.0, "contrast": 0.0, "colourfulness": 0.0}
    colour = rgba[..., :3].astype(np.float32)
    luminance = colour @ _LUMINANCE
    red, green, blue = colour[inside].T
    # Hasler and Suesstrunk, Measuring colourfulness in natural images (2003).
    opponents = red - green, (red + green) / 2 - blue
    spread = math.hypot(*(float(o.std()) for o in opponents))
    mean = math.hypot(*(float(o.mean()) for o in opponents))
    return {
        # Outermost pixels hold some of the background's colour.
        "sharpness": _sharpness(luminance, _eroded(inside)),
        "contrast": luminance[inside].std(),
        "colourfulness": spread + 0.3 * mean,
    }


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels whose eight neighbours are not all in the mask."""
    inner = np.zeros_like(mask)
    across = mask[1:-1] & mask[:-2] & mask[2:]
    inner[1:-1, 1:-1] = across[:, 1:-1] & across[:, :-2] & across[:, 2:]
    return inner


def _sharpness(luminance: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Share of the energy of the object's edges that a blur takes away, 0..1; 1 where it has none.

    What is blurred already has little to lose (Crete et al., The blur effect, 2007); squares let the strong
    edges decide, where the original takes absolute differences.
    """
    lost = energy = 0.0
    margin = _BLUR // 2
    for image, mask in ((luminance, inside), (luminance.T, inside.T)):
        both = mask[margin + 1 : len(mask) - margin] & mask[margin : len(mask) - margin - 1]
        before = np.diff(image[margin : len(image) - margin], axis=0)[both] ** 2
        # Two neighbouring means over a window differ by what enters and what leaves it.
        after = ((image[_BLUR:] - image[:-_BLUR])[both] / _BLUR) ** 2
        lost += float(np.maximum(0, before - after).sum())
        energy += float(before.sum())
    return lost / energy if energy > _FLAT * np.count_nonzero(inside) else 1.0
