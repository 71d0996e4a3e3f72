"""Zero123++ in float64, written from its description alone: U-Net, reference attention, samplers."""

import torch
from stand_ins.plain_blocks import (
    Weights,
    attend,
    conv,
    feed_forward,
    group_norm,
    layer_norm,
    linear,
    silu,
    sinusoid,
    tokens,
    upsampled,
)
from torch import Tensor


def resnet(w: Weights, name: str, x: Tensor, emb: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", silu(group_norm(w, f"{name}.norm1", x, 1e-5)))
    h = h + linear(w, f"{name}.time_emb_proj", silu(emb))[:, :, None, None]
    h = conv(w, f"{name}.conv2", silu(group_norm(w, f"{name}.norm2", h, 1e-5)))
    return h + (conv(w, f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in w else x)


def transformer(
    w: Weights, name: str, x: Tensor, text: Tensor, heads: int, kept: dict, write: bool
) -> Tensor:
    """The reference pass writes what its first attention sees, and the main pass attends to that, too."""
    inner = f"{name}.transformer_blocks.0"

    def attention(part: str, queries: Tensor, keys: Tensor) -> Tensor:
        q = linear(w, f"{inner}.{part}.to_q", queries)
        k, v = (linear(w, f"{inner}.{part}.to_{kind}", keys) for kind in "kv")
        return linear(w, f"{inner}.{part}.to_out.0", attend(q, k, v, heads))

    h = linear(w, f"{name}.proj_in", tokens(group_norm(w, f"{name}.norm", x, 1e-6)))
    own = layer_norm(w, f"{inner}.norm1", h)
    if write:
        kept[name] = own
    h = h + attention("attn1", own, own if write else torch.cat([own, kept[name]], 1))
    h = h + attention("attn2", layer_norm(w, f"{inner}.norm2", h), text)
    h = h + feed_forward(w, f"{inner}.ff", layer_norm(w, f"{inner}.norm3", h))
    return x + linear(w, f"{name}.proj_out", h).transpose(1, 2).reshape(x.shape)


def unet(w: Weights, x: Tensor, t: float, text: Tensor, heads: list[int], kept: dict, write: bool) -> Tensor:
    """Stable Diffusion 2's U-Net on (B, 4, h, w) at level t with text (B, M, C); heads by level."""
    emb = sinusoid(torch.tensor([t]), w["time_embedding.linear_1.weight"].shape[1])
    emb = linear(w, "time_embedding.linear_2", silu(linear(w, "time_embedding.linear_1", emb)))

    def layer(block: str, index: int, h: Tensor, count: int) -> Tensor:
        h = resnet(w, f"{block}.resnets.{index}", h, emb)
        name = f"{block}.attentions.{index}"
        return transformer(w, name, h, text, count, kept, write) if f"{name}.norm.weight" in w else h

    layers = sum(name.startswith("down_blocks.0.resnets") and name.endswith("norm1.weight") for name in w)
    skips = [conv(w, "conv_in", x)]
    for level, count in enumerate(heads):
        block = f"down_blocks.{level}"
        for index in range(layers):
            skips.append(layer(block, index, skips[-1], count))
        if f"{block}.downsamplers.0.conv.weight" in w:
            skips.append(conv(w, f"{block}.downsamplers.0.conv", skips[-1], stride=2))
    h = resnet(w, "mid_block.resnets.1", layer("mid_block", 0, skips[-1], heads[-1]), emb)
    for level, count in enumerate(reversed(heads)):
        block = f"up_blocks.{level}"
        for index in range(layers + 1):
            h = layer(block, index, torch.cat([h, skips.pop()], 1), count)
        if f"{block}.upsamplers.0.conv.weight" in w:
            h = upsampled(w, f"{block}.upsamplers.0.conv", h)
    return conv(w, "conv_out", silu(group_norm(w, "conv_norm_out", h, 1e-5)))


def alpha_bars() -> Tensor:
    """(1000,) betas linear in themselves, unlike Stable Diffusion's."""
    return (1 - torch.linspace(0.00085, 0.012, 1000).double()).cumprod(0)


def call(
    w: Weights, x: Tensor, t: int, text: Tensor, condition: Tensor, noise: Tensor, heads: list[int]
) -> Tensor:
    """v (B, 4, h, w), with attention to the picture's latents noised to the same level.

    Args:
        w: The weights.
        x: (B, 4, h, w), variance preserving.
        t: The level.
        text: (B, 77, C).
        condition: (B, 4, h', w') latents of the input picture, in the unconditional half of zeros.
        noise: The same shape.
        heads: By level.
    """
    kept: dict[str, Tensor] = {}
    bar = alpha_bars()[t]
    unet(w, bar.sqrt() * condition + (1 - bar).sqrt() * noise, t, text, heads, kept, write=True)
    return unet(w, x, t, text, heads, kept, write=False)


def ramped(text: Tensor, picture: Tensor, ramp: list[float]) -> Tensor:
    """(2, 77, C): the empty text (1, 77, C), and with the picture's embedding (1, C) growing along it."""
    return torch.cat([text, text + torch.tensor(ramp).double()[:, None] * picture])


def trailing(steps: int) -> list[int]:
    return [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]


def ddim(predict, x: Tensor, steps: int, to_one: bool) -> list[Tensor]:
    """States after each step of DDIM from unit noise; `predict(k, x, t)` is the guided v of step k."""
    bars, states = alpha_bars(), []
    for k, t in enumerate(trailing(steps)):
        v = predict(k, x, t)
        x0, eps = bars[t].sqrt() * x - (1 - bars[t]).sqrt() * v, bars[t].sqrt() * v + (1 - bars[t]).sqrt() * x
        last = torch.ones(()).double() if to_one else bars[0]
        to = bars[t - 1000 // steps] if t >= 1000 // steps else last
        x = to.sqrt() * x0 + (1 - to).sqrt() * eps
        states.append(x)
    return states


def euler(predict, x: Tensor, steps: int, draws: list[Tensor] | None = None) -> list[Tensor]:
    """States after each step of Euler's method from unit noise, ancestral with `draws`, one a step."""
    bars, levels, states = alpha_bars(), trailing(steps), []
    sigmas = [((1 - bars[t]) / bars[t]).sqrt() for t in levels] + [torch.zeros(()).double()]
    x = x * sigmas[0]
    for k, (t, sigma, to) in enumerate(zip(levels, sigmas, sigmas[1:], strict=False)):
        scale = (1 + sigma**2).sqrt()
        x0 = x / scale**2 - sigma / scale * predict(k, x / scale, t)
        up = to * (1 - to**2 / sigma**2).sqrt() if draws else 0 * to
        x = x + (x - x0) / sigma * ((to**2 - up**2).sqrt() - sigma) + (up * draws[k] if draws else 0)
        states.append(x)
    return states


def to_vae(z: Tensor) -> Tensor:
    """The model's latents -> those of the VAE."""
    return (z / 0.75 + 0.22) / 0.18215
