"""One person over time for other programs, as any format; skeletons and skinned bodies are written here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.gaussians import matrix_to_quaternion, quaternion_to_matrix
from dd3g.io.atomic import replacing
from dd3g.io.glb import GlbBuffer
from dd3g.pose.body.bodies import body_rotations, default_body
from dd3g.pose.body.geometry import FLIP, least_turn, matrix_to_axis_angle
from dd3g.pose.body.skeletons import SMPL_24, bone_lengths
from dd3g.pose.export.markers import save_c3d, save_csv, save_trc, written_lines
from dd3g.pose.ground import Ground
from dd3g.pose.methods.advice import grown
from dd3g.pose.series import Series, Times, Track, Values, chunks, evenly, resampled

# What animation programs and retargeters call the joints.
NAMES = dict(
    pelvis="Hips", spine1="Spine", spine2="Spine1", spine3="Spine2", neck="Neck", head="Head",
    **{
        f"{side[0].lower()}_{joint}": side + name
        for side in ("Left", "Right")
        for joint, name in (
            ("hip", "UpLeg"), ("knee", "Leg"), ("ankle", "Foot"), ("foot", "ToeBase"), ("collar", "Shoulder"),
            ("shoulder", "Arm"), ("elbow", "ForeArm"), ("wrist", "Hand"), ("hand", "HandMiddle1"),
        )
    },
)  # fmt: skip


# Converts a body of so many frames; the .fbx has a key for each of them.
SCRIPT = """
import sys
import bpy
source, target, fps, frames = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.render.fps = max(1, round(fps))
scene.render.fps_base = scene.render.fps / fps
bpy.ops.import_scene.gltf(filepath=source)
for one in scene.objects:  # the importer adds a mesh that shows what bones look like
    one.select_set('Armature' in (one.name, one.parent and one.parent.name))
if frames > 1:
    scene.frame_start, scene.frame_end = (round(n) for n in bpy.data.actions[0].frame_range)
bpy.ops.export_scene.fbx(
    filepath=target, use_selection=True, add_leaf_bones=False, bake_anim=frames > 1,
    bake_anim_use_all_actions=False, bake_anim_use_nla_strips=False, bake_anim_simplify_factor=0.0,
)
"""


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
        turned = _continuous(matrix_to_quaternion(rotations[chunk]))
        return torch.cat([turned.flatten(1), roots[chunk]], 1)

    with written_lines(path) as put:
        put(*lines, "MOTION", f"Frames: {len(even)}", f"Frame Time: {1 / fps:.7f}")
        for _, rows in resampled(Series(len(times), read), times, even):
            turned = quaternion_to_matrix(rows[:, :96].unflatten(1, (24, 4)))
            angles = torch.rad2deg(_zxy(turned))[:, order]  # (P, 24, 3)
            put(*map(_row, torch.cat([100 * rows[:, 96:], angles.flatten(1)], 1)))
    return Path(path)


def save_glb(rest: Tensor, rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write a skinned body of bones: one armature of 24 joints, one mesh, and one action for several frames.

    Arguments as for `save_bvh`; the frames stay at their times.
    """
    quaternions, places = torch.empty(24, len(times), 4), torch.empty(len(times), 3)
    last = torch.empty(0, 24, 4)
    for chunk in chunks(len(times)):
        own = _continuous(torch.cat([last, matrix_to_quaternion(rotations[chunk])]))[len(last) :]
        quaternions[:, chunk], last = own[..., [1, 2, 3, 0]].transpose(0, 1), own[-1:]  # xyzw
        places[chunk] = roots[chunk]
    buffer = GlbBuffer()
    nodes: list[dict[str, Any]] = []
    for joint, parent in enumerate(SMPL_24.parents):
        offset = places[0] if parent < 0 else rest[joint] - rest[parent]
        node = {"name": NAMES[SMPL_24.joints[joint]], "translation": offset.tolist()}
        node["rotation"] = quaternions[joint, 0].tolist()
        if children := SMPL_24.children(joint):
            node["children"] = children
        nodes.append(node)
    vertices, normals, bones = _bone_mesh(rest)
    joints = torch.nn.functional.pad(bones[:, None], (0, 3))
    attributes = {
        "POSITION": buffer.add(vertices.numpy(), "VEC3", bounds=True),
        "NORMAL": buffer.add(normals.numpy(), "VEC3"),
        "JOINTS_0": buffer.add(joints.to(torch.uint8).numpy(), "VEC4"),
        "WEIGHTS_0": buffer.add(np.tile(np.eye(4)[0], (len(bones), 1)), "VEC4"),
    }
    # The mesh is at rest with the pelvis at zero; matrices are column by column.
    inverse = torch.eye(4).repeat(24, 1, 1)
    inverse[:, 3, :3] = -rest
    matrices = buffer.add(inverse.flatten(1).numpy(), "MAT4")
    skin = {"name": "Armature", "inverseBindMatrices": matrices, "joints": list(range(24)), "skeleton": 0}
    skin_color = {"baseColorFactor": [0.72, 0.55, 0.45, 1], "metallicFactor": 0}
    armature = {"name": "Armature", "children": [0, 25]}
    figure = {"name": "Body", "mesh": 0, "skin": 0}
    document: dict[str, Any] = {
        "scene": 0,
        "scenes": [{"nodes": [24]}],
        "nodes": [*nodes, armature, figure],
        "meshes": [{"name": "Body", "primitives": [{"attributes": attributes, "material": 0}]}],
        "skins": [skin],
        "materials": [{"pbrMetallicRoughness": skin_color}],
    }
    if len(rotations) > 1:
        stamps = buffer.add((torch.tensor(list(times)) - times[0]).numpy(), "SCALAR", bounds=True)
        samplers = [{"input": stamps, "output": buffer.add(places.numpy(), "VEC3")}]
        channels = [{"sampler": 0, "target": {"node": 0, "path": "translation"}}]
        for joint in range(24):
            channels.append({"sampler": len(samplers), "target": {"node": joint, "path": "rotation"}})
            samplers.append({"input": stamps, "output": buffer.add(quaternions[joint].numpy(), "VEC4")})
        document["animations"] = [{"name": "Pose", "samplers": samplers, "channels": channels}]
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(buffer.packed(document))
    return Path(path)


