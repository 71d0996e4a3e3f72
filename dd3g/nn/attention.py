"""Attention by torch's fused kernel; in published networks by that of xformers where somebody wants it."""

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


def use_kernel(module: nn.Module, name: str) -> None:
    """Let every `AttentionKernel` of a module be computed by one of `KERNELS`."""
    for kernel in module.modules():
        if isinstance(kernel, AttentionKernel):
            kernel.name = name


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of tokens (B, L, heads * d) over others (B, M, heads * d), head by head."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
