"""Zero123++ v1.1 and v1.2 as published: six views of a pictured object, drawn on one canvas."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.diffusion import Prediction
from dd3g.errors import UserError, first_line
from dd3g.fingerprint import fingerprint, folder_fingerprint
from dd3g.hub_models import HUB_MODELS
from dd3g.nn.blocks import AttentionKernel
from distill.teachers.latents import (
    LatentCodec,
    LatentTeacher,
    TextEncoder,
    bilinear,
    clip_pixels,
    crop_size,
    levels,
    pixels,
)
from distill.teachers.published import Source, load_part, load_schedule, read_json

ROWS, COLUMNS = 3, 2
AZIMUTHS = [30.0, 90.0, 150.0, 210.0, 270.0, 330.0]  # from the input's, row by row
ELEVATIONS = {"1.1": (30.0, -20.0), "1.2": (20.0, -10.0)}  # of every other view, whatever the input's
# With this field of view an object is as large as in the project's own rig from this distance.
FOVY, RADIUS = 30.0, 2.557
SEED = 0  # of the reference noise
GREY = 127  # under the condition picture, in 255ths; its mean and deviation follow
MEAN, STD = (0.5, 0.5, 0.5), (0.8, 0.8, 0.8)
SHIFT, GAIN, CONTRAST = 0.22, 0.75, 0.625  # of latents, and of the pixels that the VAE sees


@dataclass(frozen=True)
class Zero123PlusCondition:
    """What does not change from step to step; computed once a picture."""

    context: dict[str, tuple[Tensor, Tensor]]  # keys and values (B, 77, D) of each cross-attention
    blank: dict[str, tuple[Tensor, Tensor]]  # likewise (1, 77, D), without the picture
    latent: Tensor  # (B, C, h', w') of the picture, not scaled
    blank_latent: Tensor  # (1, C, h', w') of nothing
    half: int = 1  # which of the two reference noises it takes

    def null(self) -> Zero123PlusCondition:
        """The unconditional form."""
        B = len(self.latent)
        blank = {name: (k.expand(B, -1, -1), v.expand(B, -1, -1)) for name, (k, v) in self.blank.items()}
        return replace(self, context=blank, latent=self.blank_latent.expand_as(self.latent), half=0)


class CanvasCodec(LatentCodec):
    """Six views, three rows of two on one canvas <-> its latent, cut into six again."""

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA, or RGB, (..., 6, 4 or 3, S, S) in 0..1, over the ground -> (..., 6, C, h, w)."""
        rgb = rgba[..., :3, :, :]
        if rgba.shape[-3] == 4:
            rgb = rgb * rgba[..., 3:, :, :] + self.ground * (1 - rgba[..., 3:, :, :])
        canvas = joined(rgb)
        z = self.mode(CONTRAST * (2 * canvas.reshape(-1, *canvas.shape[-3:]) - 1))
        z = parted((z * self.scale - SHIFT) * GAIN)  # (N, 6, C, h, w)
        return z.reshape(*rgba.shape[:-3], *z.shape[-3:])

    def decode(self, latent: Tensor) -> Tensor:
        """(..., 6, C, h, w) -> RGB (..., 6, 3, S, S) in 0..1."""
        whole = joined(latent)
        views = parted(self.canvas(whole.reshape(-1, *whole.shape[-3:])))  # (N, 6, 3, S, S)
        return views.reshape(*latent.shape[:-3], *views.shape[-3:])

    def canvas(self, latent: Tensor) -> Tensor:
        """The whole latent (N, C, 3h, 2w) -> RGB (N, 3, 3S, 2S) in 0..1."""
        rgb = self.picture((latent / GAIN + SHIFT) / self.scale) / CONTRAST
        return (rgb / 2 + 0.5).clamp(0, 1)

    ground = GREY / 255


