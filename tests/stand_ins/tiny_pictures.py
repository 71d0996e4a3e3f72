"""A small, untrained model of pictures."""

from __future__ import annotations

import torch

from data_gen.picture_models.tiny import (
    TinyDenoiser,
    TinyRgbaPipeline,
    scheduler,
)

SMALL = {
    "size": 32,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 8,
    "mid": 16,
    "buckets": 64,
    "word_width": 8,
}


def denoiser(seed=0, **keys):
    """Random weights everywhere, so that text, time and noise all count."""
    torch.manual_seed(seed)
    made = TinyDenoiser(**(SMALL | keys))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        made.words[0] = 0
    return made.eval()


def pipeline(**keys):
    made = TinyRgbaPipeline(denoiser(**keys), scheduler())
    made.set_progress_bar_config(disable=True)
    return made
