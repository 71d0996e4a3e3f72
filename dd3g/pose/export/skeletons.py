"""A person over time for other programs, as any format; .bvh and SMPL's parameters are written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd3g.gaussians import matrix_to_quaternion, quaternion_to_matrix
from dd3g.io.atomic import replacing
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import FLIP, matrix_to_axis_angle
from dd3g.pose.body.inverse import body_rotations
from dd3g.pose.body.skeletons import SMPL_24, bone_lengths
from dd3g.pose.export.markers import save_c3d, save_csv, save_trc, written_lines
from dd3g.pose.export.skinned import NAMES, continuous, save_fbx, save_glb
from dd3g.pose.ground import Ground
from dd3g.pose.methods.advice import grown
from dd3g.pose.series import Series, Times, Track, Values, chunks, evenly, resampled


def save_bodies(
    track: Track, folder: Path, stem: str, formats: Sequence[str] = (), ground: Ground | None = None
) -> list[str]:
    """Write one person over time for other programs, as `stem`.bvh and so on; returns the files' names.

    Args:
        track: the person.
        folder: where the files go.
        stem: of their names.
        formats: of `dd3g.pose.request.Export`; "bvh" and "glb" in any case where the method gave a body.
        ground: the floor, on which everything but .csv stands; None leaves it to the camera what is up.
    """
    given, times = track.rotations, track.times
    wanted = list(dict.fromkeys([*(("bvh", "glb") if given is not None else ()), *formats]))
    if not wanted:
        return []
    rest = default_body().pose(torch.eye(3).expand(1, 24, 3, 3))[0][0]
    lengths = torch.cat([bone_lengths(track.poses[chunk]).sum(-1) for chunk in chunks(len(times))])
    rest = rest * (lengths.mean() / grown().bones)
    level, lift = (FLIP, torch.zeros(3)) if ground is None else (ground.rotation, ground.offset)

    def upright(chunk: slice) -> Tensor:
        turned = body_rotations(track.poses[chunk], None if given is None else given[chunk])
        return torch.cat([level @ turned[:, :1], turned[:, 1:]], 1)

    rotations = Series(len(times), upright)
    roots = Series(len(times), lambda chunk: track.roots[chunk] @ level.T + lift)
    points = Series(len(times), lambda chunk: track.points[chunk] @ level.T + lift)
    write = {
        "bvh": lambda path: save_bvh(rest, rotations, roots, path, times),
        "glb": lambda path: save_glb(rest, rotations, roots, path, times),
        "trc": lambda path: save_trc(points, path, times),
        "c3d": lambda path: save_c3d(points, path, times),
        "csv": lambda path: save_csv(track.points, path, times),
        "npz": lambda path: save_parameters(rotations, roots, path, times),
        "fbx": lambda path: save_fbx(rest, rotations, roots, path, times),
    }
    for name in wanted:
        write[name](folder / f"{stem}.{name}")
    return [f"{stem}.{name}" for name in wanted]


def save_parameters(rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write SMPL's parameters as AMASS has them, poses (T, 72), betas (10,), trans (T, 3) in metres, y up.

    SMPL-X' are there too, root_orient (T, 3) and pose_body (T, 63): its first 22 joints are SMPL's. The tree
    is theirs, the body is not: shapes stay 0, and `trans` is where the pelvis is.
    """
    fps, _ = evenly(times)
    poses, places = np.empty((len(times), 72), np.float32), np.empty((len(times), 3), np.float32)
    for chunk in chunks(len(times)):
        poses[chunk], places[chunk] = matrix_to_axis_angle(rotations[chunk]).flatten(1), roots[chunk]
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            poses=poses,
            root_orient=poses[:, :3],
            pose_body=poses[:, 3:66],
            betas=np.zeros(10, np.float32),
            trans=places,
            gender=np.array("neutral"),
            mocap_framerate=np.array(fps),  # SMPL-X' files spell it otherwise
            mocap_frame_rate=np.array(fps),
            times=np.asarray(times),
        )
    return Path(path)


def save_bvh(rest: Tensor, rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write a skeleton's motion for animation programs; y up, centimetres, Z X Y rotations.

    Args:
        rest: (24, 3) metres, SMPL-24 joints at rest, y up, pelvis at zero.
        rotations: (T, 24, 3, 3) relative to the parent, the root's in a world that is y up.
        roots: (T, 3) metres in that world.
        path: the .bvh file.
        times: (T,) seconds; the file has as many frames a second as these on average, evenly.
    """
    order: list[int] = []
    lines = ["HIERARCHY"]

    def write(joint: int, depth: int) -> None:
        order.append(joint)
        pad, parent, children = "\t" * depth, SMPL_24.parents[joint], SMPL_24.children(joint)
        offset = 100 * (rest[joint] - rest[max(parent, 0)])
        places = "6 Xposition Yposition Zposition" if parent < 0 else "3"
        lines.append(f"{pad}{'ROOT' if parent < 0 else 'JOINT'} {NAMES[SMPL_24.joints[joint]]}\n{pad}{{")
        lines.append(f"{pad}\tOFFSET {_row(offset)}")
        lines.append(f"{pad}\tCHANNELS {places} Zrotation Xrotation Yrotation")
        for child in children:
            write(child, depth + 1)
        if not children:
            lines.append(f"{pad}\tEnd Site\n{pad}\t{{\n{pad}\t\tOFFSET {_row(0.5 * offset)}\n{pad}\t}}")
        lines.append(f"{pad}}}")

    write(0, 0)
    fps, even = evenly(times)

    def read(chunk: slice) -> Tensor:
        """Quaternions and places (P, 99)."""
        turned = continuous(matrix_to_quaternion(rotations[chunk]))
        return torch.cat([turned.flatten(1), roots[chunk]], 1)

    with written_lines(path) as put:
        put(*lines, "MOTION", f"Frames: {len(even)}", f"Frame Time: {1 / fps:.7f}")
        for _, rows in resampled(Series(len(times), read), times, even):
            turned = quaternion_to_matrix(rows[:, :96].unflatten(1, (24, 4)))
            angles = torch.rad2deg(_zxy(turned))[:, order]  # (P, 24, 3)
            put(*map(_row, torch.cat([100 * rows[:, 96:], angles.flatten(1)], 1)))
    return Path(path)


def _zxy(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) angles z, x, y in radians with R = Rz Rx Ry."""
    x = torch.asin(R[..., 2, 1].clamp(-1, 1))
    z = torch.atan2(-R[..., 0, 1], R[..., 1, 1])
    y = torch.atan2(-R[..., 2, 0], R[..., 2, 2])
    return torch.stack([z, x, y], -1)


def _row(values: Tensor) -> str:
    return " ".join(f"{v:.4f}" for v in values.tolist())
