"""Errors of poses and of sets of hypotheses. Poses come in metres and root-relative; errors go out in mm.

B counts people or frames, m hypotheses, J joints. A function that needs particular joints takes H36M-17.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dd3g.pose.body.geometry import procrustes, project
from dd3g.pose.body.skeletons import H36M_17, bone_lengths

PCK_MM = 150.0
PCK_JOINTS = [1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16]
"""The 14 joints of H36M-17 that MPI-INF-3DHP counts: no root, spine or nose."""
CPS_JOINTS = [j for j in range(17) if j != 7]


def joint_errors(poses: Tensor, truth: Tensor) -> Tensor:
    """Distances in mm: (..., J, 3) against (..., J, 3), broadcast -> (..., J)."""
    return 1000 * (poses - truth).norm(dim=-1)


def mpjpe(poses: Tensor, truth: Tensor) -> Tensor:
    """Mean per-joint position error in mm (protocol 1): (..., J, 3) -> (...)."""
    return joint_errors(poses, truth).mean(-1)


def pa_mpjpe(poses: Tensor, truth: Tensor) -> Tensor:
    """Mean error in mm after Procrustes alignment (protocol 2): (..., J, 3) -> (...)."""
    return mpjpe(procrustes(poses, truth), truth)


def pck(poses: Tensor, truth: Tensor) -> Tensor:
    """Percentage of joints strictly closer than 150 mm: (..., J, 3) -> (...)."""
    errors = joint_errors(poses, truth)
    return 100 * (errors < PCK_MM).to(errors).mean(-1)


def auc(poses: Tensor, truth: Tensor) -> Tensor:
    """Mean PCK in percent at the 31 thresholds 0, 5, ..., 150 mm: (..., J, 3) -> (...)."""
    errors = joint_errors(poses, truth)
    thresholds = torch.arange(0, 151, 5, device=errors.device).to(errors)
    return 100 * (errors[..., None] < thresholds).to(errors).mean((-1, -2))


def best_of_m(poses: Tensor, truth: Tensor, align: bool = False) -> Tensor:
    """Error in mm of each person's best hypothesis (P-Best): (B, m, J, 3), (B, J, 3) -> (B,).

    `align` moves every hypothesis for itself by Procrustes first.
    """
    return (pa_mpjpe if align else mpjpe)(poses, truth[:, None]).amin(1)


def joint_best(poses: Tensor, truth: Tensor) -> Tensor:
    """Error in mm of a pose put together from the best joints (J-Best): (B, m, J, 3), (B, J, 3) -> (B,)."""
    return joint_errors(poses, truth[:, None]).amin(1).mean(-1)


def jpma_pose(poses: Tensor, translation: Tensor, keypoints: Tensor, K: Tensor) -> Tensor:
    """Per joint the hypothesis whose projection is nearest to the keypoint (J-Agg; D3DP, section 3.3).

    Poses (B, m, J, 3) with their roots (B, m, 3), keypoints (B, J, 2), K (B, 3, 3) in pixels -> (B, J, 3).
    """
    pixels = project(poses + translation[:, :, None], K[:, None])
    index = (pixels - keypoints[:, None]).norm(dim=-1).argmin(1)  # (B, J)
    return poses.gather(1, index[:, None, :, None].expand(-1, 1, -1, 3))[:, 0]


def mh_pck(poses: Tensor, truth: Tensor) -> Tensor:
    """PCK at 150 mm of each person's best hypothesis over 14 joints: (B, m, 17, 3), (B, 17, 3) -> (B,)."""
    return pck(poses[:, :, PCK_JOINTS], truth[:, None, PCK_JOINTS]).amax(1)


def cps(poses: Tensor, truth: Tensor) -> Tensor:
    """Correct poses score: at how many of the thresholds 1 .. 300 mm the best hypothesis is wholly correct.

    A pose is correct when every joint but the spine is closer than the threshold after alignment of all
    joints (Wandt et al. 2021, section 4): (B, m, 17, 3), (B, 17, 3) -> (B,) in 0 .. 300. The published score
    is their mean.
    """
    errors = joint_errors(procrustes(poses, truth[:, None]), truth[:, None])
    worst = errors[..., CPS_JOINTS].amax(-1).amin(1)  # (B,)
    return (300 - worst.floor()).clamp(min=0, max=300)


