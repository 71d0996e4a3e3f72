"""The multi-view U-Net: whole calls, what every block gives, single modules, camera codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.nn.blocks import orbit_code, timestep_embedding
from dd3g.nn.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from dd3g.nn.unet_blocks import Downsample, UNetResidual, UNetTransformer, Upsample
from tools.goldens.golden import CALL, PART, Compared, Golden, recorded

LEVEL, ELEVATION = 441, 5.0  # of the calls, where the .json names no others
TOKENS = (77, 257)  # of a caption and of a picture
LEVELS = (1, 21, 500, 999)  # of the embedding of time
_CAMERA = re.compile(r"(\d+)\.(-?\d+(?:\.\d+)?)\.(-?\d+(?:\.\d+)?)")  # views, elevation, azimuth


def make_unet(golden: Golden, config: dict[str, Any], shapes: dict[str, list[int]]) -> MultiViewUNet:
    """The network of a config, with the made-up weights."""
    image_dim = shapes.get("image_embed.proj_in.weight", (0, MultiViewUNetConfig.image_dim))[1]
    unet = MultiViewUNet(MultiViewUNetConfig(**known_options(config), image_dim=image_dim))
    unet.load_state_dict(golden.state(shapes))
    return unet.to(golden.dtype)


def known_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options that we know; what others change would show in the shapes or the answers."""
    known = set(MultiViewUNetConfig.__dataclass_fields__) - {"image_dim"}
    return {name: value for name, value in config.items() if name in known}


def orbit(views: int, elevation: float, azimuth: float = 0.0) -> Tensor:
    """(V, 16) camera codes from their azimuth `azimuth` on, which is this project's plus 90."""
    azimuths = [azimuth - 90 + 360 * i / views for i in range(views)]
    return orbit_code(Cameras.orbit(azimuths, elevation))


def check(golden: Golden) -> Iterator[Compared]:
    """Compare all arrays of the file."""
    for name, rest in golden.named("camera."):
        views, elevation, azimuth = _CAMERA.fullmatch(rest).groups()  # type: ignore[union-attr]
        yield golden.compare(name, orbit(int(views), float(elevation), float(azimuth)), PART)
    if "config" in golden.about or "config_text" not in golden.about:
        unet = make_unet(golden, golden.about["config"], golden.about["shapes"])
        yield from _calls(golden, unet)
        yield from _parts(golden, unet)
    if "text.out" in golden:
        unet = make_unet(golden, golden.about["config_text"], golden.about["shapes_text"])
        yield golden.compare("text.out", _text_call(golden, unet), CALL)


