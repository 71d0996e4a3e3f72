"""The floor that people in a video walk on, and a world that stands on it, for a camera that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dd3g.pose.body.skeletons import H36M_17, bone_lengths
from dd3g.pose.methods.advice import grown
from dd3g.pose.series import Values, chunks

ANKLES = [H36M_17.joints.index(f"{side}_ankle") for side in "lr"]
THORAX = H36M_17.joints.index("thorax")
STILL = 0.4  # metres a second; a foot in the air is faster for most of its way
LEVEL = 0.1  # metres by which a foot on the floor may lie above the lower one
ENOUGH = 0.5  # seconds of standing feet, all together
STANCE = 0.3  # seconds of one: frames of the same step do not tell more than one would
UNEVEN = 0.03  # metres, of places of feet
TILT = 0.17  # tangent of the angle between the floor's normal and people on average, 10 degrees


@dataclass(frozen=True)
class Ground:
    """A plane in the camera frame: the points x with normal · x = -height."""

    normal: Tensor  # (3,) unit, up
    height: float  # metres, of the camera above it
    spread: float  # metres, root mean square, by which standing feet lie off it
    seconds: float  # how long feet stood, all together

    @property
    def rotation(self) -> Tensor:
        """(3, 3) from the camera frame to the world: y up, the camera looks along -z."""
        back = torch.tensor([0.0, 0.0, -1.0]).to(self.normal)
        right = torch.linalg.cross(self.normal, back)
        if right.norm() < 1e-3:  # a camera that looks straight down or up has its right all the same
            right = torch.tensor([1.0, 0.0, 0.0]).to(self.normal)
            right = right - (right @ self.normal) * self.normal
        right = right / right.norm()
        return torch.stack([right, self.normal, torch.linalg.cross(right, self.normal)])

    @property
    def offset(self) -> Tensor:
        """(3,) metres, the camera in the world, whose origin lies on the floor below it."""
        return torch.tensor([0.0, self.height, 0.0]).to(self.normal)

    def place(self, points: Tensor) -> Tensor:
        """Points (..., 3) of the camera frame in the world, metres."""
        return points @ self.rotation.T + self.offset


def find_ground(tracks: Sequence[tuple[Values, Tensor]]) -> Ground | None:
    """Fit the floor to feet that stand still.

    Feet on one line do not tell how the floor tilts across it, nor does someone who stands on one spot; what
    they leave open, the mean direction from feet to thorax decides.

    Tracks are everyone's joints (T, 17, 3) in metres, in the frame of a camera that stands still, and their
    times (T,) in seconds, rising. There is no floor where feet stood for less than `ENOUGH` seconds.
    """
    feet, weights, above, ups = [], [], [], []
    for joints, times in tracks:
        if len(joints) < 3:
            continue
        times = times.double()
        ankles, bodies, lengths = _feet(joints)
        up = bodies.sum(0) / bodies.sum(0).norm()
        (speed,) = torch.gradient(ankles, spacing=(times,), dim=0)
        heights = ankles @ up  # (T, 2)
        standing = speed.norm(dim=-1) < STILL
        standing &= heights < heights.amin(1, keepdim=True) + LEVEL
        passed = torch.gradient(times)[0].clamp(max=STANCE)[:, None].expand_as(standing)
        feet.append(ankles[standing])
        weights.append(passed[standing])
        size = float(lengths.mean()) / grown().bones
        above.append(torch.full_like(weights[-1], size * grown().ankle))
        ups.append(len(joints) * up)
    if not feet or float(sum(w.sum() for w in weights)) < ENOUGH:
        return None
    points, weight, lift = torch.cat(feet), torch.cat(weights), torch.cat(above)
    up = torch.stack(ups).sum(0)
    return _fitted(points, weight, lift, up / up.norm())


def _feet(joints: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Ankles (T, 2, 3), the ways (T, 3) from between them to the thorax, and lengths (T,) of all bones."""
    found = []
    for chunk in chunks(len(joints)):
        here = joints[chunk].double()
        ankles = here[:, ANKLES]
        found.append((ankles, here[:, THORAX] - ankles.mean(1), bone_lengths(here).sum(-1)))
    ankles, bodies, lengths = (torch.cat(values) for values in zip(*found, strict=True))
    return ankles, bodies, lengths


def _fitted(points: Tensor, weight: Tensor, lift: Tensor, up: Tensor) -> Ground:
    """Least squares under a prior of the tilt, over ankles (N, 3) that stand `lift` (N,) above the floor.

    Repeated with less weight for feet that lie far off, as those do that are on stairs, or on their toes.
    """
    normal, trust = up, torch.ones_like(weight)
    middle = points.mean(0)
    across = torch.linalg.svd(up[None])[2][1:]  # (2, 3) two directions of the level plane
    for _ in range(10):
        soles = points - lift[:, None] * normal - middle
        A = torch.cat([soles @ across.T, torch.ones_like(weight)[:, None]], 1)  # (N, 3)
        w = trust * weight / STANCE / UNEVEN**2
        prior = torch.diag(torch.tensor([TILT**-2, TILT**-2, 0.0]).to(up))
        slope = torch.linalg.solve(A.T @ (w[:, None] * A) + prior, A.T @ (w * (soles @ up)))
        normal = up - slope[:2] @ across
        normal = normal / normal.norm()
        away = soles @ up - A @ slope
        trust = 1 / (1 + (away / (2 * UNEVEN)).square())
    floor = middle + slope[2] * up
    spread = (weight * away.square()).sum() / weight.sum()
    return Ground(normal.float(), -float(normal @ floor), float(spread.sqrt()), float(weight.sum()))
