"""SMPL by the smplx package, from files that the user has a licence for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from dd3g.errors import UserError, needed
from dd3g.pose.body.bodies import SHAPES, in_layout
from dd3g.pose.body.skeletons import to_h36m
from dd3g.pose.data.arrays import need, read_npz, read_pickle

GENDERS = ("neutral", "male", "female")
PARTS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")


class SmplBody:
    """A `PosedBody` of SMPL's own vertices; no code in a model file is run.

    Args:
        path: a model, .npz or .pkl, by whatever name; or the folder that holds it, or the parent of one that
            is called smpl, by the names SMPL_NEUTRAL and basicModel_neutral_lbs_10_207_0_v1.0.0.
        gender: "neutral", "male" or "female".

    Raises:
        UserError: no smplx package, or no model there.
    """

    # Joints and picked vertices of the smplx package in the order of OpenPose-25.
    _OPENPOSE = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35)]

    def __init__(self, path: str | Path, gender: str = "neutral") -> None:
        if gender not in GENDERS:
            raise UserError(f"gender must be one of {', '.join(GENDERS)}, got {gender!r}")
        with needed("SMPL bodies need the smplx package: pip install 'dd3g[body]'"):
            import smplx
        data = _model(_file(Path(path), gender))
        # Given the data, the package does not open the file, which it would unpickle.
        self.model: Any = smplx.SMPL(
            "", data_struct=SimpleNamespace(**data), gender=gender, num_betas=SHAPES, batch_size=1
        )
        self.model.requires_grad_(False)

    def points(self, rotations: Tensor, betas: Tensor, layout: str = "h36m-17") -> Tensor:
        """Points (B, J, 3); arguments as for `PosedBody`."""
        posed = self.model(
            body_pose=rotations[:, 1:],
            global_orient=rotations[:, :1],
            betas=betas,
            transl=betas.new_zeros(len(betas), 3),
            pose2rot=False,
        )
        points = posed.joints - posed.joints[:, :1]
        if layout == "h36m-17":  # smplx has no nose and head of H36M's
            return to_h36m(points[:, :24], None, "smpl-24")[0]
        return in_layout(points[:, :24], points[:, self._OPENPOSE], layout)


def _file(path: Path, gender: str) -> Path:
    if path.is_file():
        return path
    short = {"neutral": "neutral", "male": "m", "female": "f"}[gender]
    patterns = [f"SMPL_{gender.upper()}.npz", f"SMPL_{gender.upper()}.pkl"]
    patterns += [f"[bB]asic[mM]odel_{short}_lbs_10_207_0_*.{suffix}" for suffix in ("npz", "pkl")]
    for folder in (path, path / "smpl", path / "models"):
        for pattern in patterns:
            if found := sorted(folder.glob(pattern)):
                return found[-1]
    raise UserError(
        f"{path}: no SMPL model there, looked for {', '.join(patterns[:2])} and basicModel_{short}_lbs_…; "
        "get one from its makers, who license it"
    )


def _model(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in (".npz", ".pkl"):
        raise UserError(f"{path}: SMPL models are .npz or .pkl files, not {path.suffix or 'that'}")
    found = read_npz(path) if path.suffix.lower() == ".npz" else read_pickle(path, STAND_INS)
    arrays = [_array(value) for value in need(found, PARTS, str(path))]
    data = dict(zip(PARTS, arrays, strict=True))
    joints = data["weights"].shape[-1]
    if joints != 24:
        raise UserError(f"{path} has {joints} joints, SMPL has 24: SMPL-H and SMPL-X are other models")
    return data


class _StandIn:
    """Takes the state of a sparse matrix, or of an array of chumpy, as the official files have them."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, _StandIn):
        return np.asarray(value)
    s = value.state
    if "indptr" not in s:
        return np.asarray(s.get("x"))
    # A column-compressed matrix of scipy, the joint regressor.
    shape: tuple[int, int] = s["_shape"] if "_shape" in s else s["shape"]
    matrix = np.zeros(shape)
    matrix[s["indices"], np.repeat(np.arange(shape[1]), np.diff(s["indptr"]))] = s["data"]
    return matrix


def _empty(cls: type[_StandIn], *_: Any) -> Any:
    """What `copyreg._reconstructor` does for classes of ours."""
    return cls.__new__(cls)


STAND_INS: dict[tuple[str, str], Any] = {
    ("chumpy.ch", "Ch"): _StandIn,
    ("chumpy", "Ch"): _StandIn,
    ("chumpy.reordering", "Select"): _StandIn,
    ("scipy.sparse.csc", "csc_matrix"): _StandIn,
    ("scipy.sparse._csc", "csc_matrix"): _StandIn,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _empty,
}
