"""Bodies that a regressor saw in the same pictures (HMR2, ProHMR), for recovery to start from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.data.arrays import read_npz, tensor
from dd3g.pose.data.scorehmr import load_predictions
from dd3g.pose.detection.detected import Seen, numbered, same_picture, stem
from dd3g.pose.detection.people import Detection


@dataclass(frozen=True)
class Regressed:
    """N bodies."""

    path: Path  # of the file, for messages
    rotations: Tensor  # (N, 24, 3, 3), SMPL's tree, the root's in the camera frame
    # Of their pictures, without folder and suffix; None where the file does not say
    names: tuple[str, ...] | None = None
    centers: Tensor | None = None  # (N, 2) px, middles of their boxes; None where the file does not say
    features: Tensor | None = None  # (N, F) of their pictures; None where the file does not say

    def in_picture(self, people: Sequence[Detection], picture: str) -> list[Detection]:
        """Everyone in a picture, by its name without folder and suffix, with the body to start from.

        Files without names are of one picture.

        Raises:
            UserError: nobody in the file is of this picture, or it cannot be said who is who.
        """
        rows = list(range(len(self.rotations)))
        if self.names is not None:
            rows = [i for i, name in enumerate(self.names) if same_picture(name, picture)]
        if not rows:
            known = ", ".join(dict.fromkeys(self.names or ()))
            raise UserError(f"{self.path} has nobody in {picture}, only in {known[:80]}")
        return self._matched(people, rows, picture)

    def in_frames(self, frames: Iterable[Sequence[Detection]], every: int = 1) -> Iterator[list[Detection]]:
        """The people of every n-th frame of a video with the bodies to start from, frame by frame.

        Files whose names end with the frames' numbers, counted from 0 or where none is 0 from 1, may leave
        frames out, and without names there is a body for each person in each frame, in their order.

        Raises:
            UserError: another number of bodies, or it cannot be said who is who.
        """
        if self.names is None:
            done = 0
            for people in frames:
                rows = range(done, min(done + len(people), len(self.rotations)))
                done += len(people)
                yield [self._started(p, row) for p, row in zip(people, rows, strict=False)]
            if done != len(self.rotations):
                raise UserError(
                    f"{self.path} has {len(self.rotations)} bodies, the video shows {done} in all "
                    "its frames: give 'imgname', the frames' names, and 'center' beside them"
                )
            return
        numbers: dict[int, list[int]] = {}
        for row, seen in enumerate(numbered([Seen((), name) for name in self.names])):
            if seen.number is None:
                raise UserError(
                    f"{self.path}: 'imgname' must end with the frames' numbers, 000001.jpg and so on"
                )
            numbers.setdefault(seen.number, []).append(row)
        first = min(1, *numbers)
        for f, people in enumerate(frames):
            here = numbers.get(f * every + first, [])
            yield self._matched(people, here, f"frame {f * every}") if here and people else list(people)

    def _matched(self, people: Sequence[Detection], rows: list[int], where: str) -> list[Detection]:
        """By the middles of boxes, the nearest pair first; without them by order."""
        if self.centers is None:
            if len(rows) != len(people):
                raise UserError(
                    f"{self.path} has {len(rows)} bodies, {where} shows {len(people)} people: give 'center', "
                    "the middles of their boxes, to say who is who"
                )
            return [self._started(p, i) for p, i in zip(people, rows, strict=True)]
        middles = torch.stack([(p.square[:2] + p.square[2:]) / 2 for p in people])
        sides = torch.stack([p.square[2] - p.square[0] for p in people])
        away = torch.cdist(middles, self.centers[rows]) / sides[:, None]
        found = list(people)
        while away.numel() and away.min() < 0.5:
            i, k = divmod(int(away.argmin()), away.shape[1])
            found[i] = self._started(found[i], rows[k])
            away[i], away[:, k] = torch.inf, torch.inf
        return found

    def _started(self, person: Detection, row: int) -> Detection:
        features = None if self.features is None else self.features[row]
        return replace(person, start=self.rotations[row], features=features)


def read_regressed(path: str | Path) -> Regressed:
    """Read pred_pose, pred_betas, pred_cam, and imgname, center and pose_feats where the file has them.

    Shapes are not taken over: the body that ships is not SMPL's.

    Raises:
        UserError: see `load_predictions`; or names or middles of another number of people.
    """
    path = Path(path)
    predictions = load_predictions(path)
    rotations = predictions.rotations
    found, n = read_npz(path), len(rotations)
    # Sums of products with the transpose tell rotations from anything else.
    if not torch.allclose(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-2):
        raise UserError(f"{path}: pred_pose must be rotation matrices (N, 24, 3, 3)")
    names = None
    if "imgname" in found:
        words = np.ravel(found["imgname"]).tolist()
        if len(words) != n:
            raise UserError(f"{path}: imgname must be one for each of {n} people, got {len(words)}")
        names = tuple(stem(word.decode() if isinstance(word, bytes) else word) for word in words)
    centers = tensor(found["center"], (n, 2), f"{path}, center") if "center" in found else None
    return Regressed(path, rotations, names, centers, predictions.pose_features)
