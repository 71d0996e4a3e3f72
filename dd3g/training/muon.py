"""Muon: matrices take orthogonal steps, everything else AdamW's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

SMALLEST = 32  # rows and columns from which a weight is a matrix: thinner ones have no directions to balance
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: five turns bring singular values near 1


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the matrices of a network, AdamW for its other parameters.

    The step of a matrix is the orthogonal factor of its gradient's moving average: directions that are rare
    learn as fast as common ones. A convolution counts as the matrix (out, in * kh * kw). Steps are as long as
    AdamW's (Moonlight, arXiv 2502.16982, section 2.2), so that one learning rate and decay serve both.

    Args:
        parameters: of a model; FSDP may split them.
        lr: learning rate of both.
        momentum: decay of the moving average of a matrix's gradient.
        options: of AdamW; its `weight_decay` also serves the matrices.
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
