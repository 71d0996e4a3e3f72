"""Several answers for one person, and the ways to make one of them: what every method returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dd3g.pose.body.geometry import solve_translation
from dd3g.pose.detection.people import Detection


@dataclass(frozen=True)
class Hypotheses:
    """m poses for each of B people."""

    poses: Tensor  # (B, m, 17, 3) metres, H36M-17, OpenCV camera frame, root-relative
    energy: Tensor  # (B, m), lower is better; comparable within a person only
    translation: Tensor | None = None  # (B, m, 3) metres, the root in the camera frame, where it is known
    # (B, 17, 3) metres, the one answer, where `dd3g.pose.methods.advice.advise` gave it
    advised: Tensor | None = None
    expected: Tensor | None = None  # (B,) metres by which that answer may be wrong, mean over joints

    def __post_init__(self) -> None:
        if self.poses.dim() != 4 or self.poses.shape[-1] != 3:
            raise ValueError(f"poses must be (B, m, J, 3), got {tuple(self.poses.shape)}")
        for name, value, shape in (
            ("energy", self.energy, self.poses.shape[:2]),
            ("translation", self.translation, (*self.poses.shape[:2], 3)),
            ("advised", self.advised, (len(self.poses), *self.poses.shape[2:])),
            ("expected", self.expected, (len(self.poses),)),
        ):
            if value is not None and value.shape != torch.Size(shape):
                raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(value.shape)}")

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, index: Any) -> Hypotheses:
        """Some of the people: a slice, a list or a mask."""
        return self._each(lambda values: values[index])

    def first(self, m: int) -> Hypotheses:
        """The first m hypotheses of everyone, as if no more had been drawn, and no advice yet."""
        alone = replace(self, advised=None, expected=None)
        return alone._each(lambda values: values[:, :m])

    @staticmethod
    def joined(parts: Sequence[Hypotheses]) -> Hypotheses:
        """The people of several, who have as many hypotheses and all a translation or none; no advice yet."""
        translations = [part.translation for part in parts if part.translation is not None]
        return Hypotheses(
            torch.cat([part.poses for part in parts]),
            torch.cat([part.energy for part in parts]),
            torch.cat(translations) if translations else None,
        )

    def to(self, *args: Any, **kwargs: Any) -> Hypotheses:
        """Same meaning as `Tensor.to`."""
        return self._each(lambda values: values.to(*args, **kwargs))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Hypotheses:
        given = {name: change(value) for name, value in vars(self).items() if value is not None}
        return replace(self, **given)

    def mean(self) -> Tensor:
        """(B, 17, 3) mean pose."""
        return self.poses.mean(1)

    def medoid(self) -> Tensor:
        """(B, 17, 3) the hypothesis that is nearest to all others, by mean distance of joints."""
        total = self.poses.new_zeros(self.poses.shape[:2])
        for joint in self.poses.unbind(2):  # one joint at a time: (B, m, m) instead of (B, m, m, 17)
            total += torch.cdist(joint, joint, compute_mode="donot_use_mm_for_euclid_dist").sum(-1)
        return self._chosen(total.argmin(-1))

    def best(self) -> Tensor:
        """(B, 17, 3) the hypothesis of lowest energy."""
        return self._chosen(self.energy.argmin(-1))

    def recommended(self) -> tuple[Tensor, Tensor]:
        """The one answer to give, and how wrong it may be.

        That is the advised pose, or where there is no advice the mean pose: its error is never above the mean
        error of the hypotheses, since distances are convex. Were the truth one more draw, its error would be
        the mean distance of the hypotheses from their mean times sqrt((m + 1) / (m - 1)), since the mean was
        fitted to them and not to the truth.

        Returns:
            poses (B, 17, 3) metres and expected error (B,) metres, mean over joints; NaN for one hypothesis.
        """
        if self.advised is not None and self.expected is not None:
            return self.advised, self.expected
        m = self.poses.shape[1]
        mean = self.mean()
        spread = (self.poses - mean[:, None]).norm(dim=-1).mean((1, 2))
        factor = ((m + 1) / (m - 1)) ** 0.5 if m > 1 else float("nan")
        return mean, spread * factor

    def _chosen(self, index: Tensor) -> Tensor:
        return self.poses[torch.arange(len(self.poses), device=index.device), index]


@dataclass(frozen=True)
class PersonHypotheses:
    """One person in 3D."""

    detection: Detection  # what it is made from
    method: str  # one of `dd3g.pose.methods.registry.METHODS`
    hypotheses: Hypotheses  # poses (1, m, 17, 3)
    # (24, 3, 3) of SMPL-24 joints relative to their parents, the root's in the camera frame
    rotations: Tensor | None = None
    betas: Tensor | None = None  # (10,) shape of the body
    track: int | None = None  # in a video, the number of the person, which stays the same over time
    root: Tensor | None = None  # (3,) metres where the root is known better than from this picture alone

    @property
    def pose(self) -> Tensor:
        """(17, 3) the recommended answer: metres, camera frame, root-relative."""
        return self.hypotheses.recommended()[0][0]

    @property
    def expected_error(self) -> float:
        """Metres, mean over joints; NaN for a single hypothesis."""
        return float(self.hypotheses.recommended()[1][0])

    @property
    def translation(self) -> Tensor:
        """(3,) metres: the root of the recommended pose in the camera frame."""
        if self.root is not None:
            return self.root
        d = self.detection
        return solve_translation(self.pose, d.keypoints, d.confidence, d.K)
