"""The compact teacher: ImageDream's shape at the size of a laptop, in pixels.

Four views are denoised together with the clean input as a fifth frame whose camera is all zeros. Each block
attends jointly over the tokens of all frames and to the picture's tokens. Space-to-depth stands in for a VAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.diffusion import Prediction, Schedule
from dd3g.fingerprint import fingerprint
from dd3g.nn.blocks import (
    MultiViewTrunk,
    PictureEncoder,
    camera_code,
    correspond,
    correspond_rgba,
    timestep_embedding,
)
from dd3g.nn.checkpoint import build, load_weights, read_config, save_folder
from distill.config import CompactConfig
from distill.pictures import on_white
from distill.teachers.protocol import Teacher


@dataclass
class CompactCondition:
    """What the denoiser knows of the picture; an empty one stands for the unconditional branch."""

    image: Tensor  # (B, 4, S, S) straight RGBA
    cameras: Cameras  # (B, V) relative to the input view

    def null(self) -> CompactCondition:
        """The unconditional form: an empty picture, the same cameras."""
        return CompactCondition(torch.zeros_like(self.image), self.cameras)


class SpaceToDepth:
    """Codec: RGBA pixels <-> (64, S/4, S/4) latents; colour over white and alpha, both mapped to -1..1."""

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA (..., 4, S, S) -> (..., 64, S/4, S/4)."""
        return F.pixel_unshuffle(2 * torch.cat([on_white(rgba), rgba[..., 3:, :, :]], -3) - 1, 4)

    def decode(self, latent: Tensor) -> Tensor:
        """(..., 64, S/4, S/4) -> straight RGBA (..., 4, S, S) in 0..1."""
        x = ((F.pixel_shuffle(latent, 4) + 1) / 2).clamp(0, 1)
        over_white, alpha = x[..., :3, :, :], x[..., 3:, :, :]
        rgb = ((over_white - (1 - alpha)) / alpha.clamp(min=1e-3)).clamp(0, 1)
        return torch.cat([rgb, alpha], -3)


