"""Whom poses are evaluated on: people of each data set in 2D and 3D, and which subset that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body.geometry import unproject
from dd3g.pose.data.h36m import load_h36m, load_h36m_items, read_frame_list
from dd3g.pose.data.motion import Motion, load_cmu
from dd3g.pose.data.mpi3dhp import load_3dhp_npz, load_3dhp_pair, load_3dhp_test
from dd3g.pose.data.recording import Recording
from dd3g.pose.data.synthesis import synthesise
from dd3g.pose.data.threedpw import load_3dpw

_HARD = "framelist_h36m_hard_subset.txt"
_HP3D = "root-aligned; PCK and AUC over the official 14 joints"
_ITEMS = (
    "Human3.6M, every 640th pose of h36m_test.pkl (GFPose, ZeDO), mean of the 15 actions' means, errors "
    "relative to the root"
)
PROTOCOLS = {
    "cmu": {
        "noisy": "CMU archive, split test without clips of unknown people, a random camera each; keypoints "
        "with noise of 5 px in 1000, 10 % of joints occluded (half missing, half displaced, sigma 40 px)",
        "clean": "CMU archive, split test without clips of unknown people, a random camera each; exact "
        "keypoints",
    },
    "h36m": {
        "standard": "Human3.6M S9 and S11, all cameras and frames, mean of the 15 actions' means; keypoints "
        "as detected, the lens not taken out, as published lifters have them",
        "every64": "Human3.6M S9 and S11, every 4th frame from the 4th on without S11 Directions by camera "
        "54138969, of these all in a row every 16th (Wehrbein, Wandt); mean of the 15 actions' means",
        "hard": "Human3.6M S9 and S11, the frames of framelist_h36m_hard_subset.txt, H36MA (Wehrbein, "
        "Wandt), but of S11 Directions, which data_3d_h36m.npz lacks; published is the mean over people",
        "every640": f"{_ITEMS}, nothing known of depth",
        "every640-depth": f"{_ITEMS}, guided sampling knows the root's true depth, as GFPose does",
    },
    "3dhp": {
        "annot3": f"MPI-INF-3DHP test set, valid frames, annot3 in millimetres, exact keypoints, {_HP3D}",
        "universal": f"MPI-INF-3DHP test set, valid frames, univ_annot3, exact keypoints, {_HP3D}",
        "prpose": "MPI-INF-3DHP test set as in data_3d_3dhp.npz, TS1 to TS6 pooled; PRPose's figure is "
        "PCK17, PCK at 150 mm of the best hypothesis over all 17 joints with the root, which is always right",
    },
    "3dpw": {
        "smpl24": "3DPW, frames with a valid camera, its own OpenPose keypoints; truth is jointPositions as "
        "H36M-17, not the 14 joints regressed from meshes: not comparable with published tables"
    },
}


# The detector of a protocol where none is named: the one that its authors report.
_KEYPOINTS = {"standard": "cpn_ft_h36m_dbb", "every64": "cpn_ft_h36m_dbb", "hard": "cpn_ft_h36m_dbb",
              "every640": "sh_dt_ft", "every640-depth": "sh_dt_ft", "prpose": "hrnet_coco"}  # fmt: skip


@dataclass(frozen=True)
class People:
    """B people in pictures of one size."""

    pose: Tensor  # (B, 17, 3) metres, camera frame, root-relative
    keypoints: Tensor  # (B, 17, 2) pixels
    confidence: Tensor  # (B, 17)
    K: Tensor  # (B, 3, 3) pixels
    size: tuple[int, int]
    groups: list[str]  # B actions or sequences
    root: Tensor | None = None  # (B, 3) metres, where methods may know it
    true_root: Tensor | None = None  # (B, 3) metres

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints, confidences and cameras."""
        return self.keypoints, self.confidence, self.K

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, rows: slice) -> People:
        names = ("pose", "keypoints", "confidence", "K", "groups", "root", "true_root")
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value[rows] for name, value in fields.items()})


def spread(count: int, limit: int) -> Tensor:
    """At most `limit` of `count` indices, evenly spread; 0: all."""
    chosen = min(limit or count, count)
    return (torch.arange(chosen) * count) // max(chosen, 1)


