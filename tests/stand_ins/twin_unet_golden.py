"""The arrays of `unet_mvdream` by the plain twin, named as in the authors' file."""

from __future__ import annotations

from typing import Any

import torch
from stand_ins import plain_blocks, plain_mvdream
from torch import Tensor

from tools.goldens import made_up

INNER = "input_blocks.1.1.transformer_blocks.0"


def drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A made-up input, rounded to float32 as the authors' are."""
    return torch.from_numpy(made_up.normal(name, shape, seed)).float().double()


def weights(like: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Made-up ones by name, of the shapes of a manifest or of other tensors."""
    shapes = {name: tuple(getattr(v, "shape", v)) for name, v in like.items()}
    return {k: torch.from_numpy(made_up.weight(k, s, seed)).double() for k, s in shapes.items()}


def cameras(views: int, elevation: float, azimuth: float = 0.0) -> Tensor:
    return plain_mvdream.camera_rows(elevation, [azimuth + 360 * v / views for v in range(views)])


def unet_arrays(about: dict[str, Any], seed: int, views: int, side: int) -> dict[str, Tensor]:
    """All arrays of a network with a picture, `about` as in the .json file."""
    config, w, frames = about["config"], weights(about["shapes"], seed), views + 1
    head, ip = config["num_head_channels"], config["ip_dim"]
    clip = drawn("ip", (1, 257, w["image_embed.proj_in.weight"].shape[1]), seed)
    pictures = plain_mvdream.image_embed(w, torch.cat([clip * 0, clip]))
    text = drawn("context", (2, 77, config["context_dim"]), seed)
    context = torch.cat([text, pictures], 1).repeat_interleave(frames, 0)
    rows = torch.cat([cameras(views, 5.0), torch.zeros(1, 16).double()])
    x = drawn("x", (2 * frames, 4, side, side), seed)
    noisy, level = x.clone(), torch.full((2 * frames,), 441)
    noisy[views], noisy[-1] = 0, drawn("ip_img", (1, 4, side, side), seed)[0]
    given: dict[str, Tensor] = {}
    out = plain_mvdream.unet(w, noisy, level, context, rows.repeat(2, 1), frames, head, ip, given)
    found = {"out": out, "part.image_embed": pictures}
    for name, h in given.items():
        values = h.flatten()
        kept = values[:: len(values) // 62][:62]
        found[f"probe.{name}"] = torch.stack([values.mean(), values.std(correction=0), *kept])
    noise = x.unflatten(0, (2, frames))[:, :views].flatten(0, 1)
    words, w_text = text.repeat_interleave(views, 0), weights(about["shapes_text"], seed)
    found["text.out"] = plain_mvdream.unet(
        w_text, noise, level[: len(noise)], words, rows[:views].repeat(2, 1), views, head
    )
    for elevation, azimuth in ((20.0, 45.0), (-12.5, 0.0)):
        found[f"camera.{views}.{elevation:g}.{azimuth:g}"] = cameras(views, elevation, azimuth)
    return found | parts(w, config, rows, seed)


def parts(w: dict[str, Tensor], config: dict[str, Any], rows: Tensor, seed: int) -> dict[str, Tensor]:
    """Single modules on inputs of their own, of as many frames as there are `rows`."""
    width, head, ip = config["model_channels"], config["num_head_channels"], config["ip_dim"]
    frames = len(rows)
    h = drawn("part.h1", (frames, width, 8, 8), seed)
    emb = drawn("emb", (frames, 4 * width), seed)
    context = drawn("part.context", (frames, 77 + ip, config["context_dim"]), seed)
    tokens = drawn("part.tokens", (frames, 12, width), seed)
    times = plain_blocks.sinusoid(torch.tensor([1, 21, 500, 999]), width)
    found = {
        "sinusoid": times,
        "time_embed": plain_mvdream.two_layers(w, "time_embed", times),
        "camera_embed": plain_mvdream.two_layers(w, "camera_embed", rows),
        "block": plain_mvdream.block(w, INNER, tokens, context, frames, width // head, ip),
        "attn2": plain_mvdream.cross_attention(w, f"{INNER}.attn2", tokens, context, width // head, ip),
        "ff": plain_blocks.feed_forward(w, f"{INNER}.ff", tokens),
    }
    for small, gain in (("", 1.0), ("small.", 0.003)):
        e = emb * (gain == 1)
        found[f"{small}input_blocks.1.0"] = plain_mvdream.resblock(w, "input_blocks.1.0", gain * h, e)
        found[f"{small}input_blocks.1.1"] = plain_mvdream.transformer(
            w, "input_blocks.1.1", gain * h, context, frames, head, ip
        )
    return {f"part.{name}": array for name, array in found.items()}
