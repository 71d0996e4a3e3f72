"""What the generator is trained on: explicit supervision by views, implicit verification by the teacher.

Notation of the paper (DD3G, arXiv 2504.00457) and of diffusion, and the names here:

    N, C, II, OI    noise, cameras, input image, output images      `Sample.noise, .rig, .image, .views`
    G(N, C, II)     the generator's Gaussians                       `frames`, joined `gaussians`
    k, k0, tau      step, centre and width of the sigmoid           `step`, `ramp_center`, `ramp_width`
    lambda          weight of the implicit verification             `ObjectiveConfig.implicit`
    x0 or z, x_t    clean latents of renders, the same with noise   `z`, `x_t`
    t, eps          noise level and noise                           `t`, `eps`
    alpha, sigma    x_t = alpha x0 + sigma eps                      `alpha`, `sigma`
    eps_hat, x0_hat what the teacher predicts                       `denoised(z)` is x0_hat
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.diffusion import convert
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import rasterize
from dd3g.training import normal_for
from distill.config import ObjectiveConfig
from distill.samples.render_samples import Sample

COVERED = 0.65  # alpha from which a pixel inside the mask is no hole, with some room above one half


@dataclass
class Objective:
    """Joint objective: explicit supervision + sigmoid((k - k0) / tau) * lambda * implicit verification.

    The two parts are those of DD3G (arXiv 2504.00457); terms, weights and the ramp are ours.
    """

    config: ObjectiveConfig  # weights
    total: int  # steps of the run, for the schedules
    verifier: Verifier | None = None  # needed when `config.implicit` is not 0
    # Distance of images (N, 3, H, W) -> (N,), needed when `config.perceptual` is not 0
    perceptual: nn.Module | None = None

    def __call__(self, model: nn.Module, batch: Sample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What is wrong with the Gaussians of a `Generator`, called without autocast: geometry is float32.

        Returns:
            The scalar to minimise and its terms, weighted and detached; they add up to it.
        """
        c = self.config
        frames = model(batch.noise, batch.rig, batch.image, apart=True, front=batch.target_cameras[:, 0])
        gaussians = Gaussians.cat(frames)
        progress = step / self.total
        terms: dict[str, Tensor] = {}

        boot = c.bootstrap
        fade = 1.0 if progress < boot else max(c.direct_floor, 1 - (progress - boot) / max(1e-6, 0.5 - boot))
        for name, value in direct_terms(frames, batch).items():
            terms[name] = fade * getattr(c, name) * value
        if progress >= boot:
            render = rasterize(gaussians, batch.target_cameras, background=0.0, antialiased=c.antialiased)
            targets = batch.targets, batch.background, batch.targets_known
            terms |= self.explicit(render.rgb, render.alpha, *targets)
            if c.implicit and self.verifier is not None and step % c.implicit_every == 0:
                azimuth, level = 2 * math.pi * batch.uniform[:, 2], batch.uniform[:, 3]
                front = batch.target_cameras[:, 0]
                value = self.verifier(gaussians, batch.image, azimuth, level, batch.index, front)
                terms["implicit"] = self.ramp(step) * c.implicit * value
        loss = torch.stack(list(terms.values())).sum()
        if progress < boot:
            # Nothing looks at shapes yet, but parallel training waits for every gradient.
            loss = loss + zero_of(gaussians.scales, gaussians.quats)
        return loss, {k: v.detach() for k, v in terms.items()}

    def explicit(
        self, premultiplied: Tensor, alpha: Tensor, target: Tensor, background: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        """Renders against target views.

        Args:
            premultiplied: (B, T, 3, H, W) rendered over black.
            alpha: (B, T, 1, H, W) rendered.
            target: (B, T, 4, H, W) straight RGBA, opaque where alpha is not known; view 0 is the input.
            background: (B, T, 3) colours that both are composited on.
            known: (B, T) 1 where a target's alpha is known; elsewhere its colour alone counts.
        """
        c = self.config
        bg = background[..., None, None]
        mask = target[:, :, 3:]
        shown = premultiplied + (1 - alpha) * bg
        wanted = target[:, :, :3] * mask + (1 - mask) * bg
        weight = torch.ones(target.shape[1], device=target.device)
        weight[0] = c.input_weight
        weight = weight / weight.sum()  # (T,)

        def mean(x: Tensor) -> Tensor:
            return (x.flatten(2).mean(-1) * weight).sum(1).mean()

        error = shown - wanted
        outline = (alpha - mask) * known[..., None, None, None]
        terms = {
            "color": c.color * mean(error.square()),
            "color_l1": c.color_l1 * mean(error.abs()),
            "alpha": c.alpha * mean(outline.square() * (1 + (c.hole_weight - 1) * mask)),
        }
        if c.cover:
            lack = (mask.clamp(max=COVERED) - alpha).clamp(min=0) * known[..., None, None, None]
            terms["cover"] = c.cover * mean(lack.square())
        if c.structure:
            found = gradient_differences(torch.cat([error, outline], 2))
            terms["structure"] = c.structure * torch.stack([mean(g) for g in found]).sum()
        if c.perceptual and self.perceptual is not None:
            distance = self.perceptual.to(shown.device)(shown.flatten(0, 1), wanted.flatten(0, 1))
            terms["perceptual"] = (
                c.perceptual * (distance.unflatten(0, mask.shape[:2]) * weight).sum(1).mean()
            )
        return terms

    def ramp(self, step: int) -> float:
        """Weight of the verification at this step, 0..1."""
        c = self.config
        if c.ramp == "constant":
            return 1.0
        x = (step / self.total - c.ramp_center) / max(c.ramp_width, 1e-9)  # 0 switches at once
        return 0.5 + 0.5 * math.tanh(x / 2)  # the sigmoid, but for overflow


def gradient_differences(error: Tensor, scales: int = 3) -> list[Tensor]:
    """|horizontal| and |vertical| finite differences of (B, T, C, H, W) at octave scales.

    The difference of gradients is the gradient of the difference, so one error image serves for both.
    """
    B, T = error.shape[:2]
    found = []
    for _ in range(scales):
        found += [error.diff(dim=-1).abs(), error.diff(dim=-2).abs()]
        error = F.avg_pool2d(error.flatten(0, 1), 2).unflatten(0, (B, T))
    return found


def zero_of(*tensors: Tensor) -> Tensor:
    """The number 0, which gives every tensor a gradient of zeros."""
    return 0.0 * torch.stack([t.sum() for t in tensors]).sum()


def direct_terms(frames: list[Gaussians], batch: Sample) -> dict[str, Tensor]:
    """Each Gaussian against the pixel that it was decoded for: opacity, depth and colour, without rendering.

    Rendering losses alone go wrong from scratch: Gaussians that start in the wrong place learn to vanish.

    Args:
        frames: the generator's, `apart`: a Gaussian a pixel of the imagined views, then of the input.
        batch: what the views show.

    Returns:
        "direct_alpha" (binary cross-entropy), "direct_depth" (L1, world units, where depth is known) and
        "direct_color" (L1 inside the mask).
    """
    imagined, *copied = frames
    targets = [(imagined, batch.rig, batch.views)]
    targets += [(g, batch.target_cameras[:, :1], batch.image[:, None]) for g in copied]
    depth_terms, color_terms = [], []
    for gaussians, cameras, rgba in targets:
        V = rgba.shape[1]
        s = math.isqrt(len(gaussians) // V)  # side of the grid of Gaussians
        means = gaussians.means.unflatten(1, (V, s * s))  # (B, V, s*s, 3)
        z = (means * cameras.viewmats[..., None, 2, :3]).sum(-1) + cameras.viewmats[..., None, 2, 3]
        depth = batch.depth[:, :V]
        ratio = depth.shape[-1] // s
        share = F.avg_pool2d((depth > 0).float(), ratio).flatten(-2)  # (B, V, s*s)
        wanted = F.avg_pool2d(depth, ratio).flatten(-2) / share.clamp(min=1e-6)
        valid = (share > 0.5).float() * batch.has_depth[:, None, None]
        depth_terms.append(((z - wanted).abs() * valid).flatten(1).sum(1) / (valid.flatten(1).sum(1) + 1))
        small, mask = _pooled(rgba, s)  # (B, V, 3, s*s), (B, V, s*s)
        colors = gaussians.colors.unflatten(1, (V, s * s)).transpose(-1, -2)
        error = ((colors - small).abs().mean(2) * mask).flatten(1).sum(1)
        color_terms.append(error / (mask.flatten(1).sum(1) + 1))
        if gaussians is imagined:
            # The copied ones' opacity is gated by the picture's own alpha already.
            opacity = gaussians.opacities.unflatten(1, (V, s * s)).clamp(1e-4, 1 - 1e-4)
            # torch's own function stops the program at NaN, on CUDA for good; the loop wants to see it.
            entropy = ((mask - 1) * (-opacity).log1p() - mask * opacity.log()).mean(-1)  # (B, V)
            alpha = (entropy * batch.views_known).sum() / batch.views_known.sum().clamp(min=1)
    return {
        "direct_alpha": alpha,
        "direct_depth": torch.stack([d.mean() for d in depth_terms]).mean(),
        "direct_color": torch.stack([c.mean() for c in color_terms]).mean(),
    }


def _pooled(rgba: Tensor, s: int) -> tuple[Tensor, Tensor]:
    ratio = rgba.shape[-1] // s
    alpha = rgba[:, :, 3:]
    pooled = F.avg_pool2d(torch.cat([rgba[:, :, :3] * alpha, alpha], 2).flatten(0, 1), ratio)
    pooled = pooled.unflatten(0, rgba.shape[:2]).flatten(-2)
    return pooled[:, :, :3] / pooled[:, :, 3:].clamp(min=1e-4), pooled[:, :, 3]


@dataclass
class Verifier:
    """Implicit verification: the frozen teacher predicts the noise on renders from around the object.

    Views that the quadruples do not hold are checked this way. Renders that are turned away from the input
    get the matching cameras, and the picture keeps its all-zero one. With z the latents of the renders and
    z_t = alpha z + sigma eps, the teacher's error is eps_hat - eps = alpha / sigma (z - x0_hat).
    """

    teacher: Any  # a multi-view diffusion model whose cameras are free; it is frozen
    # "literal" minimises w |eps_hat - eps|^2 with w = sigma^2, through the network; "score" takes
    # w (eps_hat - eps) as the gradient of z, which saves the network's Jacobian; "x0" pulls z to the denoised
    # latents, |z - x0_hat|^2: the direction of "score" with a weight that stays bounded
    form: Literal["score", "literal", "x0"]
    seed: int  # of the noise
    guidance_scale: float = 1.0  # classifier-free guidance of the teacher
    precision: torch.dtype | None = None  # what the teacher computes in; None is float32
    rig: Cameras | None = field(default=None, init=False)  # the teacher's, where it computes

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False)

    def __call__(
        self,
        gaussians: Gaussians,
        image: Tensor,
        azimuth: Tensor,
        level: Tensor,
        index: Tensor,
        front: Cameras | None = None,
    ) -> Tensor:
        """Verify one batch.

        Args:
            gaussians: (B, N).
            image: (B, 4, S, S) straight RGBA of the input view.
            azimuth: (B,) radians by which the rig is turned.
            level: (B,) uniform in 0..1, mapped to noise levels of 2 % to 98 % of the schedule.
            index: (B,) of the samples; decides their noise.
            front: (B,) the input's cameras, for a teacher whose views stand at the elevation of its picture.

        Returns:
            A scalar; for "score" half the mean squared gradient, so that the derivative is the gradient.
        """
        if self.rig is None or self.rig.viewmats.device != image.device:  # once, not at every step
            self.teacher, self.rig = self.teacher.to(image.device), self.teacher.rig.to(image.device)
        teacher, rig, schedule = self.teacher, self.rig, self.teacher.schedule
        shape = (len(image), len(rig))
        turn, poses, Ks = azimuth[:, None], rig.viewmats, rig.Ks
        if front is not None and teacher.follows_elevation:
            turn, poses, Ks = turn + rig.azimuths, front.viewmats[:, None], front.Ks[:, None]
        rigs = replace(rig, viewmats=poses.expand(*shape, 4, 4), Ks=Ks.expand(*shape, 3, 3))
        cameras = rigs.turned(turn)
        render = rasterize(gaussians, cameras, background=0.0, antialiased=True)
        straight = torch.cat([render.rgb / render.alpha.clamp(min=1e-3), render.alpha], 2)
        z = teacher.codec.encode(straight)  # (B, V, C, h, w)
        # Samples are made with seed, the choice between renders and quadruples with seed + 1.
        eps = normal_for(self.seed + 2, index, z.shape[1:])
        t = ((0.02 + 0.96 * level) * schedule.steps).long().clamp(0, schedule.steps - 1)
        condition = teacher.condition(image, cameras)
        denoiser = teacher.denoiser(condition, self.guidance_scale)

        def denoised(latents: Tensor) -> Tensor:
            x_t = schedule.add_noise(latents, eps, t)
            with torch.autocast(x_t.device.type, self.precision, enabled=self.precision is not None):
                output = denoiser(x_t, t, condition)
            return convert(schedule, output.float(), x_t, t, denoiser.prediction, "x0")

        alpha, sigma = schedule.alpha_sigma(t, z)
        if self.form == "literal":
            return (alpha * (z - denoised(z))).square().mean()
        with torch.no_grad():
            x0 = denoised(z)
            # w (eps_hat - eps) for w = sigma^2; the target below turns a gradient into a loss that has it.
            gradient = sigma * alpha * (z - x0)
        if self.form == "score":
            return 0.5 * (z - (z - gradient).detach()).square().mean()
        return (z - x0).square().mean()
