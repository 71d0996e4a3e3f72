"""Motion seen by virtual cameras: random bodies, viewpoints, and keypoints as a detector would give them.

Every number is a pure function of (seed, index), so that batches can be cut in any way and runs resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dd3g.pose.body.bodies import PosedBody
from dd3g.pose.body.geometry import FLIP, axis_angle_to_matrix, matrix_to_axis_angle, project
from dd3g.pose.body.skeletons import H36M_17, SMPL_24
from dd3g.pose.data.motion import Motion

SIZE = 1000
"""Side of the virtual pictures in pixels."""
PITCH = 30.0  # degrees by which cameras look up or down at most


@dataclass(frozen=True)
class Views:
    """B people in B pictures."""

    pose: Tensor  # (B, 17, 3) metres, camera frame, root-relative
    root: Tensor  # (B, 3) metres, camera frame
    K: Tensor  # (B, 3, 3) pixels
    size: tuple[int, int]  # width, height
    keypoints: Tensor  # (B, 17, 2) pixels as detected; (0, 0) where missing
    confidence: Tensor  # (B, 17) in 0..1, 0 where missing
    rotations: Tensor | None  # (B, 24, 3) axis-angle, SMPL-24, root rotation in the camera frame
    world_to_camera: Tensor  # (B, 3, 3) rotation; motion's world is y up

    @property
    def points(self) -> Tensor:
        """(B, 17, 2) pixels where the joints truly are."""
        return project(self.pose + self.root[:, None], self.K)

    def __len__(self) -> int:
        return len(self.pose)

    def to(self, device: str | torch.device) -> Views:
        """All tensors on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def synthesise(
    motion: Motion,
    indices: Tensor,
    seed: int,
    *,
    view: int = 0,
    steady: bool = False,
    bones: float = 0.15,
    mirror: bool = True,
    sigma: float = 5.0,
    occluded: float = 0.1,
) -> Views:
    """Views of frames by random cameras.

    Args:
        motion: N frames.
        indices: (B,) integers >= 0; frame index % N, and every index its own draw: i and i + N are two views
            of one frame.
        seed: of all draws.
        view: another camera and another detector on the same body, for multi-view work.
        steady: draw body and camera once a clip, for video; the camera stands still and sees the whole clip.
        bones: bone lengths change by up to this share together and again one by one, both sides alike.
        mirror: swap left and right in half of the draws.
        sigma: detector noise in pixels of a 1000 pixel picture.
        occluded: share of joints that are occluded, see `detect`.
    """
    frames = indices % len(motion)
    # Indices of one clip share their draws by sharing the key, which no frame's index can collide with.
    body = -1 - motion.clip[frames] if steady else indices
    joints, rotations = motion.joints[frames], motion.rotations
    joints = _resized(joints, seed, body, bones)
    rotations = None if rotations is None else rotations[frames]
    if mirror:
        mirrored = uniform(seed, 1, body, 1)[:, 0] < 0.5
        joints = torch.where(mirrored[:, None, None], _mirror(joints, H36M_17.mirrored, -1), joints)
        if rotations is not None:
            flipped = _mirror(rotations, SMPL_24.mirrored, 1)
            rotations = torch.where(mirrored[:, None, None], flipped, rotations)
    R, root, K = _cameras(motion, frames, seed + 101 * view, body, steady)
    if steady:
        offset = motion.root[frames] - _centres(motion)[0][motion.clip[frames]]
        if mirror:
            offset = torch.where(mirrored[:, None], offset * torch.tensor([-1.0, 1.0, 1.0]), offset)
        root = root + (R @ offset[..., None])[..., 0]
    pose = joints @ R.transpose(-1, -2)
    if rotations is not None:
        world = axis_angle_to_matrix(rotations[:, 0])
        rotations = torch.cat([matrix_to_axis_angle(R @ world)[:, None], rotations[:, 1:]], 1)
    points = project(pose + root[:, None], K)
    keypoints, confidence = detect(points, (SIZE, SIZE), seed + 101 * view, indices, sigma, occluded)
    return Views(pose, root, K, (SIZE, SIZE), keypoints, confidence, rotations, R)


def posed(motion: Motion, rows: Tensor, body: PosedBody, betas: Tensor) -> Motion:
    """Frames `rows` (B,) of a motion, whose joints become those of `body` with betas (B, 10)."""
    frames = motion.frames(rows)
    assert frames.rotations is not None
    return replace(frames, joints=body.points(axis_angle_to_matrix(frames.rotations), betas))