def _asymmetry(poses: Tensor) -> Tensor:
    """(..., 17, 3) -> (..., 6) mm by which left and right bones differ."""
    lengths = bone_lengths(poses)
    # Hip, thigh, shin, shoulder, upper arm, forearm; bones come in the order of their children, from joint 1.
    left, right = (lengths[..., [j - 1 for j in joints]] for joints in (H36M_17.left, H36M_17.right))
    return 1000 * (left - right).abs()


def symmetry_error(poses: Tensor) -> Tensor:
    """Mean |left - right| in mm of thighs, shins, shoulders, upper and lower arms: (..., 17, 3) -> (...)."""
    return _asymmetry(poses)[..., 1:].mean(-1)


def mpsse(poses: Tensor) -> Tensor:
    """Mean per-segment symmetry error in mm of six pairs of bones (ManiPose): (..., 17, 3) -> (...)."""
    return _asymmetry(poses).mean(-1)


def mpsce(poses: Tensor) -> Tensor:
    """Mean per-segment consistency error, std of bone lengths over time in mm: (..., T, 17, 3) -> (...)."""
    return 1000 * bone_lengths(poses).std(-2, correction=0).mean(-1)


def diversity(poses: Tensor) -> Tensor:
    """Standard deviation of the hypotheses in mm, mean over joints: (B, m, J, 3) -> (B,).

    That of a joint is the root of its mean squared distance from the joint's mean.
    """
    spread = poses - poses.mean(1, keepdim=True)
    return 1000 * spread.square().sum(-1).mean(1).sqrt().mean(-1)


def average_pairwise_distance(poses: Tensor) -> Tensor:
    """Mean distance in mm of the joints of two different hypotheses (APD): (B, m, J, 3) -> (B,)."""
    m = poses.shape[1]
    total = poses.new_zeros(len(poses))
    for joint in poses.unbind(2):
        total += torch.cdist(joint, joint, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2))
    return 1000 * total / (max(m * (m - 1), 1) * poses.shape[2])


def calibration(poses: Tensor, truth: Tensor, bins: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Expected calibration error: do poses (B, m, J, 3) spread as widely as the truth (B, J, 3) lies off?

    For a joint let p be the share of hypotheses that lie farther from their coordinate-wise median than the
    truth does. If the truth is one more draw, p is uniform: the frequency of p <= q is q.

    Returns:
        error: (J,) mean |frequency - q| of each joint; report their mean over joints but the root.
        q: (bins,) 1/bins, 2/bins, ..., 1.
        frequency: (bins, J) over the B poses; above q means that the hypotheses are too sure.
    """
    # Not `quantile`, which refuses large inputs; the mean of the middle two where m is even.
    ordered, m = poses.sort(1).values, poses.shape[1]
    median = (ordered[:, (m - 1) // 2] + ordered[:, m // 2]) / 2
    spread = (poses - median[:, None]).norm(dim=-1)  # (B, m, J)
    off = (truth - median).norm(dim=-1)  # (B, J)
    p = (spread > off[:, None]).to(poses).mean(1)  # (B, J)
    q = torch.arange(1, bins + 1, device=poses.device).to(poses) / bins
    # p is a multiple of 1 / m; rounding must not push it over a q that it equals.
    frequency = (p <= q[:, None, None] + 1e-6).to(poses).mean(1)  # (bins, J)
    return (frequency - q[:, None]).abs().mean(0), q, frequency


def acceleration_error(poses: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of second differences in mm a frame squared: (..., T, J, 3) -> (..., T - 2)."""
    second = [x[..., 2:, :, :] - 2 * x[..., 1:-1, :, :] + x[..., :-2, :, :] for x in (poses, truth)]
    return mpjpe(second[0], second[1])


def by_group(values: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """Mean of values (B,) within each group, in alphabetical order: per-action tables.

    The published average of such a table is the mean of its entries, whatever their sizes.
    """
    of = np.array(groups)
    return {name: float(values.double()[of == name].mean()) for name in sorted(set(groups))}
