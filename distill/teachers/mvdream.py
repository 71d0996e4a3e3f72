"""ImageDream and MVDream as published: four views around an object, of a picture or of a caption alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.diffusion import Prediction
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint, folder_fingerprint
from dd3g.nn.blocks import orbit_code
from dd3g.nn.multiview_unet import MultiViewUNet
from dd3g.nn.unet_blocks import KeyValues
from distill.pictures import on_white
from distill.teachers.latents import (
    LatentCodec,
    LatentTeacher,
    TextEncoder,
    clip_pixels,
    levels,
    load_tokenizer,
)
from distill.teachers.published import Source, load_part, load_schedule, load_unet

VIEWS = 4  # with which the published weights were trained
SUFFIX = ", 3d asset"  # that MVDream's captions ended with in its training


@dataclass(frozen=True)
class MVDreamCondition:
    """What does not change from step to step; computed once a picture."""

    context: list[KeyValues]  # of caption and picture, (B, heads, M, d) each
    blank: list[KeyValues]  # of the negative caption and no picture, (1, heads, M, d) each
    codes: Tensor  # (B, F, 16) of the cameras; zeros for the clean frame
    clean: Tensor | None  # (B, 1, C, h, w) the picture's latent, the last frame; None for MVDream

    def null(self) -> MVDreamCondition:
        """The unconditional form: the negative caption, no picture, the same cameras."""
        B = len(self.codes)
        blank = [kv.expand(B) for kv in self.blank]
        clean = None if self.clean is None else torch.zeros_like(self.clean)
        return replace(self, context=blank, clean=clean)


class MVDreamTeacher(LatentTeacher):
    """ImageDream (arXiv 2312.02201), or MVDream (arXiv 2308.16512) where its U-Net sees no picture.

    Latent diffusion, eps-prediction. View 0 is the input's. The views are RGB on white, if the picture was.

    The rig's elevation, in degrees, must be the input's: the picture has no camera of its own.

    Raises:
        UserError: when a part is missing or does not fit.
    """

    prediction: Prediction = "eps"
    follows_elevation = True
    negative = ""  # caption of the unconditional half
    unet: MultiViewUNet

    def __init__(self, source: Source, dtype: torch.dtype, elevation: float | None = None) -> None:
        super().__init__()
        folder = source.folder
        self.unet = load_unet(folder / "unet", dtype)
        channels, side = self.unet.config.in_channels, self.unet.config.image_size
        self.codec = LatentCodec(load_part("diffusers.AutoencoderKL", folder / "vae", dtype), side)
        self.text = TextEncoder(
            load_part("transformers.CLIPTextModel", folder / "text_encoder", dtype),
            load_tokenizer(folder / "tokenizer"),
        )
        if sees_picture := bool(self.unet.config.ip_dim):
            self.image = load_part("transformers.CLIPVisionModel", folder / "image_encoder", dtype)
        self.schedule, self.identity = load_schedule(folder, "epsilon"), folder_fingerprint(folder)
        kind = "imagedream" if sees_picture else "mvdream"
        self.about = {"teacher": kind, **source.about, "weights": self.identity}
        self.sees_picture = sees_picture
        self.elevation = (0.0 if sees_picture else 15.0) if elevation is None else elevation
        self.default_guidance = 5.0 if sees_picture else 7.5
        self.picture_size = self.codec.size
        self.latent_shape = (VIEWS, channels, side, side)  # the clean frame has no noise
        self.rig = self.rig_at(self.elevation)
        self.requires_grad_(False).eval()

    def rig_at(self, elevation: float) -> Cameras:
        """(V,) cameras at even azimuths from the input's, for a picture from this elevation, in degrees."""
        return Cameras.orbit([360 * v / VIEWS for v in range(VIEWS)], elevation, self.picture_size)

    @property
    def fingerprint(self) -> str:
        """Hash of weights, number format and options; the elevation belongs to each picture."""
        return fingerprint(self.identity, str(self.unet.dtype), repr((VIEWS, self.negative)))

    @torch.no_grad()
    def condition(
        self, rgba: Tensor, cameras: Cameras | None = None, captions: Sequence[str] | None = None
    ) -> MVDreamCondition:
        """As `Teacher.condition`; cameras stand at the input view's elevation.

        MVDream does not look at pictures and needs captions, for ImageDream None means no caption.
        """
        B, device = len(rgba), self.device
        captions = [""] * B if captions is None else list(captions)
        if len(captions) != B:
            raise ValueError(f"{B} pictures need as many captions, got {len(captions)}")
        if not self.sees_picture:
            if not all(captions):
                raise UserError("MVDream draws what a caption says: give each picture a caption")
            captions = [c if c.endswith(SUFFIX) else c + SUFFIX for c in captions]
        codes = orbit_code((self.rig if cameras is None else cameras).to(device)).expand(B, -1, 16)
        # Without captions, as in a training step, nothing of this is computed or copied again.
        text = self.text(captions) if any(captions) else self.caption().expand(B, -1, -1)
        tokens = self.image_tokens(rgba.to(device)) if self.sees_picture else None

        def blank() -> list[KeyValues]:
            nothing = None if tokens is None else torch.zeros_like(tokens[:1])
            return self.unet.context(self.caption(self.negative), nothing)

        context = self.unet.context(text, tokens), self.once(f"blank {self.negative}", blank)
        if not self.sees_picture:
            return MVDreamCondition(*context, codes, None)
        codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], 1)
        return MVDreamCondition(*context, codes, self.codec.encode(rgba.to(device))[:, None])

    def image_tokens(self, rgba: Tensor) -> Tensor:
        """Straight RGBA (B, 4, S, S) -> the image encoder's last tokens but one (B, L, D)."""
        seen = clip_pixels(levels(on_white(rgba), truncate=True), self.image.config.image_size)
        return self.image(pixel_values=seen.to(self.image.dtype), output_hidden_states=True).hidden_states[-2]

    def forward(self, x_t: Tensor, t: Tensor, condition: MVDreamCondition) -> Tensor:
        """Noisy latents (B, V, C, h, w) at levels t (B,), as the clean frame too -> predicted noise."""
        V = x_t.shape[1]
        x = x_t if condition.clean is None else torch.cat([x_t, condition.clean.to(x_t)], 1)
        return self.unet(x, t, condition.codes, condition.context)[:, :V]
