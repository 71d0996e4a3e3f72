"""The baseline of guided sampling: per-pose optimisation between pixel rays and denoiser (ZeDO)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dd3g.diffusion import Schedule, predict
from dd3g.pose.body.geometry import axis_angle_to_matrix, solve_translation, unproject
from dd3g.pose.hypotheses import Hypotheses
from dd3g.pose.methods.guided import generate
from dd3g.pose.methods.guided_energies import Keypoint2D
from dd3g.pose.networks.prior import Prior

HIPS = [0, 1, 4]


@torch.no_grad()
def zedo(
    prior: Prior,
    keypoints: Tensor,
    confidence: Tensor,
    K: Tensor,
    m: int = 50,
    *,
    starts: Tensor | None = None,
    iterations: int = 1000,
    fit_iterations: int = 500,
    seed: int = 0,
) -> Hypotheses:
    """Zero-shot optimisation of poses with a diffusion prior (ZeDO, arXiv 2307.03833, section 3).

    Each start is turned about the vertical and placed; then joints move to their rays and the denoiser
    repairs the pose, in turns and at falling noise levels. Hypotheses differ by their starts.

    Keypoints (B, 17, 2) and K, (B, 3, 3) or (3, 3), are in pixels; a joint moves by its confidence (B, 17) of
    the way to its ray. Starts (m, 17, 3) in metres are drawn from the prior by default, and placed by the
    hips in `fit_iterations`, turned about the vertical. The energy that is reported counts with noise of 5
    pixels.
    """
    B = len(keypoints)
    K = K.expand(B, 3, 3)
    starts = generate(prior, m, seed=seed) if starts is None else starts
    poses, T = place(starts, keypoints, confidence, K, fit_iterations)
    rays, weight = (x.repeat_interleave(m, 0) for x in (unproject(keypoints, K), confidence))
    rays = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)  # (N, 17, 3)
    seen = [x.repeat_interleave(m, 0) for x in (keypoints, confidence, K)]
    for i in range(iterations):
        time = 0.1 - 0.09 * i / max(iterations - 1, 1)
        if i >= iterations / 5:
            # The published rows carry the confidence squared, so that its fourth power weighs the squares.
            T = solve_translation(poses, seen[0], seen[1].square(), seen[2])
        points = poses + T[:, None]
        points = points + weight[..., None].clamp(max=1) * (foot(points, rays) - points)
        T = points[:, 0]
        level = _level(prior.schedule, time)
        states = prior.schedule.alpha_sigma(level, points)[0] * prior.encode(points - T[:, None])
        poses = prior.decode(predict(prior, prior.schedule, states, level, None)[1])
    energy = Keypoint2D(keypoints=keypoints, confidence=confidence, K=K)
    T = energy.solve(poses)
    shape = (B, m)
    return Hypotheses(poses.unflatten(0, shape), energy(poses).unflatten(0, shape), T.unflatten(0, shape))


def foot(points: Tensor, rays: Tensor) -> Tensor:
    """The point of each ray (..., 3) from the origin that is nearest to a point (..., 3)."""
    along = (points * rays).sum(-1, keepdim=True) / rays.square().sum(-1, keepdim=True)
    return along * rays


@torch.enable_grad()
def place(
    starts: Tensor, keypoints: Tensor, confidence: Tensor, K: Tensor, iterations: int = 500
) -> tuple[Tensor, Tensor]:
    """Turn starts about the vertical and choose their distance on the root's ray, as `zedo` does.

    `iterations` are its `fit_iterations`.

    Returns:
        poses (B m, 17, 3) and translations (B m, 3) in metres.
    """
    B, m = len(keypoints), len(starts)
    rays = unproject(keypoints, K)
    # Where the root was not seen, the middle of what was seen stands in.
    middle = (rays * confidence[..., None]).sum(1) / confidence.sum(1, keepdim=True).clamp(min=1e-9)
    aim = torch.where(confidence[:, :1] > 0, rays[:, 0], middle)
    aim = torch.cat([aim, torch.ones(B, 1).to(aim)], -1)[:, None]  # (B, 1, 3)
    weight = confidence[:, None, HIPS, None]
    angle = torch.zeros(B, m).to(starts).requires_grad_()
    scale = torch.ones(B, m).to(starts).requires_grad_()
    upright = torch.tensor([0.0, 1.0, 0.0]).to(starts)
    optimizer = torch.optim.Adam([angle, scale], lr=0.1)

    def placed() -> tuple[Tensor, Tensor]:
        turn = axis_angle_to_matrix(angle[..., None] * upright)  # (B, m, 3, 3)
        return starts @ turn.transpose(-1, -2), 3 * scale.clamp(0.5, 2.0)[..., None] * aim

    for _ in range(iterations):
        poses, T = placed()
        points = poses[:, :, HIPS] + T[:, :, None]
        away = weight * (points[..., :2] / points[..., 2:].clamp(min=0.1) - rays[:, None, HIPS])
        optimizer.zero_grad()
        away.abs().sum().backward()
        optimizer.step()
    poses, T = placed()
    return poses.detach().flatten(0, 1), T.detach().flatten(0, 1)


def _level(schedule: Schedule, time: float) -> int:
    """The level with the noise-to-signal ratio of the sub-VP equation (beta 0.1 .. 20) at `time` in 0..1."""
    log_alpha = -0.25 * time**2 * (20 - 0.1) - 0.5 * time * 0.1
    ratio = (1 - math.exp(2 * log_alpha)) / math.exp(log_alpha)
    alpha_bar = schedule.alpha_bar[:-1]
    return int((((1 - alpha_bar) / alpha_bar).sqrt() - ratio).abs().argmin())