def check_blender() -> None:
    """Raise UserError where the Blender module is not installed."""
    if importlib.util.find_spec("bpy") is None:
        raise UserError(
            "--export fbx needs Blender as a module: pip install 'dd3g[fbx]', or use glb, which Blender reads"
        )


def save_fbx(rest: Tensor, rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """As `save_glb`, converted by Blender in a process of its own.

    Raises:
        UserError: Blender is not there, or fails.
    """
    check_blender()
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".dd3g-") as folder, replacing(path) as partial:
        glb = save_glb(rest, rotations, roots, Path(folder) / "body.glb", times)
        words = [str(glb), str(partial), repr(evenly(times)[0]), str(len(times))]
        call = [sys.executable, "-c", SCRIPT, *words]
        done = subprocess.run(call, capture_output=True, text=True, errors="replace")
        if not partial.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"Blender could not write {path}: {reason}")
    return path


def _zxy(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) angles z, x, y in radians with R = Rz Rx Ry."""
    x = torch.asin(R[..., 2, 1].clamp(-1, 1))
    z = torch.atan2(-R[..., 0, 1], R[..., 1, 1])
    y = torch.atan2(-R[..., 2, 0], R[..., 2, 2])
    return torch.stack([z, x, y], -1)


def _row(values: Tensor) -> str:
    return " ".join(f"{v:.4f}" for v in values.tolist())


def _continuous(quaternions: Tensor) -> Tensor:
    """Quaternions (T, J, 4) of the same rotations, each nearest to the one before: q and -q are one."""
    dots = (quaternions[1:] * quaternions[:-1]).sum(-1)
    signs = torch.cat([torch.ones_like(quaternions[:1, :, 0]), torch.where(dots < 0, -1.0, 1.0)]).cumprod(0)
    return quaternions * signs[..., None]


def _bone_mesh(rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A double pyramid from each joint (24, 3) to each child, with flat faces.

    Returns:
        Vertices (N, 3), three a triangle, their normals (N, 3), and the joint that moves each (N,).
    """
    ring = torch.tensor([[0.5, 0.2, 0.5], [0.5, 0.2, -0.5], [-0.5, 0.2, -0.5], [-0.5, 0.2, 0.5]])
    low, high = torch.zeros(3), torch.tensor([0.0, 1.0, 0.0])
    faces = []
    for a, b in zip(ring, ring.roll(-1, 0), strict=True):
        faces += [torch.stack([a, b, high]), torch.stack([b, a, low])]
    pyramid = torch.stack(faces)  # (8, 3, 3)
    shapes, bones = [], []
    for parent, child in SMPL_24.bones:
        offset = rest[child] - rest[parent]
        length = float(offset.norm())
        width = min(0.12 * length + 0.012, 0.05)
        turn = least_turn(high, offset)
        shapes.append((pyramid * torch.tensor([width, length, width])) @ turn.T + rest[parent])
        bones += [parent] * 24
    triangles = torch.cat(shapes)
    normals = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=-1)[:, None].expand(-1, 3, -1)
    return triangles.reshape(-1, 3), normals.reshape(-1, 3), torch.tensor(bones)
