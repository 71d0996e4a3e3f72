"""DDIM: one move, sampling along a plan, inversion, and refinement of a known sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dd3g.diffusion.denoiser import Denoiser, predict
from dd3g.diffusion.guidance import Mode, Objective, guide
from dd3g.diffusion.schedule import Plan, Schedule, inverted


@dataclass(frozen=True)
class Step:
    """One move, as `record` sees it."""

    t: int
    u: int
    x_t: Tensor  # (B, ...) before the move
    eps: Tensor  # (B, ...) after guidance
    x0: Tensor  # (B, ...) after guidance and clipping
    energy: Tensor | None  # (B,) before guidance; None without an objective


@dataclass(frozen=True)
class Sample:
    """The end of a plan."""

    x0: Tensor  # (B, ...) the last prediction of the clean sample
    x: Tensor  # (B, ...) the state at the plan's last level; equals x0 when that is -1 with alpha_bar 1
    trace: list[Any] = field(default_factory=list)  # what `record` returned, one entry a move


def ddim_move(
    schedule: Schedule,
    x_t: Tensor,
    eps: Tensor,
    t: int | Tensor,
    u: int | Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
    x0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Move from level t to level u (Song et al. 2021, eq. 12 and 16); u < t samples, u > t inverts.

    Args:
        schedule: gives alpha and sigma.
        x_t: (B, ...) samples at level t.
        eps: (B, ...) predicted noise.
        t: level, one or (B,); -1 is the clean end.
        u: level to go to.
        eta: 0 follows the probability-flow ODE, 1 is DDPM; only for u < t.
        noise: (B, ...) standard normal, for eta > 0.
        x0: (B, ...) predicted clean sample where it does not follow from eps: clipped, or predicted itself.

    Returns:
        x_u (B, ...) and x0 (B, ...).
    """
    if x0 is None:
        alpha, sigma = schedule.alpha_sigma(t, x_t)
        x0 = (x_t - sigma * eps) / alpha
    alpha_u, sigma_u = schedule.alpha_sigma(u, x_t)
    if eta == 0:
        return alpha_u * x0 + sigma_u * eps, x0
    if noise is None or torch.as_tensor(u).ge(torch.as_tensor(t)).any():
        raise ValueError(f"eta {eta} needs noise and a move down, got t {t}, u {u}")
    ab_t, ab_u = schedule.ab(t), schedule.ab(u)
    variance = eta**2 * (1 - ab_u) / (1 - ab_t) * (1 - ab_t / ab_u)
    rest, added = ((1 - ab_u - variance).clamp(min=0).sqrt().to(x_t), variance.sqrt().to(x_t))
    if rest.dim():
        shape = (-1, *[1] * (x_t.dim() - 1))
        rest, added = rest.reshape(shape), added.reshape(shape)
    return alpha_u * x0 + rest * eps + added * noise, x0


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    plan: Plan,
    condition: Any = None,
    objective: Objective | None = None,
    *,
    mode: Mode = "detached",
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clip: float | None = None,
    auxiliary: torch.optim.Optimizer | None = None,
    record: Callable[[Step], Any] | None = None,
) -> Sample:
    """Walk along a plan; with eta 0 this solves the probability-flow ODE and x alone decides the result.

    Args:
        denoiser: the network, e.g. wrapped in `ClassifierFree`.
        schedule: its noise levels.
        x: (B, ...) state at the plan's first level, float32 or finer.
        plan: moves (t, u).
        condition: handed to the denoiser as it is.
        objective: energy of x0 that guides every move; None samples freely.
        mode: "detached" or "through", see `guide`.
        eta: see `ddim_move`.
        generator: source of the noise for eta > 0.
        clip: limit |x0| to this.
        auxiliary: optimiser of what else the objective depends on, stepped at every guided move; see `guide`.
        record: called with every `Step` once the prediction is final and before the next one is made; what it
            returns is collected. `lambda step: step` keeps the whole trajectory.

    Returns:
        The last x0, the last state and the trace.
    """
    if eta and generator is None:
        raise ValueError(f"eta {eta} needs a generator")
    trace, x0 = [], x
    for t, u in plan:
        denoise, energy = partial(predict, denoiser, schedule, t=t, condition=condition), None
        if objective is None:
            eps, x0 = denoise(x)
        else:
            eps, x0, energy = guide(schedule, denoise, x, t, objective, mode, auxiliary)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        noise = None
        if generator is not None and eta:
            noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        if record is not None:
            trace.append(record(Step(t, u, x, eps, x0, energy)))
        x, _ = ddim_move(schedule, x, eps, t, u, eta, noise, x0)
    return Sample(x0, x, trace)


def invert(denoiser: Denoiser, schedule: Schedule, x0: Tensor, plan: Plan, condition: Any = None) -> Tensor:
    """DDIM inversion: walk a *sampling* plan backwards, from x0 (B, ...) at its last level to its first.

    The plan is one that `sample` takes, e.g. (50, 48), ..., (2, 0).
    """
    return sample(denoiser, schedule, x0, inverted(plan), condition).x


def refine(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    plan: Plan,
    condition: Any = None,
    objective: Objective | None = None,
    rounds: int = 10,
    **options: Any,
) -> Sample:
    """Improve a known sample: invert it along the plan, come back guided, and again (ScoreHMR, section 3.3).

    It begins with x (B, ...), a clean estimate at the last level of a plan such as `descent(50, 2)`. The
    objective and other options of `sample` guide the way down. A round costs 2 len(plan) network calls.
    """
    result, trace = Sample(x, x), []
    for _ in range(rounds):
        noisy = invert(denoiser, schedule, result.x, plan, condition)
        result = sample(denoiser, schedule, noisy, plan, condition, objective, **options)
        trace += result.trace
    return Sample(result.x0, result.x, trace)