class CompactTeacher(Teacher):
    """Multi-view pixel diffusion, x0-prediction, cosine schedule."""

    prediction: Prediction = "x0"
    about = {"teacher": "compact", "licence": "Apache-2.0"}

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or CompactConfig()
        self.codec = SpaceToDepth()
        self.latent_shape, self.picture_size = (c.views, 64, c.size // 4, c.size // 4), c.size
        self.default_steps, self.default_guidance = c.steps, c.guidance_scale
        with torch.device("cpu"):  # numbers, even where the weights are only shapes
            self.rig = Cameras.default_rig(c.size, c.views)
            self.schedule = Schedule.from_config(
                {
                    "beta_schedule": "squaredcos_cap_v2",
                    "num_train_timesteps": 1000,
                    "prediction_type": "sample",
                    "timestep_spacing": "trailing",
                }
            )
        self.picture = PictureEncoder(c.width, c.size, c.fine, c.mid)
        self.stem = nn.Conv2d(64 + 112, c.mid, 3, padding=1)
        self.prior = nn.Conv2d(c.mid, c.mid, 1)
        self.down = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * c.mid, c.width, 1))
        self.coarse_prior = nn.Conv2d(c.width, c.width, 1)
        self.time = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.camera = nn.Sequential(nn.Linear(16, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.trunk = MultiViewTrunk(c.width, c.depth, c.heads, c.width, c.residual_hidden)
        self.up = nn.Sequential(nn.Conv2d(c.width, 4 * c.mid, 1), nn.PixelShuffle(2))
        self.out = nn.Sequential(
            nn.Conv2d(3 * c.mid + 112, c.mid, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c.mid, c.mid, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c.mid, 64, 3, padding=1),
        )
        nn.init.zeros_(self.out[-1].get_parameter("weight"))
        nn.init.zeros_(self.out[-1].get_parameter("bias"))

    def forward(self, x_t: Tensor, t: Tensor, condition: CompactCondition) -> Tensor:
        """Noisy latents (B, V, 64, S/4, S/4) at levels t (B,), or one for all -> predicted x0."""
        B, V = x_t.shape[:2]
        t = torch.as_tensor(t, device=x_t.device).expand(B)
        _, mid, coarse, pooled = self.picture(condition.image)
        azimuths = condition.cameras.azimuths.expand(B, V)
        # What the picture says of each view: its pixels copied, mirrored or averaged along rows. The last
        # frame is the picture itself. The network predicts the change of colour and alpha, each in logits, so
        # that x0 is always a picture over white.
        image = condition.image[:, None]
        spread = torch.cat([correspond_rgba(condition.image, azimuths), image], 1)  # (B, V+1, 4, S, S)
        prior_x0 = self.codec.encode(spread)  # (B, V+1, 64, s, s)
        pixels = torch.cat([prior_x0, F.pixel_unshuffle(spread[:, :, :3], 4)], 2)  # (B, V+1, 112, s, s)
        prior = torch.cat([correspond(mid, azimuths), mid[:, None]], 1)  # (B, V+1, m, s, s)
        coarse_prior = torch.cat([correspond(coarse, azimuths), coarse[:, None]], 1)

        frames = torch.cat([torch.cat([x_t, prior_x0[:, V:]], 1), pixels], 2).flatten(0, 1)
        stem = self.stem(frames) + self.prior(prior.flatten(0, 1))  # (B*(V+1), m, s, s)
        x = self.down(F.silu(stem)) + self.coarse_prior(coarse_prior.flatten(0, 1))
        code = camera_code(condition.cameras).expand(B, V, 16)
        code = torch.cat([code, torch.zeros_like(code[:, :1])], 1)  # the clean frame has no camera
        emb = self.camera(code) + (self.time(timestep_embedding(t, self.config.width)) + pooled)[:, None]
        context = coarse.flatten(2).transpose(1, 2)  # (B, L, W)
        x = self.trunk(x.unflatten(0, (B, V + 1)), emb, context)

        skip = torch.cat([stem.unflatten(0, (B, V + 1)), prior, pixels], 2)[:, :V].flatten(0, 1)
        x = torch.cat([self.up(x[:, :V].flatten(0, 1)), skip], 1)
        change = F.pixel_shuffle(self.out(x), 4).unflatten(0, (B, V)).float()  # (B, V, 4, S, S)
        rgba = (spread[:, :V].clamp(0.01, 0.99).logit() + change).sigmoid()
        return self.codec.encode(rgba)

    @property
    def fingerprint(self) -> str:
        """Hash of configuration and weights; quadruples carry it."""
        parts: list[str | bytes] = [repr(sorted(asdict(self.config).items()))]
        for name, tensor in sorted(self.state_dict().items()):
            parts += [name, tensor.float().cpu().contiguous().numpy().tobytes()]
        return fingerprint(*parts)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors; `dtype` is the stored type of the weights."""
        config = {"kind": "teacher", "teacher": "compact", **asdict(self.config)}
        return save_folder(folder, self, config, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CompactTeacher:
        """Load a folder written by `save_pretrained`.

        Raises:
            UserError: when the folder does not hold a compact teacher.
        """
        config = read_config(folder, "teacher")
        config.pop("teacher", None)
        teacher = build(folder, config, CompactConfig, cls)
        load_weights(folder, teacher)
        return teacher.eval()

    def condition(
        self, rgba: Tensor, cameras: Cameras | None = None, captions: Sequence[str] | None = None
    ) -> CompactCondition:
        """As `Teacher.condition`; captions are not looked at."""
        cameras = self.rig.to(rgba.device) if cameras is None else cameras
        if cameras.viewmats.dim() == 3:
            cameras = cameras[None]
        return CompactCondition(rgba, cameras)
