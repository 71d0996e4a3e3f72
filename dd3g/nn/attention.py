"""The attention of published networks: torch's, or that of xformers where somebody wants it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = ("sdpa", "xformers")


class AttentionKernel(nn.Module):
    """softmax(q k^T / sqrt(d)) v; `name` chooses who computes it, and may be changed at any time."""

    name = "sdpa"

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, heads, L, d), keys and values (B, heads, M, d) -> (B, heads, L, d)."""
        if self.name == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        from xformers.ops import memory_efficient_attention

        # It wants (B, L, heads, d).
        return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def use_kernel(module: nn.Module, name: str) -> int:
    """Let all attention of a module be computed by one of `KERNELS`; returns how many places there are."""
    found = [m for m in module.modules() if isinstance(m, AttentionKernel)]
    for kernel in found:
        kernel.name = name
    return len(found)
