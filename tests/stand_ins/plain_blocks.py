"""Layers of the published networks in float64, by a dict of weights under their published names."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], stride, padding=kernel.shape[-1] // 2)


def group_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    groups = x.reshape(len(x), 32, -1)
    mean, var = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, correction=0)
    y = ((groups - mean) / (var + eps).sqrt()).reshape(x.shape)
    return y * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return y * w[f"{name}.weight"] + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention head by head; q (B, N, C), k and v (B, M, C)."""
    parts = [
        (qh @ kh.transpose(1, 2) / qh.shape[-1] ** 0.5).softmax(-1) @ vh
        for qh, kh, vh in zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(parts, -1)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def feed_forward(w: Weights, name: str, x: Tensor) -> Tensor:
    value, gate = linear(w, f"{name}.net.0.proj", x).chunk(2, -1)
    return linear(w, f"{name}.net.2", value * gelu(gate))


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t x 10000^(-i / half); in float32, as published."""
    half = width // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half).float() / half)
    return torch.cat([angles.cos(), angles.sin()], -1).double()


def upsampled(w: Weights, name: str, x: Tensor) -> Tensor:
    return conv(w, name, x.repeat_interleave(2, -1).repeat_interleave(2, -2))
