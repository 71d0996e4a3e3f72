"""Pictures that are collected, with alpha or on green, and what a set holds of them."""

from __future__ import annotations

import functools
import io
import json

import numpy as np
from PIL import Image

from data_gen.filters import mattes
from data_gen.filters.rules import FilterConfig, judge, measure
from data_gen.picture_models.shapes import Shapes
from dd3g.io.shards import Shards

GREEN = (0, 255, 0)


@functools.cache
def shapes(count: int) -> list[Image.Image]:
    """Different pictures with alpha that all filters let through, with room."""
    strict = FilterConfig(max_colourfulness=90, min_sharpness=0.4, min_contrast=5, min_coverage=0.1)
    found: list[Image.Image] = []
    seed = 0
    while len(found) < count:
        [image] = Shapes(faulty=0, repeated=0).draw([f"a thing of number {seed}"], [seed])
        cut = mattes.matte_and_frame(image, mattes.MatteConfig(size=64))
        if cut and not judge(measure(cut), strict):
            found.append(image)
        seed += 1
    return found


def on_green(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (*GREEN, 255)), image).convert("RGB")


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format)
    return stream.getvalue()


def records(output) -> dict[str, dict]:
    shards = Shards(output)
    found = [json.loads(shards[i]["json"]) for i in range(len(shards))]
    assert [r["id"] for r in found] == [shards.key(i) for i in range(len(shards))]
    return {r["source"]: r for r in found}


def pixels(output) -> dict[str, np.ndarray]:
    shards = Shards(output)
    samples = (shards[i] for i in range(len(shards)))
    return {json.loads(s["json"])["source"]: np.array(Image.open(io.BytesIO(s["png"]))) for s in samples}
