"""Rows of an evaluation that show the truth in another brightness, and a quick run of them."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.evaluation import compare as tool
from distill.evaluation.predictors import Drawing, Prediction, Target
from distill.evaluation.protocol import Evaluation

SMALL = ("sizes=[16]", "test_rings=[[10,3,60]]", "supersample=1", "metrics=[]", "rig=false")
ASKED: list[tuple[str, str]] = []


def tinted(value: str, options: Evaluation) -> dict:
    """NAME=LEVEL: the truth, but as bright as the level; seeds add noise."""
    name, _, level = value.partition("=")

    def predict(target: Target) -> Drawing:
        ASKED.append((name, target.id))
        g = torch.Generator().manual_seed(options.seed)

        def draw(at: Target, views: list[int]) -> Prediction:
            size = at.rgba.shape[-1]
            rgb = torch.full((len(views), 3, size, size), float(level))
            rgb = rgb + 0.02 * torch.randn(rgb.shape, generator=g) * (options.seed > 0)
            alpha = torch.ones(len(views), 1, size, size)
            return Prediction(views, rgb, alpha, 1.5 * alpha)

        return draw

    return {name: predict}


def run(boxes: Path, out: Path, words: list[str], changes=SMALL, **more) -> dict:
    more = {"page": False, "sheet_objects": 0, "device": "cpu"} | more
    return tool.evaluate(boxes, out, Evaluation(row=words, changes=changes, baselines=False, **more))


GREY, WHITE, DARK = "tinted=grey=0.5", "tinted=bright=1.0", "tinted=dark=0.1"