def detect(
    points: Tensor,
    size: tuple[int, int],
    seed: int,
    indices: Tensor,
    sigma: float = 5.0,
    occluded: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Keypoints as a detector might give them.

    Visible joints: Gaussian noise, confidence 0.6 to 1 and lower the larger the noise. Occluded ones: half
    are guessed, with eight times the noise and confidence 0.05 to 0.4; half are missing. Joints outside of
    the picture are missing.

    Points (B, J, 2) are in pixels of a picture of `size`, width and height, `sigma` in pixels of one whose
    longer side is 1000; `indices` (B,) are the keys of the rows' draws.

    Returns:
        keypoints (B, J, 2) pixels, (0, 0) where missing, and confidence (B, J), 0 there.
    """
    joints = points.shape[1]
    noise = normal(seed, 20, indices, 2 * joints).reshape(-1, joints, 2)
    chance, kind, u = (uniform(seed, stream, indices, joints) for stream in (21, 22, 23))
    hidden = chance < occluded
    displaced = noise * torch.where(hidden, 8.0, 1.0)[..., None] * (sigma * max(size) / 1000)
    keypoints = points + displaced
    seen = (1 - 0.1 * noise.norm(dim=-1) - 0.1 * u).clamp(0.6, 1.0)
    confidence = torch.where(hidden, 0.05 + 0.35 * u, seen)
    limits = torch.tensor(size, dtype=points.dtype)
    outside = ((points < 0) | (points > limits)).any(-1)
    missing = (hidden & (kind < 0.5)) | outside
    return torch.where(missing[..., None], 0.0, keypoints), torch.where(missing, 0.0, confidence)


def uniform(seed: int, stream: int, keys: Tensor, count: int) -> Tensor:
    """(B, count) float32 in (0, 1), a pure function of seed, stream and each key (counter-based splitmix64).

    The stream tells draws for different purposes apart; keys (B,) are int64.
    """
    start = _mix(_mix(torch.tensor(seed) + 0x632BE5AB * stream) ^ keys)  # (B,)
    bits = _mix(start[:, None] + _GOLDEN * torch.arange(1, count + 1))
    # 23 bits and a half are what float32 holds exactly: with 24 the largest would round to 1.
    return (((bits >> 41) & 0x7FFFFF).float() + 0.5) / 2**23


def normal(seed: int, stream: int, keys: Tensor, count: int) -> Tensor:
    """(B, count) standard normal; arguments as for `uniform`."""
    return torch.special.ndtri(uniform(seed, stream, keys, count).double()).float()


_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio as a signed number


def _mix(x: Tensor) -> Tensor:
    """Splitmix64's finaliser on int64; shifts are made logical by masks."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _resized(joints: Tensor, seed: int, keys: Tensor, amount: float) -> Tensor:
    """The same bone directions with other lengths, left and right alike."""
    if amount == 0:
        return joints
    draws = 1 + amount * (2 * uniform(seed, 2, keys, 18) - 1)
    scale = draws[:, 17:] * draws[:, :17]
    scale[:, H36M_17.left] = scale[:, H36M_17.right]
    result = joints.clone()
    for parent, child in H36M_17.bones:  # parents come first in the order
        result[:, child] = result[:, parent] + scale[:, child, None] * (joints[:, child] - joints[:, parent])
    return result


def _mirror(x: Tensor, order: list[int], sign: int) -> Tensor:
    """Reflect at the plane x = 0: points (sign -1) negate x, axis-angle vectors (sign 1) negate y and z."""
    return x[:, order] * torch.tensor([sign, -sign, -sign], dtype=x.dtype)


def _centres(motion: Motion) -> tuple[Tensor, Tensor]:
    """Per clip the middle (C, 3) of the root's way and how far it goes from there (C,)."""
    clips = len(motion.actions)
    index = motion.clip[:, None].expand(-1, 3)
    low = torch.full((clips, 3), torch.inf).scatter_reduce(0, index, motion.root, "amin")
    high = torch.full((clips, 3), -torch.inf).scatter_reduce(0, index, motion.root, "amax")
    return (low + high) / 2, (high - low).norm(dim=-1) / 2


def _cameras(
    motion: Motion, frames: Tensor, seed: int, keys: Tensor, steady: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """World-to-camera rotations (B, 3, 3), the point looked at in camera frames (B, 3), and K (B, 3, 3).

    The point looked at is the root, or with `steady` the middle of its way.
    """
    u = uniform(seed, 3, keys, 8)
    azimuth = 2 * torch.pi * u[:, 0]
    elevation = torch.deg2rad(PITCH * (2 * u[:, 1] - 1))
    roll = torch.deg2rad(5 * (2 * u[:, 2] - 1))
    turn = axis_angle_to_matrix(azimuth[:, None] * torch.tensor([0.0, 1.0, 0.0]))
    tilt = axis_angle_to_matrix(elevation[:, None] * torch.tensor([1.0, 0.0, 0.0]))
    lean = axis_angle_to_matrix(roll[:, None] * torch.tensor([0.0, 0.0, 1.0]))
    R = lean @ FLIP @ tilt @ turn
    focal = SIZE * (0.8 + u[:, 3])  # field of view 64 to 31 degrees
    share = 0.35 + 0.45 * u[:, 4]  # of the picture's height that an upright person of 1.8 m fills
    distance = (1.8 * focal / (share * SIZE)).clamp(min=2.0)
    if steady:
        distance = distance + 2 * _centres(motion)[1][motion.clip[frames]]
    middle = SIZE * (0.5 + 0.04 * (u[:, 5:7] - 0.5))  # principal point
    aim = SIZE * (0.5 + 0.1 * (uniform(seed, 4, keys, 2) - 0.5))  # where the root appears
    root = torch.cat([(aim - middle) / focal[:, None], torch.ones(len(keys), 1)], -1) * distance[:, None]
    K = torch.zeros(len(keys), 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2] = middle
    K[:, 2, 2] = 1
    return R, root, K
