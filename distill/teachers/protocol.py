"""What the rest of the project asks of a multi-view diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.diffusion import Denoiser, Schedule


class Codec(Protocol):
    """Between pictures and the latents that are diffused; deterministic both ways."""

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA (..., 4, S, S) in 0..1 -> (..., C, h, w)."""

    def decode(self, latent: Tensor) -> Tensor:
        """(..., C, h, w) -> straight RGBA (..., 4, S, S) in 0..1, or RGB (..., 3, S, S) without alpha."""


class Condition(Protocol):
    """What a teacher knows of B pictures; only the teacher that made it reads it."""

    def null(self) -> Condition:
        """The unconditional form for classifier-free guidance."""


class Teacher(Protocol):
    """A multi-view diffusion model with a deterministic ODE.

    An `nn.Module`. The same noise, cameras and picture must always give the same views: a codec takes the
    mode of its posterior, a condition draws nothing.
    """

    @property
    def rig(self) -> Cameras:
        """(V,) cameras of its views in the canonical frame; azimuths count from the input view."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(V, C, h, w) of the noise of one object."""

    @property
    def codec(self) -> Codec:
        """Pictures to latents and back."""

    @property
    def schedule(self) -> Schedule:
        """Its noise levels; `timestep_spacing` of its config decides which ones sampling visits."""

    @property
    def background(self) -> float:
        """Grey level that its views stand on where it knows no alpha."""

    @property
    def default_steps(self) -> int:
        """DDIM steps that it is meant to run with."""

    @property
    def default_guidance(self) -> float:
        """Classifier-free guidance scale that it is meant to run with; 1 is none."""

    @property
    def picture_size(self) -> int:
        """Pixels of the pictures that it sees."""

    def rig_at(self, elevation: float) -> Cameras:
        """The rig for a picture that was taken from this elevation, in degrees."""

    @property
    def follows_elevation(self) -> bool:
        """Whether that is another one than `rig`."""

    @property
    def sees_picture(self) -> bool:
        """False for one that draws what a caption says."""

    @property
    def draws_alpha(self) -> bool:
        """Whether its views have alpha."""

    @property
    def about(self) -> dict[str, Any]:
        """Its kind, source, revision and licence, for the index of quadruples and for model cards."""

    @property
    def fingerprint(self) -> str:
        """Hash of weights and configuration; two teachers with one fingerprint give the same views."""

    def condition(
        self, rgba: Tensor, cameras: Cameras | None = None, captions: Sequence[str] | None = None
    ) -> Any:
        """Straight RGBA (B, 4, S, S) of `picture_size` -> Condition.

        Args:
            rgba: the input pictures.
            cameras: (V,) or (B, V), relative to the input view, in place of the rig.
            captions: one a picture, "" where there is none; teachers without words ignore them.
        """

    def denoiser(self, condition: Any, guidance_scale: float | None = None) -> Denoiser:
        """The network, guided towards the condition; None takes `default_guidance`."""

    def to(self, device: Any) -> Any:
        """The teacher on a device."""
