"""What the rest of the project asks of a multi-view diffusion model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.diffusion import ClassifierFree, Denoiser, Prediction, Schedule


class Codec(Protocol):
    """Between pictures and the latents that are diffused; deterministic both ways."""

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA (..., 4, S, S) in 0..1 -> (..., C, h, w)."""

    def decode(self, latent: Tensor) -> Tensor:
        """(..., C, h, w) -> straight RGBA (..., 4, S, S) in 0..1, or RGB (..., 3, S, S) without alpha."""


class Teacher(nn.Module, ABC):
    """A multi-view diffusion model with a deterministic ODE; its `forward` is a `Denoiser`.

    The same noise, cameras and picture must always give the same views: a codec takes the mode of its
    posterior, a condition draws nothing.
    """

    prediction: Prediction  # what `forward` gives
    rig: Cameras  # (V,) of its views in the canonical frame, on the CPU; azimuths count from the input view
    latent_shape: tuple[int, int, int, int]  # (V, C, h, w) of the noise of one object
    codec: Codec  # pictures to latents and back
    schedule: Schedule  # its noise levels; `timestep_spacing` of its config decides which ones are visited
    background = 1.0  # grey level that its views stand on where it knows no alpha
    default_steps: int  # of DDIM that it is meant to run with
    default_guidance: float  # classifier-free scale that it is meant to run with; 1 is none
    picture_size: int  # pixels of the pictures that it sees, or sees best: they are not resized then
    follows_elevation = False  # whether `rig_at` gives another rig than `rig`
    elevation = 0.0  # for one that does: degrees from which a picture was taken that does not say
    sees_picture = True  # False for one that draws what a caption says
    draws_alpha = True  # whether its views have alpha
    about: dict[str, Any]  # kind, source, revision, licence: for the index of quadruples and for model cards

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of weights and configuration; two teachers with one fingerprint give the same views."""

    def rig_at(self, elevation: float) -> Cameras:
        """The rig for a picture that was taken from this elevation, in degrees."""
        return self.rig

    @abstractmethod
    def condition(
        self, rgba: Tensor, cameras: Cameras | None = None, captions: Sequence[str] | None = None
    ) -> Any:
        """What `forward` knows of some pictures; its `null()` is the unconditional form.

        Args:
            rgba: (B, 4, S, S) straight RGBA of the input pictures, of `picture_size`.
            cameras: (V,) or (B, V), relative to the input view, in place of the rig.
            captions: one a picture, "" where there is none; teachers without words ignore them.
        """

    def denoiser(self, condition: Any, guidance_scale: float | None = None) -> Denoiser:
        """The network, guided towards the condition; None takes `default_guidance`, and 1 is no guidance."""
        scale = self.default_guidance if guidance_scale is None else guidance_scale
        return self if scale == 1 else ClassifierFree(self, condition.null(), scale)
