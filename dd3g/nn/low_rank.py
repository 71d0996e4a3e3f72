"""Low-rank changes of linear layers that stay as they are (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Linear):
    """A linear layer W x + b plus B A x, where only A and B learn; it begins as W x + b.

    It takes the place of a layer, whose tensors are frozen and keep their names, so that published weights
    load as before.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        for tensor in linear.parameters():
            tensor.requires_grad_(False)
        w = linear.weight
        self.low = nn.Parameter(torch.randn(rank, linear.in_features).to(w) / linear.in_features**0.5)
        self.high = nn.Parameter(w.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + x @ self.low.t() @ self.high.t()


def make_low_rank(module: nn.Module, rank: int, names: tuple[str, ...]) -> None:
    """Put low-rank layers in the place of a module's linear layers with these last names, such as "to_q".

    Of "to_out.0" the last but one counts, too. All other tensors of the module are frozen.
    """
    module.requires_grad_(False)
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.Linear) and any(part in names for part in path.split(".")[-2:]):
            parent, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(parent), leaf, LowRankLinear(child, rank))
