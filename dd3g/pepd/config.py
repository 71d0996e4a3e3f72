"""Shape of a generator: one code path for all sizes, and each ablation is one switch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from dd3g.command.setting import check_ranges, setting
from dd3g.nn.config import ClipVisionConfig, MultiViewUNetConfig
from dd3g.rig import FAR, FOVY, NEAR, RADIUS

if TYPE_CHECKING:
    from dd3g.cameras import Cameras


@dataclass
class Bounds:
    """Ranges of the activations; a bounded scale was worth 3 dB over an exponential one in GRM."""

    depth_near: float = setting(0.6, "camera depth of a Gaussian's anchor, world units")
    depth_far: float = setting(2.2, "likewise")
    depth_start: float = setting(1.3, "mean surface depth of objects in the canonical rig")
    offset: float = setting(0.08, "largest shift from the ray along each axis, world units")
    scale_min: float = setting(0.003, "standard deviation of a Gaussian, world units")
    scale_max: float = setting(0.1, "likewise")
    stretch: float = setting(2.5, "length along the ray by width at the start: depth is what is least known")
    smoothing: float = setting(0.0, "deviation of a 3D filter on every Gaussian, about half a training pixel")

    def length_start(self, width: float) -> float:
        """Standard deviation along the ray at which a Gaussian starts that starts so wide, world units."""
        return min(self.stretch * width, 0.8 * self.scale_max)


@dataclass
class OccupancyConfig:
    """Shape of an occupancy network; one code path for all sizes."""

    size: int = setting(64, "pixels of the picture, and of the slices")
    bins: int = setting(48, "slices of the frustum")
    fine: int = setting(32, "channels of the picture's map at full size")
    widths: tuple[int, int] = setting((64, 128), "channels at a half and a quarter of it")
    width: int = setting(256, "channels at an eighth, where the transformer works")
    depth: int = setting(3, "pairs of residual and transformer block there")
    heads: int = setting(4, "of the attention")
    residual_hidden: int = setting(128, "channels inside a residual block there")
    color_bins: int = setting(12, "slices of the colour volume, which has half the picture's size")
    revolved: bool = setting(False, "mix a body of revolution into the inflated one, pixel by pixel")

    def __post_init__(self) -> None:
        eights = {"size": self.size, "width": self.width, "residual_hidden": self.residual_hidden}
        for name, value in (eights | {f"widths[{i}]": w for i, w in enumerate(self.widths)}).items():
            if value < 8 or value % 8:
                raise ValueError(f"network: {name} {value} must be a multiple of 8")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"network: width {self.width} must be a multiple of heads {self.heads}")
        if self.depth < 0 or min(self.bins, self.fine, self.color_bins) < 1:
            raise ValueError(
                f"network: depth {self.depth} must be 0 or more; bins {self.bins}, fine {self.fine} and "
                f"color_bins {self.color_bins} 1 or more"
            )


@dataclass
class TeacherPhase:
    """Phase 1 as a published teacher's network; `distill.student` fills it from the teacher."""

    unet: MultiViewUNetConfig = field(default_factory=MultiViewUNetConfig)
    image: ClipVisionConfig = field(default_factory=ClipVisionConfig)
    vae: dict[str, Any] = setting({}, "of its AutoencoderKL, as published")
    level: int = setting(981, "where the quadruples' noise enters: 981 for 50 steps, 958 for 30")
    alpha_bar: float = setting(0.0058, "of that level")
    top_only: bool = setting(False, "only the level at full resolution: 32.5 of 941.7 M parameters")
    lower: Literal["frozen", "low_rank", "trained"] = setting(
        "frozen", "how the levels below learn: frozen, low_rank or trained"
    )
    rank: int = setting(16, "of low-rank changes")
    lower_rate: float = setting(0.1, "share of the learning rate for lower levels that are trained")


@dataclass(frozen=True)
class FrameKind:
    """What is fixed for all frames of one kind."""

    expansion: int  # Gaussians per token side
    prior: int  # channels of the prior maps
    scale_start: float  # standard deviation at which its Gaussians start, world units


