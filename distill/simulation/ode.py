"""One answer of a teacher: the end of its probability-flow ODE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.diffusion import sample
from dd3g.picture import resize_rgba
from distill.quadruples import Quadruple, noise_of
from distill.teachers import Teacher


@torch.no_grad()
def simulate(
    teacher: Teacher,
    rgba: Tensor,
    noise: Tensor,
    steps: int | None = None,
    guidance_scale: float | None = None,
    cameras: Cameras | None = None,
    captions: Sequence[str] | None = None,
) -> Quadruple:
    """Solve the teacher's probability-flow ODE with DDIM (eta 0) for a batch.

    Args:
        teacher: a multi-view diffusion model.
        rgba: (B, 4, S, S) straight RGBA of the teacher's `picture_size`, on its device.
        noise: (B, V, C, h, w) start, on the teacher's device.
        steps: DDIM steps; None takes the teacher's.
        guidance_scale: classifier-free guidance; None takes the teacher's, 1 is none.
        cameras: (V,) or (B, V), relative to the input view; None takes the teacher's rig.
        captions: one a picture, for a teacher that has words.

    Returns:
        The batch of quadruples; outputs (B, V, 4, S, S), or RGB. What was drawn from a caption alone has its
        first view as the input, opaque.
    """
    steps = teacher.default_steps if steps is None else steps
    condition = teacher.condition(rgba, cameras, captions)
    plan = teacher.schedule.plan(steps)
    latents = sample(teacher.denoiser(condition, guidance_scale), teacher.schedule, noise, plan, condition).x
    views = teacher.codec.decode(latents)
    if not teacher.sees_picture:
        rgba = torch.cat([views[:, 0, :3], torch.ones_like(views[:, 0, :1])], 1)
    rig = teacher.rig if cameras is None else cameras
    return Quadruple(noise, rig, rgba, views, latents=latents)


def views_of(
    teacher: Teacher,
    rgba: Tensor,
    seed: int,
    steps: int | None = None,
    guidance_scale: float | None = None,
    cameras: Cameras | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """The teacher's views of one picture (4, S, S), straight RGBA of any size, from the noise of a seed.

    The rest is as of `simulate`; `device` is the teacher's.

    Returns:
        (V, 4, S, S) straight RGBA in 0..1 on the CPU; RGB from a teacher without alpha.
    """
    image = resize_rgba(rgba.float()[None], teacher.picture_size).to(device)
    noise = noise_of(teacher.latent_shape, seed)[None].to(device)
    cameras = None if cameras is None else cameras.to(device)
    made = simulate(teacher, image, noise, steps, guidance_scale, cameras)
    return made.outputs[0].float().cpu().clamp(0, 1)
