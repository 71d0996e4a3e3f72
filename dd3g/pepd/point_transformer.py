"""Point Transformer blocks: vector attention among the nearest decoded positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dd3g.nn.blocks import FeedForward


def nearest(positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of positions (B, L, 3), at most L, for each of them, itself among them.

    Returns:
        Indices (B, L, k) and offsets p_i - p_j (B, L, k, 3), which carry the gradient of the positions.
    """
    with torch.no_grad():
        # Not the matrix product form: it is inexact for near points, and lower precision under autocast.
        distance = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
        index = distance.topk(min(k, positions.shape[1]), largest=False).indices
    return index, positions[:, :, None] - rows_at(positions, index)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Rows x (B, L, D) by index (B, L, k) -> (B, L, k, D)."""
    return x[torch.arange(len(x), device=x.device)[:, None, None], index]


class PointTransformer(nn.Module):
    """Vector self-attention in kNN neighbourhoods, then feed-forward; pre-norm, residual.

    y_i = sum_j softmax_j(gamma(q_i - k_j + delta_ij)) * (v_j + delta_ij) with delta_ij = theta(p_i - p_j) and
    one weight a channel (Zhao et al. 2021, eq. 3). The two small networks have the inner width `hidden`; the
    attention costs L * k * dim * hidden.
    """

    def __init__(self, dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.theta = nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, dim))
        # No bias at the end: softmax over the neighbours would not see it.
        self.gamma = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim, bias=False))
        self.to_out = nn.Linear(dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
        """Tokens (B, L, D) with neighbours (B, L, k) and offsets (B, L, k, 3) -> (B, L, D)."""
        q, k, v = self.to_qkv(self.norm1(x)).chunk(3, -1)
        delta = self.theta(offsets)  # (B, L, k, D)
        weight = self.gamma(q[:, :, None] - rows_at(k, index) + delta).softmax(2)
        x = x + self.to_out((weight * (rows_at(v, index) + delta)).sum(2))
        return x + self.ff(self.norm3(x))
