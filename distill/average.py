"""Exponential moving average of a model's parameters, also where FSDP splits them over processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class Average:
    """Moving average with decay min(`decay`, 1 - k^(-3/4)) at update k: early weights are soon forgotten.

    Args:
        parameters: of the model, as they are trained.
        decay: share that an update keeps, 0..1.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.values = [p.detach().clone() for p in self.parameters]
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def step(self) -> None:
        """Take in the parameters as they are now."""
        self.updates += 1
        share = 1 - min(self.decay, 1 - self.updates**-0.75)
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.sub_(share * (value - parameter))

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the average into whole `parameters`, on any device; all processes call this together."""
        for value, parameter in zip(self.values, parameters, strict=True):
            parameter.copy_(_whole(value))

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors, so that another number of processes can go on; all processes call this together."""
        return {"optimization_step": self.updates, "shadow_params": [_whole(v) for v in self.values]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; it also reads the state of diffusers' `EMAModel`.

        Raises:
            ValueError, RuntimeError: when the tensors are not those of these parameters.
        """
        for value, stored in zip(self.values, state["shadow_params"], strict=True):
            if value.shape != stored.shape:
                raise ValueError(f"the average has shape {tuple(stored.shape)}, not {tuple(value.shape)}")
            stored = stored.to(value.device)
            if isinstance(value, DTensor):
                stored = distribute_tensor(stored, value.device_mesh, value.placements)
            value.copy_(stored)
        self.updates = int(state["optimization_step"])


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
