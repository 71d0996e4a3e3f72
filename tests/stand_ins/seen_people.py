"""People as they are recovered: rotations, their keypoints, and small networks."""

import math
from dataclasses import replace

import torch
from stand_ins.small_motion import small_motion

from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.methods.recovery_energies import (
    BodyKeypoints,
)
from dd3g.pose.networks.rotation_denoiser import (
    RotationConfig,
    RotationDenoiser,
    keypoint_condition,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    torch.manual_seed(seed)
    return RotationDenoiser(RotationConfig(condition=16, hidden=32)).eval()


def people(count=4, seed=0, angle=0.25):
    """Rotations, evidence without noise, and its condition, of people three metres away."""
    rotations = axis_angle_to_matrix(angle * normal(count, 24, 3, seed=seed))
    rotations[:, 0] = axis_angle_to_matrix(torch.tensor([math.pi, 0, 0])) @ rotations[:, 0]
    betas = 0.5 * normal(count, 10, seed=seed + 1)
    K = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]]).expand(count, 3, 3)
    points = default_body().points(rotations, betas)
    keypoints = project(points + torch.tensor([0.0, 0, 3]), K)
    confidence = torch.ones(count, 17)
    evidence = BodyKeypoints(default_body(), betas, keypoints, confidence, K, 1000.0)
    return rotations, evidence, keypoint_condition(keypoints, confidence, K)


def turned_motion(frames):
    rotations = 0.3 * normal(frames, 24, 3)
    return replace(small_motion(frames), rotations=rotations, rotations_valid=torch.arange(frames) % 2 == 0)
