"""Projection, alignment, root translation in closed form, and rotations."""

from __future__ import annotations

import torch
from torch import Tensor

from dd3g.gaussians import matrix_to_quaternion

FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # OpenCV axes to y up, z towards the viewer


def project(points: Tensor, K: Tensor) -> Tensor:
    """Pinhole projection.

    Args:
        points: (..., J, 3) metres, OpenCV camera frame; depths below 1 cm count as 1 cm.
        K: (..., 3, 3) pixels; batch shape that broadcasts with the points' without J.

    Returns:
        (..., J, 2) pixels.
    """
    z = points[..., 2:].clamp(min=1e-2)
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[..., None, :]
    skew = K[..., 0, 1, None, None] * torch.tensor([1.0, 0.0]).to(points)
    scaled = points[..., :2] / z
    return scaled * focal + scaled[..., 1:] * skew + K[..., None, :2, 2]


def unproject(keypoints: Tensor, K: Tensor) -> Tensor:
    """Pixels (..., J, 2) with K (..., 3, 3) -> (..., J, 2), x / z and y / z of their rays."""
    y = (keypoints[..., 1] - K[..., 1, 2, None]) / K[..., 1, 1, None]
    x = (keypoints[..., 0] - K[..., 0, 2, None] - y * K[..., 0, 1, None]) / K[..., 0, 0, None]
    return torch.stack([x, y], -1)


def extent(keypoints: Tensor, confidence: Tensor) -> Tensor:
    """(B,) the longer side in pixels, at least 1, of the box around what is seen of (B, J, 2), (B, J)."""
    seen = confidence[..., None] > 0
    low = torch.where(seen, keypoints, torch.inf).amin(1)
    high = torch.where(seen, keypoints, -torch.inf).amax(1)
    return (high - low).amax(-1).clamp(min=1)


def procrustes(a: Tensor, b: Tensor) -> Tensor:
    """Move a onto b by the similarity of least squares, never a reflection (Umeyama 1991, eq. 34-42).

    Both are points (..., J, 3) and broadcast. Where all points of a coincide they land on b's mean.
    """
    mean_a, mean_b = a.mean(-2, keepdim=True), b.mean(-2, keepdim=True)
    x, y = a - mean_a, b - mean_b
    u, s, vh = torch.linalg.svd(x.transpose(-1, -2) @ y)
    sign = torch.ones_like(s)
    # A product of determinants tells a reflection also where the covariance is singular.
    sign[..., -1] = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0)
    rotation = (u * sign[..., None, :]) @ vh  # acts on rows: x @ rotation
    scale = (s * sign).sum(-1) / x.square().sum((-1, -2)).clamp(min=1e-12)
    return scale[..., None, None] * (x @ rotation) + mean_b


def solve_translation(pose: Tensor, keypoints: Tensor, confidence: Tensor, K: Tensor) -> Tensor:
    """Root translation that brings a pose closest to the rays of its keypoints, in closed form (ZeDO).

    With rays (u, v, 1) every joint gives two rows, [-1 0 u] T = X - Z u and [0 -1 v] T = Y - Z v, weighted by
    confidence squared. A solution behind the camera is mirrored. Without any confidence the answer is 4 m
    in front of the camera. Gradients reach pose and keypoints.

    Args:
        pose: (..., J, 3) metres, root-relative, camera frame.
        keypoints: (..., J, 2) pixels; may be anything finite where the confidence is 0.
        confidence: (..., J) >= 0.
        K: (..., 3, 3) pixels.

    Returns:
        (..., 3) metres.
    """
    # Small people in large pictures make the normal equations too ill-conditioned for float32.
    x, rays, w = pose.double(), unproject(keypoints.double(), K.double()), confidence.double().square()
    right = (x[..., :2] - x[..., 2:] * rays).flatten(-2)  # (..., 2 J)
    rows = torch.cat([-torch.eye(2).to(x).expand(*rays.shape, 2), rays[..., None]], -1).flatten(-3, -2)
    weighted = rows.mT * w.repeat_interleave(2, -1)[..., None, :]  # (..., 3, 2 J)
    # So little that it shows only where nothing else is known.
    ridge = 1e-12
    A = weighted @ rows + ridge * torch.eye(3).to(x)
    b = weighted @ right[..., None] + ridge * torch.tensor([[0.0], [0.0], [4.0]]).to(x)
    T = torch.linalg.solve(A, b)[..., 0]
    return torch.where(T[..., 2:] < 0, -T, T).to(pose)