@dataclass
class GeneratorConfig:
    """Shape of a generator; one code path for all sizes, and each ablation is one of these switches."""

    size: int = setting(64, "pixels of the picture; the token grid has side size / 8")
    latent_shape: tuple[int, int, int, int] = setting((4, 64, 16, 16), "the teacher's noise (V, C, h, w)")
    azimuths: list[float] = setting([], "of the teacher's views from the input's; []: even ones from 0")
    elevations: list[float] = setting([], "of the teacher's views, degrees; []: the input's")
    distance: float = setting(RADIUS, "of the teacher's cameras to the origin, world units")
    fovy: float = setting(FOVY, "of the teacher's cameras, degrees")
    width: int = setting(256, "channels of a token", 1)
    depth: int = setting(3, "0: phase 1 off", 0)
    heads: int = setting(4, "of the attention", 1)
    residual_hidden: int = setting(64, "channels inside a residual block", 1)
    fine: int = setting(16, "channels of the picture's map at full size", 1)
    mid: int = setting(64, "channels of the picture's map at size / 4", 1)
    blocks: tuple[int, int, int] = setting((1, 1, 1), "of the decoder, before each of its three taps")
    order: Literal["progressive", "swapped", "one_shot"] = setting(
        "progressive", "of the attributes; swapped and one_shot are ablations"
    )
    use_noise: bool = setting(True, "false ignores the noise (an ablation)")
    copy_tokens: bool = setting(True, "tokens and Gaussians straight from the picture")
    expansion: int = setting(4, "Gaussians per token side of an imagined frame")
    copy_expansion: int = setting(8, "one Gaussian per pixel of the picture")
    head_hidden: int = setting(32, "channels inside a pixel head", 1)
    detach_taps: bool = setting(False, "later attributes send no gradient through earlier ones")
    pt_mode: Literal["plain", "knn"] = setting("plain", "knn: behind the position tap, nearest tokens only")
    neighbours: int = setting(16, "of a token, for pt_mode knn", 1)
    surface: Literal["hull", "off"] = setting("hull", "what `generate` gives: a solid; off: splats")
    bounds: Bounds = field(default_factory=Bounds)
    teacher: TeacherPhase | None = setting(None, "phase 1 as a teacher's network; `start` makes it")
    shape: OccupancyConfig | None = setting(None, "network that finds matter, made by train-shape")
    shape_networks: int = setting(1, "such networks, trained apart, whose answers are averaged", 1)

    def __post_init__(self) -> None:
        check_ranges(self, "generator: ")
        if self.size < 8 or self.size % 8:
            raise ValueError(f"generator: size {self.size} must be a multiple of 8")
        square = min(self.latent_shape) > 0 and self.latent_shape[3] == self.latent_shape[2]
        if self.noise_ratio not in (1, 2) or not square:
            sides = " or ".join(str(self.size // 8 * r) for r in (1, 2))
            raise ValueError(
                f"generator: latent_shape {tuple(self.latent_shape)} must be (views, channels, side, side), "
                f"with side {sides} for size {self.size}"
            )
        if self.teacher is not None and self.noise_ratio != 1:
            raise ValueError("generator: with `teacher`, latents must have a side of size / 8")
        for name in ("azimuths", "elevations"):
            if len(getattr(self, name)) not in (0, self.latent_shape[0]):
                raise ValueError(
                    f"generator: {name} {list(getattr(self, name))} must be one a view of latent_shape "
                    f"{tuple(self.latent_shape)}, or none"
                )
        if self.distance <= 1 or not 0 < self.fovy < 180:
            raise ValueError(
                f"generator: distance {self.distance} must be above 1, which the object may reach, and fovy "
                f"{self.fovy} between 0 and 180 degrees"
            )
        if self.width % 8 or self.width % self.heads:
            raise ValueError(
                f"generator: width {self.width} must be a multiple of 8 and of heads {self.heads}"
            )
        if min(self.blocks) < 0:
            raise ValueError(f"generator: blocks {list(self.blocks)} must be 0 or more")
        if not {self.expansion, self.copy_expansion} <= {2, 4, 8}:
            raise ValueError(
                f"generator: expansion {self.expansion} and copy_expansion {self.copy_expansion} must be "
                "2, 4 or 8"
            )
        if self.pt_mode == "knn" and self.order != "progressive":
            raise ValueError(
                f"generator: pt_mode knn needs positions first: order progressive, got {self.order}"
            )

    def rig_at(self, elevation: float) -> Cameras:
        """The teacher's cameras (V,) for a picture that was taken from this elevation, in degrees."""
        from dd3g.cameras import Cameras  # torch, which a command's help does not wait for

        views, further = self.latent_shape[0], self.distance - RADIUS
        azimuths = self.azimuths or [360.0 * v / views for v in range(views)]
        rig = Cameras.orbit(azimuths, self.elevations or elevation, self.size, self.distance, self.fovy)
        return replace(rig, near=NEAR + further, far=FAR + further)

    @property
    def noise_ratio(self) -> float:
        """Side of the noise by that of the token grid: 1 for latents at size / 8, 2 at size / 4."""
        return self.latent_shape[2] / (self.size // 8)

    @property
    def frame_kinds(self) -> list[FrameKind]:
        """Imagined frames, then copied ones where there are any."""
        # World size of a pixel at the object.
        wide, pixel = (
            2 * distance * math.tan(math.radians(fovy) / 2) / self.size
            for distance, fovy in ((self.distance, self.fovy), (RADIUS, FOVY))
        )
        imagined = FrameKind(self.expansion, 4, 0.6 * 8 / self.expansion * wide)
        copied = FrameKind(self.copy_expansion, 4 + self.fine, 0.6 * 8 / self.copy_expansion * pixel)
        return [imagined, copied] if self.copy_tokens else [imagined]
