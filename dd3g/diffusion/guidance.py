"""Objectives on the predicted clean sample, and how their gradient steers a denoising step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dd3g.diffusion.schedule import Schedule

Mode = Literal["detached", "through"]
Objective: TypeAlias = Callable[[Tensor], Tensor]
"""Clean samples (B, ...) -> energies (B,), differentiable; lower is better."""


class Energy:
    """Base of objectives that compose: `0.003 * keypoints + 30 * smooth`."""

    def __call__(self, x0: Tensor) -> Tensor:
        """Clean samples (B, ...) -> energies (B,)."""
        raise NotImplementedError

    def __mul__(self, weight: float) -> Energy:
        return _Sum([(weight, self)])

    __rmul__ = __mul__

    def __add__(self, other: Objective) -> Energy:
        return _Sum([(1.0, self), (1.0, other)])

    __radd__ = __add__


class _Sum(Energy):
    def __init__(self, terms: list[tuple[float, Objective]]) -> None:
        self.terms = terms

    def __call__(self, x0: Tensor) -> Tensor:
        return torch.stack([weight * term(x0) for weight, term in self.terms]).sum(0)


def guide(
    schedule: Schedule,
    predict: Callable[[Tensor], tuple[Tensor, Tensor]],
    x_t: Tensor,
    t: int,
    objective: Objective,
    mode: Mode = "detached",
    auxiliary: torch.optim.Optimizer | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Denoise and follow the objective: eps' = eps + sigma_t dE/dx_t (Dhariwal & Nichol 2021, algorithm 2).

    ScoreHMR's eq. 10 is the same with the weight in the objective. Detached, the network is held constant, so
    dE/dx_t = dE/dx0 / alpha_t and x0 moves by -(1 - alpha_bar) / alpha_bar dE/dx0. Through the network the
    whole derivative is taken.

    Args:
        schedule: gives alpha and sigma.
        predict: x_t -> (eps, x0).
        x_t: (B, ...) noisy samples.
        t: their level.
        objective: energy of x0.
        mode: "detached" or "through".
        auxiliary: optimiser of what else the objective depends on, e.g. a camera; it takes one step on the
            summed energy, after the sample's gradient was taken.

    Returns:
        eps (B, ...) and x0 (B, ...) after guidance, and the energies (B,) before it.
    """
    if mode not in ("detached", "through"):
        raise ValueError(f"mode must be 'detached' or 'through', got {mode!r}")
    alpha, sigma = schedule.alpha_sigma(max(t, 0), x_t)
    with torch.set_grad_enabled(mode == "through"):
        x_t = x_t.detach().requires_grad_(mode == "through")
        eps, x0 = predict(x_t)
    with torch.enable_grad():
        if mode == "detached":
            x0 = x0.detach().requires_grad_()
        energy = objective(x0)
        groups = [] if auxiliary is None else auxiliary.param_groups
        beside = [v for group in groups for v in group["params"]]
        gradient, *rest = torch.autograd.grad(energy.sum(), [x_t if mode == "through" else x0, *beside])
    if auxiliary is not None:
        for variable, slope in zip(beside, rest, strict=True):
            variable.grad = slope
        auxiliary.step()
    if mode == "detached":
        gradient = gradient / alpha
    eps, x0 = eps.detach() + sigma * gradient, x0.detach() - sigma**2 / alpha * gradient
    return eps, x0, energy.detach()