def describe(dataset: str, protocol: str | None, keypoints: str | None) -> tuple[str, str, str | None]:
    """The protocol's name and sentence, and its detector.

    That is the NAME of data_2d_h36m_NAME.npz and the like, and None where there is no choice.

    Raises:
        UserError: unknown data set or protocol, or `keypoints` that the protocol does not have.
    """
    if dataset not in PROTOCOLS:
        raise UserError(f"unknown data set {dataset!r}: use one of {', '.join(PROTOCOLS)}")
    known = PROTOCOLS[dataset]
    protocol = protocol or next(iter(known))
    if protocol not in known:
        raise UserError(f"{dataset} has no protocol {protocol!r}: use one of {', '.join(known)}")
    default = _KEYPOINTS.get(protocol)
    if keypoints is not None and default is None:
        raise UserError(f"{dataset} {protocol} has its own keypoints: leave out --keypoints")
    if default == "sh_dt_ft" and keypoints not in (None, default, "gt"):
        raise UserError(f"{dataset} {protocol} has keypoints sh_dt_ft and gt, not {keypoints!r}")
    return protocol, known[protocol], keypoints or default


def load_people(
    dataset: str, source: Path, protocol: str, keypoints: str | None = None, limit: int = 0, seed: int = 0
) -> list[People]:
    """People of a data set, one entry for each size of picture; at most `limit`, evenly spread, or all for 0.

    `source` is the archive, or the folder with the files as published; `protocol` and `keypoints` are as
    `describe` gave them.

    Raises:
        UserError: files that are missing or not as published.
    """
    if dataset == "cmu":
        return [virtual_people(load_cmu(source, "test"), protocol, limit, seed)]
    if dataset == "h36m":
        if protocol.startswith("every640"):
            seen = None if keypoints == "gt" else source / f"h36m_{keypoints}.pkl"
            items = load_h36m_items(source / "h36m_test.pkl", seen)
            return _merged(items, "action", limit, depth=protocol == "every640-depth")
        listed = read_frame_list(source / _HARD) if protocol == "hard" else None
        first, stride, every = (3, 4, 16) if protocol == "every64" else (0, 1, 1)
        files = source / "data_3d_h36m.npz", source / f"data_2d_h36m_{keypoints}.npz"
        own = protocol != "standard"
        recordings = load_h36m(*files, listed=listed, skip_broken=own, undistort=own)
        return _merged([recording[first::stride] for recording in recordings], "action", limit, every)
    if dataset == "3dpw":
        return _merged(load_3dpw(source), "action", limit)
    if protocol == "prpose":
        recordings = load_3dhp_pair(source / "data_3d_3dhp.npz", source / f"data_2d_3dhp_{keypoints}.npz")
    elif source.suffix != ".npz":
        recordings = load_3dhp_test(source, universal=protocol == "universal")
    elif protocol == "universal":
        raise UserError(f"{source} has no univ_annot3: name the folder of TS1 to TS6")
    else:
        recordings = load_3dhp_npz(source)
    return _merged(recordings, "subject", limit)


def virtual_people(motion: Motion, protocol: str, limit: int, seed: int) -> People:
    """Frames of a motion, evenly spread, each seen by a random camera."""
    indices = spread(len(motion), limit)
    sigma, occluded = (0.0, 0.0) if protocol == "clean" else (5.0, 0.1)
    views = synthesise(motion, indices, seed, bones=0.0, mirror=False, sigma=sigma, occluded=occluded)
    groups = [motion.actions[c].split(" - ")[0].split(",")[0] for c in motion.clip[indices].tolist()]
    return People(
        views.pose, views.keypoints, views.confidence, views.K, views.size, groups, None, views.root
    )


def _merged(
    recordings: Sequence[Recording], group: str, limit: int, every: int = 1, depth: bool = False
) -> list[People]:
    """Every n-th frame of all recordings in a row, of these at most `limit`; with `depth` it may be known."""
    chosen = torch.arange(0, sum(map(len, recordings)), every)
    if not len(chosen):
        raise UserError("there is no frame to evaluate")
    chosen = chosen[spread(len(chosen), limit)]
    sizes: dict[tuple[int, int], list[Recording]] = {}
    before = 0
    for recording in recordings:
        kept = recording[chosen[(chosen >= before) & (chosen < before + len(recording))] - before]
        before += len(recording)
        if len(kept):
            sizes.setdefault(recording.size, []).append(kept)
    result = []
    for size, parts in sizes.items():
        pose, keypoints, confidence, root = (
            torch.cat([getattr(r, name) for r in parts])
            for name in ("pose", "keypoints", "confidence", "root")
        )
        K = torch.cat([r.K.expand(len(r), 3, 3) for r in parts])
        groups = [getattr(r, group) for r in parts for _ in r.frames]
        rays = torch.cat([unproject(keypoints[:, :1], K)[:, 0], torch.ones(len(K), 1)], 1)
        known = rays * root[:, 2:] if depth else None
        result.append(People(pose, keypoints, confidence, K, size, groups, known, root))
    return result