def translation_by_size(
    pose: Tensor, keypoints: Tensor, confidence: Tensor, K: Tensor, reach: Tensor, slack: float
) -> Tensor:
    """Root translation at which a pose is as large in the picture as its keypoints, in closed form.

    Least squares place a pose that does not match its keypoints too near, and the nearer the less it does:
    what does not correlate counts as noise. Sizes do not care. What is known of people bounds the depth.

    `reach` (J, J) are mean squared distances of two joints of people as the picture shows them, metres^2; the
    depth is at most by the factor `slack` >= 1 away from where people of that reach would be. The other
    arguments are those of `solve_translation`, which answers where less than two joints were seen.
    """
    rays, w = unproject(keypoints, K), confidence.square()  # (..., J, 2), (..., J)
    rays = torch.where(confidence[..., None] > 0, rays, 0.0)
    w = w / w.sum(-1, keepdim=True).clamp(min=1e-12)

    def mean(x: Tensor) -> Tensor:
        return (w[..., None] * x).sum(-2, keepdim=True)

    def spread(x: Tensor) -> Tensor:
        return mean((x - mean(x)).square()).sum((-1, -2))

    seen = spread(rays)  # (...)
    known = seen.clamp(min=1e-12)
    usual = ((w[..., None, :] @ reach.to(w) @ w[..., None])[..., 0, 0] / (2 * known)).sqrt()
    depth = (spread(pose[..., :2]) / known).sqrt() - mean(pose[..., 2:])[..., 0, 0]
    depth = depth.clamp(min=usual / slack, max=usual * slack)[..., None]  # (..., 1)
    across = mean(rays * (pose[..., 2:] + depth[..., None]) - pose[..., :2])[..., 0, :]
    fit = solve_translation(pose, keypoints, confidence, K)
    return torch.where((seen > 1e-8)[..., None], torch.cat([across, depth], -1), fit)


def translation_at_depth(
    pose: Tensor, keypoints: Tensor, confidence: Tensor, K: Tensor, depth: Tensor
) -> Tensor:
    """Root translation that brings a pose at a known depth closest to its keypoints across the picture.

    `depth` (..., 1) is that of the root in metres; the other arguments are those of `solve_translation`.
    """
    rays = torch.where(confidence[..., None] > 0, unproject(keypoints, K), 0.0)
    z = pose[..., 2:] + depth[..., None, :]  # (..., J, 1)
    weight = confidence.square()[..., None] / z.clamp(min=0.1).square()  # of pixels, not of metres
    across = (weight * (rays * z - pose[..., :2])).sum(-2) / weight.sum(-2).clamp(min=1e-12)
    return torch.cat([across, depth], -1)


def rotation_6d_to_matrix(x: Tensor) -> Tensor:
    """(..., 6), the first two columns -> (..., 3, 3) by Gram-Schmidt (Zhou et al. 2019, eq. 15)."""
    a1, a2 = x[..., :3], x[..., 3:]
    b1 = torch.nn.functional.normalize(a1, dim=-1)
    b2 = torch.nn.functional.normalize(a2 - (b1 * a2).sum(-1, keepdim=True) * b1, dim=-1)
    return torch.stack([b1, b2, torch.linalg.cross(b1, b2)], -1)


def matrix_to_rotation_6d(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6): first column, then second column."""
    return torch.cat([R[..., 0], R[..., 1]], -1)


def axis_angle_to_matrix(v: Tensor) -> Tensor:
    """(..., 3) axis times radians -> (..., 3, 3), Rodrigues; smooth through zero."""
    square = v.square().sum(-1)[..., None, None]
    # sin(a) / a and (1 - cos(a)) / a^2 through sinc, which has a gradient at zero; the root has none there.
    angle = torch.where(square > 0, square, 1e-30).sqrt()
    a = torch.sinc(angle / torch.pi)
    b = 0.5 * torch.sinc(angle / (2 * torch.pi)).square()
    W = _cross_matrix(v)
    return torch.eye(3, dtype=v.dtype, device=v.device) + a * W + b * (W @ W)


def _cross_matrix(v: Tensor) -> Tensor:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def least_turn(source: Tensor, target: Tensor) -> Tensor:
    """The least rotations (..., 3, 3) that turn vectors (..., 3) into the directions of others (..., 3)."""
    a, b = torch.nn.functional.normalize(torch.stack(torch.broadcast_tensors(source, target)), dim=-1)
    W, cosine = _cross_matrix(torch.linalg.cross(a, b)), (a * b).sum(-1)[..., None, None]
    eye = torch.eye(3).to(a)
    turn = eye + W + W @ W / (1 + cosine).clamp(min=1e-6)
    # Opposite directions: half a turn about anything across.
    other = torch.where(a[..., :1].abs() < 0.9, a.new_tensor([1.0, 0, 0]), a.new_tensor([0.0, 1, 0]))
    across = torch.nn.functional.normalize(torch.linalg.cross(a, other), dim=-1)
    half = 2 * across[..., :, None] * across[..., None, :] - eye
    return torch.where(cosine < -1 + 1e-5, half, turn)


def nearest_rotation(M: Tensor) -> Tensor:
    """Matrices (..., 3, 3) -> the nearest rotations, never reflections (Kabsch 1976)."""
    u, _, vh = torch.linalg.svd(M)
    sign = torch.ones_like(M[..., 0])
    sign[..., 2] = torch.det(u @ vh).sign()
    return (u * sign[..., None, :]) @ vh


def matrix_to_axis_angle(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) axis times radians in 0..pi, by way of the quaternion."""
    q = matrix_to_quaternion(R)
    length = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, q[..., :1])
    return q[..., 1:] * torch.where(length > 1e-12, angle / length.clamp(min=1e-12), 2.0)
