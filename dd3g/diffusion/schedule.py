"""The noise schedule as a table of alpha_bar, and sampling plans as lists of (t, u) pairs."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor

Plan = list[tuple[int, int]]
"""Moves from noise level t to level u, in order; u = -1 is the clean end."""


class Schedule:
    """alpha_bar over training steps: x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps.

    Args:
        alpha_bar: (T,) in (0, 1], falling.
        clean: alpha_bar at t = -1, the end of sampling.
        config: the diffusers scheduler config that the table came from, for `plan`.
    """

    def __init__(self, alpha_bar: Tensor, clean: float = 1.0, config: dict[str, Any] | None = None) -> None:
        self.steps = len(alpha_bar)
        self.config = dict(config or {})
        # The clean end is stored last, so that index -1 finds it.
        self.alpha_bar = torch.cat([alpha_bar.double().cpu(), torch.tensor([clean], dtype=torch.float64)])
        self._tables: dict[torch.device, Tensor] = {}  # the same on other devices, by need

    @staticmethod
    def from_config(config: dict[str, Any]) -> Schedule:
        """Build from the config of any diffusers scheduler (scheduler_config.json), keeping its exact table.

        With `set_alpha_to_one` False the clean end is alpha_bar_0 instead of 1.
        """
        scheduler = _ddim(config)
        # "_use_default_values" would make diffusers forget a spacing that `plan` sets.
        known = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        return Schedule(scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), known)

    def ab(self, t: int | Tensor) -> Tensor:
        """alpha_bar_t as float64, of t's shape; t in -1 .. T-1.

        It is on the CPU, but for a tensor on CUDA, whose values are not looked at: the GPU need not wait.
        """
        if isinstance(t, Tensor) and t.device.type in ("cuda", "meta"):
            if t.device not in self._tables:
                self._tables[t.device] = self.alpha_bar.to(t.device)
            return self._tables[t.device][t]
        t = torch.as_tensor(t).cpu()
        if (t < -1).any() or (t >= self.steps).any():
            raise IndexError(f"t must lie in -1..{self.steps - 1}, got {t.tolist()}")
        return self.alpha_bar[t]

    def alpha_sigma(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) at one level or (B,), one a sample.

        They are shaped to multiply `like` (B, ...), and have its dtype and device.
        """
        ab = self.ab(t)
        ab = ab.reshape(-1, *[1] * (like.dim() - 1)) if ab.dim() else ab
        return ab.sqrt().to(like), (1 - ab).sqrt().to(like)

    def add_noise(self, x0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """Forward process: x_t from clean x0 (B, ...), noise eps (B, ...) and level t, one or (B,)."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * eps

    def plan(self, steps: int, spacing: str | None = None) -> Plan:
        """The levels that DDIM visits in diffusers; each move goes to the next one, the last to -1.

        Args:
            steps: number of moves, 1 .. T.
            spacing: "leading", "trailing" or "linspace"; None takes the config's.
        """
        if not 1 <= steps <= self.steps:
            raise ValueError(f"steps must lie in 1..{self.steps}, got {steps}")
        scheduler = _ddim(self.config | ({"timestep_spacing": spacing} if spacing else {}))
        scheduler.set_timesteps(steps)
        levels = [min(int(t), self.steps - 1) for t in scheduler.timesteps]
        return list(zip(levels, [*levels[1:], -1], strict=True))


def descent(start: int, step: int, stop: int = 0) -> Plan:
    """Even moves from level `start` down to `stop`: 50 by 2 is (50, 48), (48, 46), ..., (2, 0)."""
    if step < 1 or start <= stop or (start - stop) % step:
        raise ValueError(f"step must divide the way from {start} down to {stop}, got {step}")
    return [(t, t - step) for t in range(start, stop, -step)]


def inverted(plan: Plan) -> Plan:
    """The same levels walked upwards, from clean to noise."""
    return [(u, t) for t, u in reversed(plan)]


def _ddim(config: dict[str, Any]) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    # As `from_config` does, which first imports all schedulers of diffusers, and scipy for some of them.
    names, defaults = signature(DDIMScheduler.__init__).parameters, config.get("_use_default_values", ())
    return DDIMScheduler(**{k: v for k, v in config.items() if k in names and k not in defaults})
