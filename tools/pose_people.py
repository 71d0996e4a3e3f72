"""Whom poses are evaluated on: people of each data set in 2D and 3D, and which subset that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.data.h36m import load_h36m
from dd3g.pose.data.motion import Motion, load_cmu
from dd3g.pose.data.mpi3dhp import load_3dhp_npz, load_3dhp_test
from dd3g.pose.data.recording import Recording
from dd3g.pose.data.threedpw import load_3dpw
from dd3g.pose.synthesis import synthesise

_HP3D = "root-aligned; PCK and AUC over the official 14 joints"
PROTOCOLS = {
    "cmu": {
        "noisy": "CMU archive, split test without clips of unknown people, a random camera each; keypoints "
        "with noise of 5 px in 1000, 10 % of joints occluded (half missing, half displaced, sigma 40 px)",
        "clean": "CMU archive, split test without clips of unknown people, a random camera each; exact "
        "keypoints",
    },
    "h36m": {
        "standard": "Human3.6M S9 and S11, all cameras and frames, mean of the 15 actions' means",
        "every64": "Human3.6M S9 and S11, every 64th frame, without S11 Directions by camera 54138969 "
        "(Wandt, Wehrbein), mean of the 15 actions' means",
    },
    "3dhp": {
        "annot3": f"MPI-INF-3DHP test set, valid frames, annot3 in millimetres, {_HP3D}",
        "universal": f"MPI-INF-3DHP test set, valid frames, univ_annot3, {_HP3D}",
    },
    "3dpw": {
        "smpl24": "3DPW, frames with a valid camera, its own OpenPose keypoints; truth is jointPositions as "
        "H36M-17, not the 14 joints regressed from meshes: not comparable with published tables",
    },
}


@dataclass(frozen=True)
class People:
    """B people in pictures of one size."""

    pose: Tensor  # (B, 17, 3) metres, camera frame, root-relative
    keypoints: Tensor  # (B, 17, 2) pixels
    confidence: Tensor  # (B, 17)
    K: Tensor  # (B, 3, 3) pixels
    size: tuple[int, int]
    groups: list[str]  # B actions or sequences

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, rows: slice) -> People:
        return People(
            self.pose[rows],
            self.keypoints[rows],
            self.confidence[rows],
            self.K[rows],
            self.size,
            self.groups[rows],
        )


def describe(dataset: str, protocol: str | None) -> tuple[str, str]:
    """The protocol's name and sentence.

    Raises:
        UserError: unknown data set or protocol.
    """
    if dataset not in PROTOCOLS:
        raise UserError(f"unknown data set {dataset!r}: use one of {', '.join(PROTOCOLS)}")
    known = PROTOCOLS[dataset]
    protocol = protocol or next(iter(known))
    if protocol not in known:
        raise UserError(f"{dataset} has no protocol {protocol!r}: use one of {', '.join(known)}")
    return protocol, known[protocol]


def load_people(
    dataset: str,
    source: Path,
    protocol: str,
    keypoints: str = "cpn_ft_h36m_dbb",
    limit: int = 0,
    seed: int = 0,
) -> list[People]:
    """People of a data set, one entry for each size of picture.

    Args:
        dataset: "cmu", "h36m", "3dhp" or "3dpw".
        source: the archive, or the folder with the files as published.
        protocol: as `describe` gave it.
        keypoints: which data_2d_h36m_*.npz.
        limit: at most so many people, evenly spread; 0: all.
        seed: of virtual cameras.

    Raises:
        UserError: files that are missing or not as published.
    """
    if dataset == "cmu":
        return [virtual_people(load_cmu(source, "test"), protocol, limit, seed)]
    if dataset == "h36m":
        stride = 64 if protocol == "every64" else 1
        recordings = load_h36m(
            source / "data_3d_h36m.npz", source / f"data_2d_h36m_{keypoints}.npz", stride=stride,
            skip_broken=stride > 1,
        )  # fmt: skip
    elif dataset == "3dhp":
        if source.suffix == ".npz" and protocol == "universal":
            raise UserError(f"{source} has no univ_annot3: name the folder of TS1 to TS6")
        recordings = (
            load_3dhp_npz(source)
            if source.suffix == ".npz"
            else load_3dhp_test(source, universal=protocol == "universal")
        )
    else:
        recordings = load_3dpw(source)
    return _merged(recordings, "subject" if dataset == "3dhp" else "action", limit)


def virtual_people(motion: Motion, protocol: str, limit: int, seed: int) -> People:
    """Frames of a motion, evenly spread, each seen by a random camera."""
    count = min(limit or len(motion), len(motion))
    indices = (torch.arange(count) * len(motion)) // count
    sigma, occluded = (0.0, 0.0) if protocol == "clean" else (5.0, 0.1)
    views = synthesise(motion, indices, seed, bones=0.0, mirror=False, sigma=sigma, occluded=occluded)
    groups = [motion.actions[c].split(" - ")[0].split(",")[0] for c in motion.clip[indices].tolist()]
    return People(views.pose, views.keypoints, views.confidence, views.K, views.size, groups)


def _merged(recordings: Sequence[Recording], group: str, limit: int) -> list[People]:
    total = sum(map(len, recordings))
    if not total:
        raise UserError("there is no frame to evaluate")
    count = min(limit or total, total)
    chosen = (torch.arange(count) * total) // count  # over all recordings one after the other
    sizes: dict[tuple[int, int], list[tuple[Recording, Tensor]]] = {}
    before = 0
    for recording in recordings:
        rows = chosen[(chosen >= before) & (chosen < before + len(recording))] - before
        before += len(recording)
        if len(rows):
            sizes.setdefault(recording.size, []).append((recording, rows))
    result = []
    for size, parts in sizes.items():
        pose, keypoints, confidence = (
            torch.cat([getattr(r, f)[rows] for r, rows in parts]) for f in ("pose", "keypoints", "confidence")
        )
        K = torch.cat([r.K.expand(len(rows), 3, 3) for r, rows in parts])
        groups = [getattr(r, group) for r, rows in parts for _ in rows]
        result.append(People(pose, keypoints, confidence, K, size, groups))
    return result
