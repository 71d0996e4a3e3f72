"""ImageDream's and MVDream's U-Net and sampler in float64, written from their description alone."""

import torch
from stand_ins.plain_blocks import (
    Weights,
    attend,
    conv,
    feed_forward,
    gelu,
    group_norm,
    layer_norm,
    linear,
    silu,
    sinusoid,
    tokens,
    upsampled,
)
from torch import Tensor


def resblock(w: Weights, name: str, x: Tensor, emb: Tensor) -> Tensor:
    h = conv(w, f"{name}.in_layers.2", silu(group_norm(w, f"{name}.in_layers.0", x, 1e-5)))
    h = h + linear(w, f"{name}.emb_layers.1", silu(emb))[:, :, None, None]
    h = conv(w, f"{name}.out_layers.3", silu(group_norm(w, f"{name}.out_layers.0", h, 1e-5)))
    return h + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


def cross_attention(w: Weights, name: str, x: Tensor, context: Tensor, heads: int, ip: int) -> Tensor:
    """Text and picture tokens, each with a softmax of its own; context is [text | ip] (B, M + ip, C)."""
    q = linear(w, f"{name}.to_q", x)
    text = context[:, : context.shape[1] - ip]
    y = attend(q, linear(w, f"{name}.to_k", text), linear(w, f"{name}.to_v", text), heads)
    if ip:
        picture = context[:, -ip:]
        k, v = linear(w, f"{name}.to_k_ip", picture), linear(w, f"{name}.to_v_ip", picture)
        y = y + attend(q, k, v, heads)
    return linear(w, f"{name}.to_out.0", y)


