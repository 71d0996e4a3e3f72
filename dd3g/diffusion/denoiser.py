"""What a denoising network is, what its output means, and classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dd3g.diffusion.schedule import Schedule

Prediction = Literal["eps", "x0", "v"]


class Denoiser(Protocol):
    """One network call."""

    @property
    def prediction(self) -> Prediction:
        """What the output means."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """Noisy x_t (B, ...) at integer levels t (B,) -> prediction (B, ...)."""


def predict(
    denoiser: Denoiser, schedule: Schedule, x_t: Tensor, t: int, condition: Any
) -> tuple[Tensor, Tensor]:
    """One network call at level t, as (eps, x0); the clean end t = -1 is shown to the network as level 0."""
    level = max(t, 0)
    output = denoiser(x_t, torch.full((len(x_t),), level, device=x_t.device), condition)
    eps = convert(schedule, output, x_t, level, denoiser.prediction, "eps")
    return eps, convert(schedule, output, x_t, level, denoiser.prediction, "x0")


def convert(
    schedule: Schedule, value: Tensor, x_t: Tensor, t: int | Tensor, source: Prediction, target: Prediction
) -> Tensor:
    """Turn one parametrisation into another; v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D).

    Args:
        schedule: gives alpha and sigma.
        value: (B, ...) a `source` prediction.
        x_t: (B, ...) the noisy sample that it belongs to.
        t: level in 0 .. T-1, one or (B,).
        source: what `value` is.
        target: what is wanted.
    """
    if source == target:
        return value
    alpha, sigma = schedule.alpha_sigma(t, x_t)
    if source == "eps":
        eps, x0 = value, (x_t - sigma * value) / alpha
    elif source == "x0":
        eps, x0 = (x_t - alpha * value) / sigma, value
    else:
        eps, x0 = alpha * value + sigma * x_t, alpha * x_t - sigma * value
    return {"eps": eps, "x0": x0}[target] if target != "v" else alpha * eps - sigma * x0


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance u + s (c - u) (Ho & Salimans 2022, eq. 6), itself a `Denoiser`.

    It may mix eps, x0 or v outputs: at one x_t each is an affine function of the others.
    """

    denoiser: Denoiser  # the network
    null: Any  # its condition for the unconditional call
    scale: float  # s; 1 is the conditional prediction, 0 the unconditional one

    @property
    def prediction(self) -> Prediction:
        """That of the wrapped network."""
        return self.denoiser.prediction

    def __call__(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The guided prediction; arguments as for `Denoiser`."""
        conditional = self.denoiser(x_t, t, condition)
        if self.scale == 1:
            return conditional
        unconditional = self.denoiser(x_t, t, self.null)
        return unconditional + self.scale * (conditional - unconditional)
