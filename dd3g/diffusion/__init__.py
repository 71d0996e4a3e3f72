"""The one diffusion core: schedules, DDIM sampling and inversion, guidance. Only dimension 0 is the batch.

A denoiser, noise and a plan of levels go in, a sample comes out. Read `sampling.py` first.
"""

from dd3g.diffusion.denoiser import ClassifierFree, Denoiser, Prediction, convert, predict
from dd3g.diffusion.guidance import Energy, Objective, guide
from dd3g.diffusion.sampling import Sample, Step, ddim_move, invert, refine, sample
from dd3g.diffusion.schedule import Plan, Schedule, descent, inverted

__all__ = [
    "ClassifierFree",
    "Denoiser",
    "Energy",
    "Objective",
    "Plan",
    "Prediction",
    "Sample",
    "Schedule",
    "Step",
    "convert",
    "ddim_move",
    "descent",
    "guide",
    "invert",
    "inverted",
    "predict",
    "refine",
    "sample",
]
