"""AdamW or Muon, and the learning rate as a function of configuration, step and minutes spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dd3g.errors import UserError
from dd3g.training.config import LoopConfig

SMALLEST = 32  # rows and columns from which a weight is a matrix: thinner ones have no directions to balance
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: five turns bring singular values near 1


def make_optimizer(model: nn.Module, config: LoopConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW or Muon with the options of `config`, over all parameters of a model.

    A parameter with an attribute `rate_share` learns at that share of the rate.

    Raises:
        UserError: Muon for a model with such parameters.
    """
    by_share: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        by_share.setdefault(getattr(parameter, "rate_share", 1.0), []).append(parameter)
    if len(by_share) > 1 and config.optimizer == "muon":
        raise UserError("optimizer muon has one rate for all parameters: take adamw, or start.lower=frozen")
    groups: Any = [{"params": found, "rate_share": share} for share, found in by_share.items()]
    # A fused step is taken after an overflow too: Muon's breaks the weights, and accelerate counts AdamW's,
    # which leaves them alone, as made.
    fused = fused and config.precision != "fp16"
    return (Muon if config.optimizer == "muon" else torch.optim.AdamW)(
        groups if len(groups) > 1 else model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        amsgrad=config.adam_amsgrad,
        fused=fused or None,  # None: what suits the device
    )


class LearningRate:
    """Sets the learning rate of an optimiser.

    Unlike torch's schedulers it keeps nothing of an earlier run but the count and the time: a run that is
    resumed with another learning rate or length follows them from its first step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: LoopConfig) -> None:
        self.optimizer, self.config = optimizer, config
        self.count, self.minutes = 0, 0.0  # optimiser steps made, minutes of all sessions

    def set(self) -> float:
        """Set the rate of the coming step; returns it."""
        value = learning_rate(self.config, self.count, self.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = value * group.get("rate_share", 1.0)
        return value

    def state_dict(self) -> dict[str, Any]:
        """The count, under the name that torch's schedulers give it, and the minutes."""
        return {"last_epoch": self.count, "minutes": self.minutes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.count, self.minutes = int(state["last_epoch"]), float(state.get("minutes", 0.0))


def learning_rate(config: LoopConfig, step: int, minutes: float = 0.0) -> float:
    """The learning rate of optimiser step `step` after `minutes`: linear warm-up, then a shape.

    "warmup_stable_decay" ends in a linear tail; "linear" and "cosine" fall to zero from the end of the
    warm-up; "timed_cosine" falls from the first step on with the larger share of steps and minutes that is
    spent, so that it is zero at either end; "constant", which is also "constant_with_warmup", stays.
    """
    warmup, total = config.lr_warmup_steps, config.max_train_steps
    rise = config.learning_rate * min(1.0, (step + 1) / max(1, warmup))
    if config.lr_scheduler.startswith("constant"):
        return rise
    if config.lr_scheduler == "warmup_stable_decay":
        return rise * min(1.0, max(0.0, (total - step) / max(1, config.lr_decay_steps)))
    if config.lr_scheduler in ("linear", "cosine"):
        spent = max(0, step - warmup) / max(1, total - warmup)
    else:
        spent = max(step / total, minutes / config.max_minutes if config.max_minutes else 0.0)
    if config.lr_scheduler == "linear":
        return rise * max(0.0, 1 - spent)
    return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, spent)))


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the matrices of a network, AdamW for its other parameters.

    The step of a matrix is the orthogonal factor of its gradient's moving average: directions that are rare
    learn as fast as common ones. A convolution counts as the matrix (out, in * kh * kw). Steps are as long as
    AdamW's (Moonlight, arXiv 2502.16982, section 2.2), so that one learning rate and decay serve both. The
    momentum is the decay of the moving average of a matrix's gradient. FSDP may split the parameters.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, **options: Any
    ) -> None:
        rest: dict[str, Any] = {"params": [], "matrices": False}
        matrices: dict[str, Any] = {"params": [], "matrices": True, "momentum": momentum}
        for parameter in parameters:
            (matrices if is_matrix(parameter) else rest)["params"].append(parameter)
        super().__init__([rest, matrices], lr=lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see `torch.optim.Optimizer.step`."""
        groups = self.param_groups
        try:
            self.param_groups = [g for g in groups if not g["matrices"]]
            value = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        return value

    def _step_matrices(self, group: dict[str, Any]) -> None:
        wanted: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # those of one shape go together
        for p in group["params"]:
            if p.grad is not None:
                state = self.state[p]
                if not state:  # AdamW looks for a step in the state of every parameter
                    state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["exp_avg"], group["momentum"])  # Nesterov's look ahead
                update = update.full_tensor() if isinstance(update, DTensor) else update
                wanted.setdefault(p.shape, []).append((p, update.flatten(1)))
        for shape, pairs in wanted.items():
            factors = orthogonal_factor(torch.stack([update for _, update in pairs]))
            length = 0.2 * math.sqrt(max(factors.shape[1:]))  # AdamW's root mean square
            for (p, _), factor in zip(pairs, factors.view(-1, *shape), strict=True):
                step = factor.to(p.dtype)
                if isinstance(p, DTensor):
                    step = distribute_tensor(step, p.device_mesh, p.placements)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"] * length)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has enough rows and columns for Muon."""
    return parameter.dim() > 1 and min(parameter.shape[0], math.prod(parameter.shape[1:])) >= SMALLEST


def orthogonal_factor(matrices: Tensor) -> Tensor:
    """(N, R, C) -> U V^T of each one's singular value decomposition, with singular values of .7 to 1.2.

    Newton-Schulz in bfloat16 is many times as fast as the decomposition, and training does not see the
    difference.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()  # (N, r, c), r <= c
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
