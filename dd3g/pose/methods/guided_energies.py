"""What is known about a pose, as energies that guide the prior: heatmaps, keypoints, joints, bones.

Each is a negative log likelihood of poses (N, 17, 3) in metres. The N = B m poses are m hypotheses of each
of B people, people first, and what is known has one row a person, so nothing is copied for the hypotheses.
While a pose is still uncertain by `spread` metres, the likelihood of what is known about it is wider:
`at(spread)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from dd3g.diffusion import Energy
from dd3g.pose.body.geometry import extent, project, solve_translation, translation_by_size
from dd3g.pose.body.skeletons import H36M_17, bone_lengths


@dataclass(frozen=True)
class Evidence(Energy):
    """Base of the energies here."""

    # Metres by which each coordinate of a joint may still be wrong, one or (17,)
    spread: Tensor | float = 0.0

    def at(self, spread: Tensor | float) -> Self:
        """The same for poses that are uncertain by `spread` metres."""
        return replace(self, spread=spread)

    def _spread(self, x0: Tensor) -> Tensor:
        """`spread` (17,) of each joint."""
        return torch.as_tensor(self.spread).to(x0).expand(len(H36M_17))


@dataclass(frozen=True, kw_only=True)
class Reprojection(Evidence):
    """Base of energies in the picture: where joints land, how surely, and the root's translation."""

    keypoints: Tensor  # (B, 17, 2) pixels, from which the translation follows; finite where not seen too
    confidence: Tensor  # (B, 17) of each joint in 0..1; 0 where it was not seen
    K: Tensor  # (B, 3, 3) or (3, 3) pixels
    # (B, 3) or (N, 3) metres where the root is known; None solves for it at each call
    translation: Tensor | None = None
    outlier: float = 20.0  # standard deviations from which on a joint counts as wrong and pulls ever less
    # (17, 17) metres^2, of people as large as the poses, while these are vague: sizes tell the depth then
    reach: Tensor | None = None
    slack: float = 1.2  # see `translation_by_size`

    def solve(self, poses: Tensor) -> Tensor:
        """Translation (N, 3) in metres: the given one, one by size, or the closest fit to the rays."""
        if self.translation is not None:
            return self.translation.repeat_interleave(len(poses) // len(self.translation), 0)
        shaped = poses.detach().unflatten(0, (len(self.confidence), -1))
        known = self.keypoints[:, None], self.confidence[:, None], self._cameras()[:, None]
        if self.reach is None:
            return solve_translation(shaped, *known).flatten(0, 1)
        return translation_by_size(shaped, *known, self.reach, self.slack).flatten(0, 1)

    def _cameras(self) -> Tensor:
        return self.K.expand(len(self.confidence), 3, 3)

    def _pixels(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Places (B, m, 17, 2) and the variance (B, m, 17) in pixels^2 that `spread` gives them."""
        B = len(self.confidence)
        # The translation is where the energy is least, or nearly so: its own derivative does not matter.
        translation = self.solve(poses)
        K = self._cameras()[:, None]
        points = project((poses + translation[:, None]).unflatten(0, (B, -1)), K)
        scale = K[..., 0, 0] / translation[:, 2].clamp(min=0.1).unflatten(0, (B, -1))  # pixels per metre
        return points, (scale[..., None] * self._spread(poses)).square()

    def _robust(self, away: Tensor, variance: Tensor) -> Tensor:
        """Log likelihood (B, m, 17) of residuals (B, m, 17, 2), by Geman and McClure."""
        square = (away.square() / variance).sum(-1)
        return -square / (2 + 2 * square / self.outlier**2)


@dataclass(frozen=True, kw_only=True)
class Keypoint2D(Reprojection):
    """Keypoints with Gaussian noise, each of which may be an outlier: sum q / (2 + 2 q / k^2).

    q is the squared residual over the variance, k is `outlier` (Geman & McClure 1987). Confidence c stands
    for a standard deviation of sigma / c, which at the end is a weight of c^2, and no less pull while all
    is uncertain.
    """

    sigma: Tensor | float = 5.0  # detector noise in pixels, one or (B,)

    def __call__(self, x0: Tensor) -> Tensor:
        """Poses (N, 17, 3) in metres -> (N,)."""
        points, variance = self._pixels(x0)
        sigma = torch.as_tensor(self.sigma).to(x0).reshape(-1, 1, 1)
        confidence = self.confidence[:, None]
        variance = (sigma / confidence.clamp(min=1e-6)).square() + variance
        fit = self._robust(points - self.keypoints[:, None], variance[..., None])
        return -((confidence > 0) * fit).sum(-1).flatten()


@dataclass(frozen=True, kw_only=True)
class HeatmapNLL(Reprojection):
    """Heatmaps of any shape: -sum c log(H * G + floor) where joints land, H summing to 1, G of height 1.

    Beyond the reach of G the floor falls with the distance to the peak, so that a lost joint finds back.
    The blurred map is not built: its value at a place is a sum of Gaussians over the cells, which is exact,
    smooth and also has a gradient outside of the map.
    """

    heatmaps: Tensor  # (B, 17, h, w) >= 0, of any sum
    boxes: Tensor  # (B, 4) left, top, right, bottom of the maps in pixels
    keypoints: Tensor = field(init=False)  # mean places under the squared maps, which keeps to the peaks
    # Blur in cells that is left when the pose is certain; below 0.5 the gaps between cells show
    sigma: float = 1.0
    floor: float = 1e-3  # likelihood of a place that the detector denies, next to its best

    def __post_init__(self) -> None:
        total = self.heatmaps.clamp(min=0).sum((-1, -2), keepdim=True)
        object.__setattr__(self, "heatmaps", self.heatmaps.clamp(min=0) / total.clamp(min=1e-12))
        # An empty map carries no information about its joint.
        object.__setattr__(self, "confidence", self.confidence * (total[..., 0, 0] > 0))
        weight = self.heatmaps.square()
        weight = weight / weight.sum((-1, -2), keepdim=True).clamp(min=1e-20)
        columns, rows = (torch.arange(n).to(weight) + 0.5 for n in (weight.shape[-1], weight.shape[-2]))
        cells = torch.stack([(weight.sum(-2) * columns).sum(-1), (weight.sum(-1) * rows).sum(-1)], -1)
        object.__setattr__(self, "keypoints", cells * self._cell[:, None] + self.boxes[:, None, :2])

    @property
    def _cell(self) -> Tensor:
        """(B, 2) pixels a cell."""
        size = torch.tensor(self.heatmaps.shape[:-3:-1]).to(self.boxes)  # w, h
        return (self.boxes[:, 2:] - self.boxes[:, :2]) / size

    def __call__(self, x0: Tensor) -> Tensor:
        """Poses (N, 17, 3) in metres -> (N,)."""
        points, variance = self._pixels(x0)
        cell = self._cell[:, None, None]  # (B, 1, 1, 2)
        places = (points - self.boxes[:, None, None, :2]) / cell  # (B, m, 17, 2) cells
        variance = variance[..., None] / cell.square() + self.sigma**2  # (B, m, 17, 2)
        weights = []
        for axis, count in ((0, self.heatmaps.shape[-1]), (1, self.heatmaps.shape[-2])):
            away = places[..., axis, None] - (torch.arange(count).to(places) + 0.5)  # (B, m, 17, count)
            weights.append(torch.exp(-away.square() / (2 * variance[..., axis, None])).transpose(1, 2))
        columns, rows = weights  # (B, 17, m, w), (B, 17, m, h)
        likelihood = ((rows @ self.heatmaps) * columns).sum(-1).transpose(1, 2)  # (B, m, 17)
        peaks = (self.keypoints - self.boxes[:, None, :2]) / self._cell[:, None]  # (B, 17, 2)
        floor = math.log(self.floor) + self._robust(places - peaks[:, None], variance)
        fit = torch.logaddexp(likelihood.clamp(min=1e-30).log(), floor)
        return -(self.confidence[:, None] * fit).sum(-1).flatten()


def keypoint_noise(keypoints: Tensor, confidence: Tensor) -> Tensor:
    """Detector noise where nothing better is known: 1 % of the longer side of the person in the picture.

    Keypoints (B, J, 2) pixels, confidence (B, J), 0 where not seen -> (B,) pixels, at least 1.
    """
    return (0.01 * extent(keypoints, confidence)).clamp(min=1.0)


@dataclass(frozen=True, kw_only=True)
class Known3D(Evidence):
    """Some joints known in 3D: |M (x0 - y)|^2 / 2 s^2, up to a shift where the root is not among them."""

    points: Tensor  # (B, 17, 3) metres; anything finite where unknown
    mask: Tensor  # (B, 17) 1 where known, 0 where not
    sigma: float = 0.005  # metres

    def __call__(self, x0: Tensor) -> Tensor:
        """Poses (N, 17, 3) in metres -> (N,)."""
        mask = self.mask.to(x0)[:, None, :, None]  # (B, 1, 17, 1)
        away = mask * (x0.unflatten(0, (len(self.points), -1)) - self.points[:, None])  # (B, m, 17, 3)
        shift = away.sum(-2, keepdim=True) / mask.sum(-2, keepdim=True).clamp(min=1)
        away = torch.where(mask[:, :, :1] > 0, away, away - mask * shift)
        variance = self.sigma**2 + self._spread(x0).square()
        return (away.square().sum(-1) / (2 * variance)).sum(-1).flatten()


@dataclass(frozen=True, kw_only=True)
class BoneLength(Evidence):
    """A person whose bones were measured: sum (|b| - l)^2 / 2 s^2."""

    lengths: Tensor  # (B, 16) metres in the order of `H36M_17.bones`; NaN where not known
    sigma: float = 0.01  # metres

    def __call__(self, x0: Tensor) -> Tensor:
        """Poses (N, 17, 3) in metres -> (N,)."""
        away = bone_lengths(x0).unflatten(0, (len(self.lengths), -1)) - self.lengths[:, None]
        # The farther end of a bone is the less certain one.
        variance = self.sigma**2 + self._spread(x0)[1:].square()
        return (away.nan_to_num(nan=0.0).square() / (2 * variance)).sum(-1).flatten()


@dataclass(frozen=True, kw_only=True)
class Smooth(Evidence):
    """Consecutive frames of one person as the B people: sum |x_{i+1} - x_i|^2 / 2 s^2, shared by both."""

    frames: int  # B
    sigma: Tensor | float = 0.02  # metres that a joint usually moves from frame to frame, one or (B - 1,)

    @staticmethod
    def over(times: Tensor, speed: float = 0.6) -> Smooth:
        """For frames at times (B,) seconds, of joints that usually move at `speed` metres a second."""
        return Smooth(frames=len(times), sigma=(speed * times.diff().clamp(min=1e-3)).float())

    def __call__(self, x0: Tensor) -> Tensor:
        """Poses (N, 17, 3) in metres -> (N,)."""
        step = x0.unflatten(0, (self.frames, -1)).diff(dim=0).square().sum(-1)  # (B - 1, m, 17)
        # All frames move at once, each drawn by two others that are as vague as it is: with their variance
        # alone they would overshoot.
        sigma = torch.as_tensor(self.sigma).to(x0).reshape(-1, 1, 1)
        variance = sigma.square() + 4 * self._spread(x0).square()
        step = (step / (2 * variance)).sum(-1) / 2  # (B - 1, m)
        shared = torch.nn.functional.pad(step, (0, 0, 1, 0)) + torch.nn.functional.pad(step, (0, 0, 0, 1))
        return shared.flatten()
