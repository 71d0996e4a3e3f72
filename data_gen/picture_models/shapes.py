"""A stand-in for a picture model: coloured shapes with alpha, in about a millisecond each.

It lets the whole pipeline run at full size without a diffusion model: every picture is a function of its text
and seed, most pass the filters, and a known share is faulty or nearly repeats another, so that every step has
work to do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_gen.picture_models.protocol import SHAPES, ModelConfig
from dd3g.errors import UserError

SIDE = 128
FAULTS = ("empty", "speck", "two pieces", "cut off")
FAULTY = 0.03  # of the pictures
REPEATED = 0.002  # of the pictures
REPEATS = 100  # different pictures among the repeated ones
_SUPERSAMPLE = 2


@dataclass
class Shapes:
    """The picture model "shapes"."""

    side: int = SIDE  # pixels per side
    # Share of pictures that show nothing, a speck, two pieces, or an object cut off by the border
    faulty: float = FAULTY
    repeated: float = REPEATED  # share of pictures that are one of a hundred, whatever text and seed

    name = SHAPES
    licence = "Apache-2.0"
    has_alpha = True

    @classmethod
    def from_config(cls, config: ModelConfig) -> Shapes:
        """Read `height` (or `width`) and, in `call_options`, `faulty` and `repeated`.

        Raises:
            UserError: for a key that means nothing here, and a share that is none.
        """
        default = ModelConfig()
        known = {"path", "height", "width", "call_options", "dtype"}
        other = sorted(
            k for k in vars(default) if getattr(config, k) != getattr(default, k) and k not in known
        )
        other += [f"call_options.{k}" for k in config.call_options if k not in ("faulty", "repeated")]
        if other:
            raise UserError(f"the model {SHAPES} does not take {', '.join(other)}: leave it out")
        if config.height and config.width and config.height != config.width:
            raise UserError(f"the model {SHAPES} draws squares, not {config.width}x{config.height}")
        for key, value in config.call_options.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"model.call_options.{key} must be a share from 0 to 1, got {value!r}")
        return cls(config.height or config.width or SIDE, **config.call_options)

    def draw(self, texts: list[str], seeds: list[int]) -> list[Image.Image]:
        """RGBA pictures, as `PictureModel.draw`."""
        return [self._picture(text, seed) for text, seed in zip(texts, seeds, strict=True)]

    def _picture(self, text: str, seed: int) -> Image.Image:
        palette, form = _generator(text), _generator(f"{text}\n{seed}")
        chance = form.random()
        if chance < self.repeated:
            form = palette = _generator(str(form.integers(REPEATS)))
        fault = chance >= 1 - self.faulty
        return _draw(palette, form, self.side, FAULTS[form.integers(len(FAULTS))] if fault else "")


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))


def _draw(palette: np.random.Generator, form: np.random.Generator, side: int, fault: str) -> Image.Image:
    canvas = side * _SUPERSAMPLE
    colours = [tuple(int(c) for c in row) for row in palette.integers(20, 236, (6, 3))]
    mask = Image.new("L", (canvas, canvas))
    pen = ImageDraw.Draw(mask)
    centre, radius = form.uniform(0.46, 0.54, 2), form.uniform(0.28, 0.4)
    if fault == "speck":
        radius = 0.02
    elif fault == "cut off":
        centre[form.integers(2)] = form.choice([0.02, 0.98])
    if fault == "two pieces":
        for x in (0.28, 0.72):
            pen.polygon(_outline(form, np.array([x, centre[1]]), 0.16, canvas), fill=255)
    elif fault != "empty":
        pen.polygon(_outline(form, centre, radius, canvas), fill=255)
    paint = Image.new("RGB", (canvas, canvas), colours[0])
    brush = ImageDraw.Draw(paint)
    for colour in colours[1:]:
        # Large patches: a perceptual hash sees only the coarsest of a picture.
        place = centre + 0.7 * form.uniform(-radius, radius, 2)
        if form.random() < 0.5:
            brush.polygon(_outline(form, place, form.uniform(0.3, 0.7) * radius, canvas), fill=colour)
        else:
            x, y = canvas * place
            rx, ry = canvas * radius * form.uniform(0.2, 0.7, 2)
            brush.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)
    paint.putalpha(mask)
    return paint.reduce(_SUPERSAMPLE)


def _outline(
    form: np.random.Generator, centre: np.ndarray, radius: float, canvas: int
) -> list[tuple[float, float]]:
    """Corners of a star-shaped polygon: one piece whatever is drawn."""
    corners = int(form.integers(3, 12))
    angles = 2 * np.pi * (np.arange(corners) + form.random()) / corners
    reach = radius * form.uniform(0.55, 1.0, corners)
    points = canvas * (centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
    return [(float(x), float(y)) for x, y in points]