def block(w: Weights, name: str, x: Tensor, context: Tensor, frames: int, heads: int, ip: int) -> Tensor:
    """One transformer block on (B frames, N, C): the first attention sees all frames of an object at once."""
    n = layer_norm(w, f"{name}.norm1", x).reshape(len(x) // frames, -1, x.shape[-1])
    q, k, v = (linear(w, f"{name}.attn1.to_{part}", n) for part in "qkv")
    x = x + linear(w, f"{name}.attn1.to_out.0", attend(q, k, v, heads)).reshape(x.shape)
    x = x + cross_attention(w, f"{name}.attn2", layer_norm(w, f"{name}.norm2", x), context, heads, ip)
    return x + feed_forward(w, f"{name}.ff", layer_norm(w, f"{name}.norm3", x))


def transformer(w: Weights, name: str, x: Tensor, context: Tensor, frames: int, head: int, ip: int) -> Tensor:
    h = linear(w, f"{name}.proj_in", tokens(group_norm(w, f"{name}.norm", x, 1e-6)))
    depth = 0
    while (inner := f"{name}.transformer_blocks.{depth}") + ".norm1.weight" in w:
        h = block(w, inner, h, context, frames, h.shape[-1] // head, ip)
        depth += 1
    return x + linear(w, f"{name}.proj_out", h).transpose(1, 2).reshape(x.shape)


def image_embed(w: Weights, x: Tensor) -> Tensor:
    """The resampler: CLIP's tokens (B, N, C) -> those of the ip attention (B, ip, context)."""
    x = linear(w, "image_embed.proj_in", x)
    latents = w["image_embed.latents"].repeat(len(x), 1, 1)
    for depth in range(4):
        name = f"image_embed.layers.{depth}"
        queries = layer_norm(w, f"{name}.0.norm2", latents)
        pair = torch.cat([layer_norm(w, f"{name}.0.norm1", x), queries], 1)
        k, v = linear(w, f"{name}.0.to_kv", pair).chunk(2, -1)
        attended = attend(linear(w, f"{name}.0.to_q", queries), k, v, 12)
        latents = latents + linear(w, f"{name}.0.to_out", attended)
        wide = gelu(linear(w, f"{name}.1.1", layer_norm(w, f"{name}.1.0", latents)))
        latents = latents + linear(w, f"{name}.1.3", wide)
    return layer_norm(w, "image_embed.norm_out", linear(w, "image_embed.proj_out", latents))


def two_layers(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.2", silu(linear(w, f"{name}.0", x)))


def unet(
    w: Weights,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    cameras: Tensor,
    frames: int,
    head: int,
    ip: int = 0,
    given: dict[str, Tensor] | None = None,
) -> Tensor:
    """The prediction (B, 4, h, w) of all frames.

    Args:
        w: The weights.
        x: (B, 4, h, w), `frames` of an object after each other, the clean one last where there is one.
        t: (B,) levels.
        context: (B, M + ip, C) text, then picture tokens.
        cameras: (B, 16).
        frames: Frames of one object.
        head: Channels of a head.
        ip: Picture tokens.
        given: What every block gives is put here.
    """
    emb = two_layers(w, "time_embed", sinusoid(t, w["time_embed.0.weight"].shape[1]))
    emb = emb + two_layers(w, "camera_embed", cameras)

    def run(name: str, h: Tensor) -> Tensor:
        part = 0
        while any(key.startswith(f"{name}.{part}.") for key in w):
            here = f"{name}.{part}"
            if f"{here}.in_layers.0.weight" in w:
                h = resblock(w, here, h, emb)
            elif f"{here}.norm.weight" in w:
                h = transformer(w, here, h, context, frames, head, ip)
            elif f"{here}.op.weight" in w:
                h = conv(w, f"{here}.op", h, stride=2)
            elif f"{here}.conv.weight" in w:
                h = upsampled(w, f"{here}.conv", h)
            else:
                h = conv(w, here, h)
            part += 1
        if given is not None:
            given[name] = h
        return h

    skips = [run("input_blocks.0", x)]
    while any(key.startswith(f"input_blocks.{len(skips)}.") for key in w):
        skips.append(run(f"input_blocks.{len(skips)}", skips[-1]))
    h = run("middle_block", skips[-1])
    for depth in range(len(skips)):
        h = run(f"output_blocks.{depth}", torch.cat([h, skips.pop()], 1))
    return conv(w, "out.2", silu(group_norm(w, "out.0", h, 1e-5)))


def camera_rows(elevation: float, azimuths: list[float]) -> Tensor:
    """(V, 16): cameras on the unit sphere as published, azimuth 90 in front of the object; degrees."""
    rows = []
    e = torch.tensor(elevation).double().deg2rad()
    for azimuth in azimuths:
        a = torch.tensor(azimuth).double().deg2rad()
        back = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()])
        right = torch.stack([a.cos(), torch.zeros(()).double(), -a.sin()])
        up = torch.linalg.cross(back, right)
        pose = torch.eye(4).double()
        pose[:3] = torch.stack([right, up, back, back], 1)
        rows.append(torch.stack([pose[0], -pose[2], pose[1], pose[3]]).flatten())
    return torch.stack(rows)


def alpha_bars() -> Tensor:
    """(1000,) Stable Diffusion's schedule: betas linear in their roots."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)


def ddim(predict, x: Tensor, steps: int) -> list[tuple[int, Tensor]]:
    """(level, state after it) of DDIM's walk with eta 0; `predict(x, t)` is the guided noise."""
    bars, stride = alpha_bars(), 1000 // steps
    walk = []
    for t in reversed([i * stride + 1 for i in range(steps)]):
        eps = predict(x, t)
        x0 = (x - (1 - bars[t]).sqrt() * eps) / bars[t].sqrt()
        to = bars[max(t - stride, 0)]
        x = to.sqrt() * x0 + (1 - to).sqrt() * eps
        walk.append((t, x))
    return walk


def guided(w: Weights, texts: Tensor, cameras: Tensor, scale: float, head: int, clip=None, latent=None):
    """The guided prediction (x (V, 4, h, w), t) -> (V, 4, h, w).

    Args:
        w: The weights.
        texts: (2, 77, C), negative first.
        cameras: (V, 16).
        scale: Guidance.
        head: Channels of a head.
        clip: (1, N, 1280) CLIP tokens of the picture (ImageDream).
        latent: (1, 4, h, w) the picture's scaled latent.
    """
    views = len(cameras)

    def predict(x: Tensor, t: int) -> Tensor:
        halves = []
        for half in (0, 1):
            frames, context, rows, ip = x, texts[half : half + 1], cameras, 0
            if clip is not None:
                picture = image_embed(w, clip * half)
                frames = torch.cat([x, latent * half])
                rows = torch.cat([cameras, torch.zeros(1, 16).double()])
                context, ip = torch.cat([context, picture], 1), picture.shape[1]
            count = len(frames)
            levels = torch.full((count,), t)
            halves.append(unet(w, frames, levels, context.repeat(count, 1, 1), rows, count, head, ip)[:views])
        return halves[0] + scale * (halves[1] - halves[0])

    return predict