def _calls(golden: Golden, unet: MultiViewUNet) -> Iterator[Compared]:
    """Guided batches, the unconditional half first, with what the blocks of the first one give."""
    c = unet.config
    context = unet.context(golden.normal("context", (2, TOKENS[0], c.context_dim)), _pictures(golden, c))
    given = recorded(unet, (rest for _, rest in golden.named("probe.")))
    for name, rest in sorted(golden.named("out")):
        frames, *size = golden[name].shape
        x = golden.normal(f"x{rest}", (frames, *size)).unflatten(0, (2, frames // 2))
        if c.ip_dim:
            x[:, -1] = torch.stack([torch.zeros(size), golden.normal(f"ip_img{rest}", (1, *size))[0]])
        yield golden.compare(name, _call(golden, unet, x, context, clean=c.ip_dim > 0), CALL)
    for name, rest in golden.named("probe."):
        if not given[rest]:
            continue  # no call is held
        values = given[rest][0].float().numpy().ravel()
        count = len(golden[name]) - 2
        found = [values.mean(), values.std(), *values[:: len(values) // count][:count]]
        yield golden.compare(name, np.array(found), CALL)


def _pictures(golden: Golden, config: MultiViewUNetConfig) -> Tensor | None:
    """(2, L, D) the image encoder's tokens of no picture, and of one; None for a network that sees none."""
    if not config.ip_dim:
        return None
    tokens = golden.normal("ip", (1, TOKENS[1], config.image_dim))
    return torch.cat([torch.zeros_like(tokens), tokens])


def _call(golden: Golden, unet: MultiViewUNet, x: Tensor, context: Any, clean: bool) -> Tensor:
    views = x.shape[1] - clean
    codes = orbit(views, golden.about.get("elevation", ELEVATION))
    cameras = torch.cat([codes, torch.zeros(int(clean), 16)])
    t = torch.full((len(x),), golden.about.get("t", LEVEL))
    return unet(x, t, cameras.expand(len(x), -1, -1), context).flatten(0, 1)


def _text_call(golden: Golden, unet: MultiViewUNet) -> Tensor:
    """Without a picture: the frames of `x` but for each half's last."""
    frames = len(golden["text.out"]) + 2
    x = golden.normal("x", (frames, *golden["text.out"].shape[1:])).unflatten(0, (2, frames // 2))[:, :-1]
    context = unet.context(golden.normal("context", (2, TOKENS[0], unet.config.context_dim)))
    return _call(golden, unet, x, context, clean=False)


def _parts(golden: Golden, unet: MultiViewUNet) -> Iterator[Compared]:
    """Single modules; what is not one of the first few is named as in the network."""
    c, dtype = unet.config, unet.dtype
    sinusoid = timestep_embedding(torch.tensor(LEVELS), c.model_channels).to(dtype)
    pictures = _pictures(golden, c)
    for name, rest in golden.named("part."):
        shape = golden[name].shape
        if rest == "sinusoid":
            found = sinusoid
        elif rest == "time_embed":
            found = unet.time_embed(sinusoid)
        elif rest == "camera_embed":
            codes = orbit(shape[0] - 1, golden.about.get("elevation", ELEVATION))
            found = unet.camera_embed(torch.cat([codes, torch.zeros(1, 16)]).to(dtype))
        elif rest == "image_embed" and pictures is not None:
            found = unet.image_embed(pictures.to(dtype))
        elif rest in ("block", "attn2", "ff"):
            found = _of_block(golden, unet, rest, shape)
        else:
            found = _module(golden, unet, rest, shape)
        yield golden.compare(name, found, PART)


def _of_block(golden: Golden, unet: MultiViewUNet, part: str, shape: tuple[int, ...]) -> Tensor:
    """The first transformer's block, or a part of it, on tokens of several frames."""
    transformer: Any = unet.get_submodule("input_blocks.1.1")
    block = transformer.transformer_blocks[0]
    tokens = golden.normal("part.tokens", shape).to(unet.dtype)
    if part == "ff":
        return block.ff(tokens)
    kv = _context(golden, transformer, unet, shape[0])[transformer.first]
    if part == "attn2":
        return block.attn2(tokens, kv)
    return block(tokens.flatten(0, 1)[None], kv).reshape(shape)  # attention goes over all frames


def _module(golden: Golden, unet: MultiViewUNet, name: str, shape: tuple[int, ...]) -> Tensor:
    """A module's answer to maps of several frames; `small` ones tell the epsilons of the norms apart."""
    small, path = name.startswith("small."), name.removeprefix("small.")
    module = unet.get_submodule(path)
    channels = next(p for p in module.parameters() if p.dim() > 1).shape[1]
    source, side = "part.h1", 8
    if isinstance(module, Upsample):
        source, side = "part.h3", shape[-1] // 2
    elif isinstance(module, Downsample):
        side = 2 * shape[-1]
    elif not path.startswith("input_blocks.1."):
        source, side = "part.h2", shape[-1]
    x = golden.normal(source, (shape[0], channels, side, side)).to(unet.dtype)
    emb = golden.normal("emb", (shape[0], 4 * unet.config.model_channels)).to(unet.dtype)
    if small:
        x, emb = x * 0.003, emb * 0
    if isinstance(module, UNetResidual):
        return module(x, emb)
    if isinstance(module, UNetTransformer):
        return module(x, shape[0], _context(golden, module, unet, shape[0]))
    return module(x)


def _context(golden: Golden, transformer: UNetTransformer, unet: MultiViewUNet, frames: int) -> list[Any]:
    """The context of one transformer, another one for each frame; its place in the network's is kept."""
    c = unet.config
    tokens = golden.normal("part.context", (frames, TOKENS[0] + c.ip_dim, c.context_dim)).to(unet.dtype)
    text, image = tokens.split([TOKENS[0], c.ip_dim], 1)
    return [None] * transformer.first + transformer.context(text, image if c.ip_dim else None)
