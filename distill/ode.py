"""One answer of a teacher: the end of its probability-flow ODE."""

from __future__ import annotations

import torch
from torch import Tensor

from dd3g.diffusion import sample
from distill.quadruples import Quadruple
from distill.teachers import Teacher


@torch.no_grad()
def simulate(
    teacher: Teacher,
    rgba: Tensor,
    noise: Tensor,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> Quadruple:
    """Solve the teacher's probability-flow ODE with DDIM (eta 0) for a batch.

    Args:
        teacher: a multi-view diffusion model.
        rgba: (B, 4, S, S) straight RGBA of the rig's size, on the teacher's device.
        noise: (B, V, C, h, w) start, on the teacher's device.
        steps: DDIM steps; None takes the teacher's.
        guidance_scale: classifier-free guidance; None takes the teacher's, 1 is none.

    Returns:
        The batch of quadruples; outputs (B, V, 4, S, S).
    """
    steps = teacher.default_steps if steps is None else steps
    scale = teacher.default_guidance if guidance_scale is None else guidance_scale
    condition = teacher.condition(rgba)
    plan = teacher.schedule.plan(steps)
    latents = sample(teacher.denoiser(condition, scale), teacher.schedule, noise, plan, condition).x
    return Quadruple(noise, teacher.rig, rgba, teacher.codec.decode(latents))
