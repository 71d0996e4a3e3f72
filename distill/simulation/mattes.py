"""Mattes of a teacher's views that have no alpha, and how far each can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dd3g.models import model_path
from dd3g.picture.matting import predict_matte
from distill.config import BELIEVED
from distill.pictures import pixels

GROUND = "ground"  # by the colour of the ground, where that is flat
FLAT = 0.9  # share of the border that one colour must have
NEAR, FAR = 0.03, 0.15  # distance to the ground's colour at which alpha leaves 0 and reaches 1
DOUBT = 0.2  # doubtful pixels, by those of the object, at which nothing is believed any more


@dataclass(frozen=True)
class Mattes:
    """Mattes of V views."""

    alpha: Tensor  # (V, 1, S, S) in 0..1
    confidence: Tensor  # (V,) 0..1; see `matte_view`
    ground: Tensor  # (V, 3) colour that each view stands on, as far as it is one
    model: str  # what they were made with

    def straight(self, views: Tensor) -> Tensor:
        """Views (V, 3, S, S) on their ground -> straight RGBA (V, 4, S, S)."""
        under = (1 - self.alpha) * self.ground[..., None, None]
        rgb = ((views - under) / self.alpha.clamp(min=1e-3)).clamp(0, 1)
        return torch.cat([rgb, self.alpha], 1)


def matte_model(name: str) -> str:
    """What "auto" stands for on this machine: the ground's colour, then u2netp where it was fetched."""
    if name != "auto":
        return name
    return f"{GROUND}+u2netp" if model_path("u2netp") else GROUND


def matte_views(views: Tensor, model: str) -> Mattes:
    """Mattes of views (V, 3, S, S) in 0..1.

    Args:
        views: on any ground.
        model: "ground", a matting model of `dd3g.picture.matting`, or "ground+MODEL": the model where the
            ground is not flat or its matte not believed.

    Raises:
        UserError: when the matting model is unknown or not on this machine.
    """
    found = [matte_view(view.float().cpu(), model) for view in views]
    alpha, confidence, ground = zip(*found, strict=True)
    return Mattes(torch.stack(alpha), torch.tensor(confidence), torch.stack(ground), model)


def matte_view(view: Tensor, model: str) -> tuple[Tensor, float, Tensor]:
    """The matte of one view (3, S, S).

    Returns:
        alpha (1, S, S), rounded to 255ths; confidence: how flat the ground is (1 for a model) times how few
        pixels are doubtful: neither object nor ground although no edge is near, or of the ground's colour
        although the object surrounds them; 0 where nearly nothing or nearly everything is the object; and the
        ground's colour (3,).
    """
    names = model.split("+")
    ground, flatness = ground_of(view)
    best = torch.zeros_like(view[:1]), 0.0, ground
    for name in names:
        if name != GROUND:
            alpha, doubtful, share = asked(view, name), 0, 1.0
            outside = alpha[0] < 0.05
            colour = view[:, outside].median(1).values if outside.any() else ground
        else:
            alpha, doubtful = keyed(view, ground)
            share, colour = flatness if flatness >= FLAT else 0.0, ground
        alpha = (alpha * 255).round() / 255
        confidence = share * decided(alpha, doubtful)
        if confidence >= best[1]:
            best = alpha, confidence, colour
        if confidence >= BELIEVED:
            break
    return best


def ground_of(view: Tensor) -> tuple[Tensor, float]:
    """The border's median colour (3,) of a view (3, S, S), and the share of the border that has it."""
    inner = torch.zeros_like(view[0], dtype=torch.bool)
    width = max(1, view.shape[-1] // 64)
    inner[width:-width, width:-width] = True
    border = view[:, ~inner]  # (3, P)
    colour = border.median(1).values
    return colour, float(((border - colour[:, None]).abs().amax(0) < 2 * NEAR).float().mean())


def keyed(view: Tensor, ground: Tensor) -> tuple[Tensor, int]:
    """Alpha (1, S, S) by distance to the ground's colour, and the number of doubtful pixels.

    These are pixels of that colour that the object surrounds, which count as object, and pixels away from the
    outline whose colour is only a little another one: a shadow, or what a pale object is losing.
    """
    from scipy.ndimage import binary_fill_holes, binary_propagation

    step = _step(view)
    distance = (view - ground[:, None, None]).abs().amax(0)
    weak = (distance > 1.2 * NEAR) & (distance < FAR)
    # A pixel of the outline is a mixture of the ground and the strongest colour beside it.
    full = F.max_pool2d(distance[None, None], 4 * step + 1, 1, 2 * step)[0, 0].clamp(min=FAR)
    alpha = ((distance - NEAR) / (full - NEAR)).clamp(0, 1)
    solid = alpha >= 0.5
    # What is joined to a pixel that is surely the object's, and what it surrounds.
    whole = binary_fill_holes(binary_propagation(solid & (distance >= FAR), mask=solid))
    around = ~torch.from_numpy(whole)
    hidden = ~around & (distance < NEAR)
    outline = grown(around, 1) & grown(~around, 1)
    alpha = torch.where(outline, alpha, (~around).float())
    weak &= ~grown(~around, 2 * step) | ~grown(around, 2 * step)
    return alpha[None], int((hidden | weak).sum())


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (S, S) and what lies up to some pixels beside it."""
    return F.max_pool2d(mask[None, None].float(), 2 * pixels + 1, 1, pixels)[0, 0] > 0


def _step(view: Tensor) -> int:
    """Pixels that one is taken for: outlines are as many times wider in larger pictures."""
    return max(1, view.shape[-1] // 128)


def asked(view: Tensor, model: str) -> Tensor:
    """Alpha (1, S, S) by a matting model."""
    matte = predict_matte(Image.fromarray(pixels(view)), model)
    return torch.from_numpy(np.array(matte))[None].float() / 255


def decided(alpha: Tensor, doubtful: int) -> float:
    """1 for an alpha (1, S, S) that is 0 or 1 but for its edge; 0 where doubtful pixels are many."""
    mask, step = alpha[0] > 0.5, _step(alpha)
    count = int(mask.sum())
    if not 0.005 < count / mask.numel() < 0.9:
        return 0.0
    edge = grown(mask, step) & grown(~mask, step)
    haze = int(((alpha[0] > 0.1) & (alpha[0] < 0.9) & ~edge).sum())
    return max(0.0, 1 - (haze + doubtful) / (DOUBT * count))
