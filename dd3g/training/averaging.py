"""Exponential moving average of a model, also where FSDP splits its parameters over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Average:
    """Moving average of what a model saves; whole numbers, such as a count of batches, are the last ones.

    Args:
        model: as it is trained.
        decay: share that an update keeps, 0..1.
        warmup: "power" keeps at most 1 - k^(-3/4) at update k, "ratio" (1 + k) / (10 + k): early weights are
            soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: str = "power") -> None:
        self.sources = averaged(model)
        self.values = [s.detach().clone() for s in self.sources]
        self.decay, self.warmup, self.updates = decay, warmup, 0

    @torch.no_grad()
    def step(self) -> None:
        """Take in the model as it is now."""
        self.updates += 1
        k = self.updates
        limit = 1 - k**-0.75 if self.warmup == "power" else (1 + k) / (10 + k)
        share = 1 - min(self.decay, limit)
        pairs = [(v, s) for v, s in zip(self.values, self.sources, strict=True) if v.is_floating_point()]
        values, sources = ([pair[i] for pair in pairs] for i in range(2))
        # v - share (v - s), with one call for all tensors.
        steps = torch._foreach_sub(values, sources)
        torch._foreach_mul_(steps, share)
        torch._foreach_sub_(values, steps)
        for value, source in zip(self.values, self.sources, strict=True):
            if not value.is_floating_point():
                value.copy_(source)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the average into a whole copy of the model, on any device; all processes call it together."""
        for value, target in zip(self.values, averaged(model), strict=True):
            target.copy_(_whole(value))

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors, so that another number of processes can go on; all processes call this together."""
        return {"optimization_step": self.updates, "shadow_params": [_whole(v) for v in self.values]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; it also reads the state of diffusers' `EMAModel`.

        Raises:
            ValueError, RuntimeError: when the tensors are not those of this model.
        """
        for value, stored in zip(self.values, state["shadow_params"], strict=True):
            if value.shape != stored.shape:
                raise ValueError(f"the average has shape {tuple(stored.shape)}, not {tuple(value.shape)}")
            stored = stored.to(value.device)
            if isinstance(value, DTensor):
                stored = distribute_tensor(stored, value.device_mesh, value.placements)
            value.copy_(stored)
        self.updates = int(state["optimization_step"])


def averaged(model: nn.Module) -> list[Tensor]:
    """The tensors of a model that have an average: parameters, then the buffers that are saved."""
    saved = model.state_dict().keys()
    return [*model.parameters(), *(b for name, b in model.named_buffers() if name in saved)]


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
