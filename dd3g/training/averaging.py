"""Exponential moving average of a model, also where FSDP splits its parameters over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Average:
    """Moving average of what a model saves; whole numbers, such as a count of batches, are the last ones.

    Frozen parameters are their own average: they are not held twice.

    Args:
        model: as it is trained.
        decay: share that an update keeps, 0..1.
        warmup: "power" keeps at most 1 - k^(-3/4) at update k, "ratio" (1 + k) / (10 + k): early weights are
            soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: str = "power") -> None:
        self.sources = averaged(model)
        self.values = {n: s.detach() if frozen(s) else s.detach().clone() for n, s in self.sources.items()}
        self.decay, self.warmup, self.updates = decay, warmup, 0

    @torch.no_grad()
    def step(self) -> None:
        """Take in the model as it is now."""
        self.updates += 1
        k = self.updates
        limit = 1 - k**-0.75 if self.warmup == "power" else (1 + k) / (10 + k)
        share = 1 - min(self.decay, limit)
        pairs = []
        for name, source in self.sources.items():
            value = self.values[name]
            if not value.is_floating_point():
                value.copy_(source)
            elif not frozen(source):
                pairs.append((_own(value), _own(source)))
        if pairs:
            values, sources = map(list, zip(*pairs, strict=True))
            # v - share (v - s), with one call for all tensors.
            steps = torch._foreach_sub(values, sources)
            torch._foreach_mul_(steps, share)
            torch._foreach_sub_(values, steps)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the average into a whole copy of the model, on any device; all processes call it together."""
        for value, target in zip(self.values.values(), averaged(model).values(), strict=True):
            target.copy_(_whole(value))


def averaged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that have an average, by name: parameters, then the buffers that are saved."""
    saved = model.state_dict().keys()
    return dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in saved}


def frozen(tensor: Tensor) -> bool:
    """Whether a tensor of a model is a parameter that never changes, and its own average."""
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _own(value: Tensor) -> Tensor:
    """What this process holds of it: a split tensor's own arithmetic takes a hundred times as long."""
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