class ReferenceAttention:
    """Attention of all blocks of diffusers' UNet2DConditionModel, whose processors it replaces.

    Zero123++ runs the noised condition picture through the network, too (section 2.1). Self-attention keeps
    what it is given in that pass, and has it as further keys and values in the other. Cross-attention takes
    keys and values that were computed once. `attend` of the U-Net is that of all of them.
    """

    def __init__(self, unet: Any) -> None:
        self.kept: dict[str, Tensor] = {}  # block -> the reference's tokens (N, L', D)
        self.keeping = False
        self.attend = unet.attend = AttentionKernel()
        self.context: dict[str, tuple[Tensor, Tensor]] = {}
        names = [name.removesuffix(".processor") for name in unet.attn_processors]
        self._cross = {name: unet.get_submodule(name) for name in names if name.endswith("attn2")}
        unet.set_attn_processor({f"{name}.processor": partial(self._attended, name) for name in names})

    def key_values(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys and values of every cross-attention, of tokens (N, M, D)."""
        return {name: (attn.to_k(tokens), attn.to_v(tokens)) for name, attn in self._cross.items()}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The reference's pass: tokens are kept."""
        self.kept, self.keeping = {}, True
        try:
            yield
        finally:
            self.keeping = False

    def _attended(self, name: str, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The processor of one attention: tokens (N, L, D) -> (N, L, D)."""
        x = seen = hidden_states
        if name in self.context:
            k, v = self.context[name]
        else:
            if self.keeping:
                self.kept[name] = x
            elif name in self.kept:
                seen = torch.cat([x, self.kept[name]], 1)
            k, v = attn.to_k(seen), attn.to_v(seen)
        q, k, v = (a.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for a in (attn.to_q(x), k, v))
        return attn.to_out[0](self.attend(q, k, v).transpose(1, 2).flatten(2))


class Zero123PlusTeacher(LatentTeacher):
    """Zero123++ (arXiv 2310.15110): latent diffusion of a canvas of six views, v-prediction.

    None of its views is the input's. They are RGB on grey, or on white with the U-Net of InstantMesh.

    Args:
        source: of a folder in the published layout.
        dtype: of the weights.
        white_unet: of InstantMesh's U-Net, which takes the place of the folder's and draws on white.
        version: "1.1" or "1.2", which decides the cameras; empty: by the folder's name.
        sides: pixels of the condition picture for the VAE and for CLIP; None: those of the folder.
        size: pixels of a view.

    Raises:
        UserError: when a part is missing or does not fit.
    """

    prediction: Prediction = "v"
    default_guidance = 4.0
    codec: CanvasCodec
    ramp: Tensor  # (77,) share of the picture's embedding in each token
    reference_noise: Tensor  # (2, C, h', w') of the unconditional half and of the other

    def __init__(
        self,
        source: Source,
        dtype: torch.dtype,
        white_unet: Source | None = None,
        *,
        version: str = "",
        sides: tuple[int, int] | None = None,
        size: int = 320,
    ) -> None:
        super().__init__()
        folder, version = source.folder, version or _version(source)
        if version not in ELEVATIONS:
            raise UserError(f"Zero123++ {version} is not known: give version {' or '.join(ELEVATIONS)}")
        ramp = read_json(folder / "model_index.json").get("ramping_coefficients")
        if not isinstance(ramp, list) or len(ramp) != 77 or not all(isinstance(r, int | float) for r in ramp):
            raise UserError(
                f"{folder}/model_index.json has no 77 ramping_coefficients: it is not of Zero123++"
            )
        self.unet = load_part("diffusers.UNet2DConditionModel", folder / "unet", dtype)
        self.identity = folder_fingerprint(folder)
        self.about = {"teacher": "zero123plus", "version": version, "reference_seed": SEED, **source.about}
        if white_unet is not None:
            self.identity += _replace_weights(self.unet, white_unet.folder, dtype)
            self.about |= {f"unet_{key}": value for key, value in white_unet.about.items()}
        if version == "1.2" and not source.notice:  # a copy whose name does not tell its origin
            known = HUB_MODELS["zero123plus"]
            self.about |= {"licence": known.licence, "notice": known.notice}
            print(f"warning: {folder}: {known.notice}", file=sys.stderr)
        self.codec = codec = CanvasCodec(load_part("diffusers.AutoencoderKL", folder / "vae", dtype), 0)
        self.text = TextEncoder(load_part("transformers.CLIPTextModel", folder / "text_encoder", dtype))
        vision = "transformers.CLIPVisionModelWithProjection"
        self.image = load_part(vision, folder / "vision_encoder", dtype)
        # Deterministic moves end at the clean sample; the file's scheduler would leave 3 % of noise.
        ends = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
        self.schedule = load_schedule(folder, "v_prediction", **ends)
        self.attention = ReferenceAttention(self.unet)
        self.sides = sides or (
            crop_size(folder / "feature_extractor_vae", 512),
            crop_size(folder / "feature_extractor_clip", 224),
        )
        self.version, self.size, self.picture_size = version, size, self.sides[0]
        self.background = codec.ground = 1.0 if white_unet else GREY / 255
        self.register_buffer("ramp", torch.tensor(ramp, dtype=torch.float32), persistent=False)
        side, channels = self.sides[0] // codec.factor, self.unet.config.in_channels
        noise = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(SEED))
        self.register_buffer("reference_noise", noise, persistent=False)
        side = size // codec.factor
        self.latent_shape = (len(AZIMUTHS), channels, side, side)
        elevations = [ELEVATIONS[version][i % 2] for i in range(len(AZIMUTHS))]
        rig = Cameras.orbit(AZIMUTHS, elevations, size, RADIUS, FOVY)
        self.rig = replace(rig, near=RADIUS - 1, far=RADIUS + 1)
        self.requires_grad_(False).eval()

    @property
    def fingerprint(self) -> str:
        """Hash of weights, number format and options."""
        options = (self.version, self.background, SEED, self.size, self.sides)
        return fingerprint(self.identity, str(self.unet.dtype), repr(options))

    @torch.no_grad()
    def condition(
        self, rgba: Tensor, cameras: Cameras | None = None, captions: Sequence[str] | None = None
    ) -> Zero123PlusCondition:
        """As `Teacher.condition`; cameras are the rig's or None, and captions are not looked at."""
        if cameras is not None and not torch.allclose(
            cameras.viewmats, self.rig.viewmats.to(cameras.viewmats), atol=1e-4
        ):
            raise UserError("Zero123++ draws from its own cameras alone: leave other cameras out")
        pictures = self.on_ground(levels(rgba.to(self.device), truncate=False))
        pixel = pixels(pictures, self.sides[0], bilinear, MEAN, STD)
        seen = clip_pixels(pictures, self.sides[1]).to(self.unet.dtype)
        tokens = self.tokens(self.image(pixel_values=seen).image_embeds)
        key_values = self.attention.key_values
        blank = self.once("blank", lambda: key_values(self.caption()))
        nothing = self.once("nothing", lambda: self.codec.mode(torch.zeros_like(pixel[:1])))
        return Zero123PlusCondition(key_values(tokens), blank, self.codec.mode(pixel), nothing)

    def tokens(self, embeds: Tensor) -> Tensor:
        """CLIP's embeddings (B, D) -> tokens (B, 77, D): the empty caption's with each picture."""
        return self.caption() + self.ramp.to(embeds)[:, None] * embeds[:, None]

    def on_ground(self, shades: Tensor) -> Tensor:
        """Levels (B, 4, S, S) -> (B, 3, S, S), on the ground that the network was trained with."""
        alpha = shades[:, 3:]
        mixed = shades[:, :3] * alpha + round(self.background * 255) * (255 - alpha)
        return (mixed / 255).round()

    def forward(self, x_t: Tensor, t: Tensor, condition: Zero123PlusCondition) -> Tensor:
        """Noisy latents (B, 6, C, h, w) at levels t (B,) -> v; a call on the noised picture comes first."""
        dtype = self.unet.dtype
        noise = self.reference_noise[condition.half].expand_as(condition.latent)
        reference = self.schedule.add_noise(condition.latent, noise, t)
        tokens = next(iter(condition.context.values()))[0]  # only its presence is looked at
        self.attention.context = condition.context
        with self.attention.reference():
            self.unet(reference.to(dtype), t, encoder_hidden_states=tokens)
        v = self.unet(joined(x_t).to(dtype), t, encoder_hidden_states=tokens).sample
        return parted(v).to(x_t.dtype)


def joined(views: Tensor) -> Tensor:
    """(..., 6, C, h, w), row by row -> (..., C, 3h, 2w)."""
    rows = views.unflatten(-4, (ROWS, COLUMNS)).movedim(-3, -5)  # (..., C, 3, 2, h, w)
    return rows.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def parted(canvas: Tensor) -> Tensor:
    """The inverse of `joined`."""
    tiles = canvas.unflatten(-1, (COLUMNS, -1)).unflatten(-3, (ROWS, -1))  # (..., C, 3, h, 2, w)
    return tiles.transpose(-3, -2).movedim(-5, -3).flatten(-5, -4)


def _version(source: Source) -> str:
    """Which release a folder holds, by its name or its place in the hub's cache; its files do not say."""
    place = str(source.folder.resolve())
    named = re.search(r"v(1\.[12])", source.name) or re.search(r"zero123[^/]*v(1\.[12])", place)
    if named:
        return named.group(1)
    print(
        f"warning: {source.folder} is taken for Zero123++ v1.2, whose cameras differ from those of v1.1: put "
        "v1.1 or v1.2 into the folder's name",
        file=sys.stderr,
    )
    return "1.2"


def _replace_weights(network: nn.Module, folder: Path, dtype: torch.dtype) -> str:
    """Load a folder's file of weights into a network; returns the file's fingerprint.

    InstantMesh's is a pickle, of which torch reads the tensors alone.
    """
    path = folder / "diffusion_pytorch_model.safetensors"
    if not path.is_file():
        path = path.with_suffix(".bin")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        network.load_state_dict({k: v.to(dtype) for k, v in state.items()})
    except Exception as error:  # each format raises errors of its own
        raise UserError(f"{path} holds no weights of this network ({first_line(error)})") from error
    sample = [v.flatten()[:1024].float().numpy().tobytes() for _, v in sorted(state.items())]
    return fingerprint(path.name, *sample)
