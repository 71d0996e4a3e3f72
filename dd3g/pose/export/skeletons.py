"""A person over time for other programs: .bvh and .glb to animate, .trc, .c3d, .csv and .npz to measure."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.gaussians import matrix_to_quaternion, quaternion_to_matrix
from dd3g.io.atomic import replacing
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import matrix_to_axis_angle
from dd3g.pose.body.inverse import body_rotations
from dd3g.pose.body.skeletons import H36M_17, SMPL_24, bone_lengths
from dd3g.pose.export.fbx import save_fbx
from dd3g.pose.ground import Ground
from dd3g.pose.methods.advice import grown
from dd3g.pose.series import Series, Track, Values, parts

FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # OpenCV axes to y up, z towards the viewer


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
Times = Sequence[float]


def save_bodies(
    track: Track, folder: Path, stem: str, formats: Sequence[str] = (), ground: Ground | None = None
) -> list[str]:
    """Write one person over time for other programs.

    Args:
        track: the person.
        folder: where the files go.
        stem: of their names.
        formats: of `dd3g.pose.request.Export`; "bvh" and "glb" in any case where the method gave a body.
        ground: the floor, on which everything but .csv stands; None leaves it to the camera what is up.

    Returns:
        Names of the files.
    """
    given, times = track.rotations, track.times
    wanted = list(dict.fromkeys([*(("bvh", "glb") if given is not None else ()), *formats]))
    if not wanted:
        return []
    rest = default_body().pose(torch.eye(3).expand(1, 24, 3, 3))[0][0]
    lengths = torch.cat([bone_lengths(track.poses[part]).sum(-1) for part in parts(len(times))])
    rest = rest * (lengths.mean() / grown().bones)
    level, lift = torch.eye(3), torch.zeros(3)
    if ground is not None:  # as a level camera on the floor sees them, which the formats turn up
        level, lift = FLIP @ ground.rotation, FLIP @ ground.offset

    def levelled(part: slice) -> Tensor:
        turned = body_rotations(track.poses[part], None if given is None else given[part])
        return torch.cat([level @ turned[:, :1], turned[:, 1:]], 1)

    rotations = Series(len(times), levelled)
    roots = Series(len(times), lambda part: track.roots[part] @ level.T + lift)
    points = Series(len(times), lambda part: track.points[part] @ level.T + lift)
    write = {
        "bvh": lambda path: save_bvh(rest, rotations, roots, path, times),
        "glb": lambda path: save_glb(rest, rotations, roots, path, times),
        "trc": lambda path: save_trc(points, path, times),
        "c3d": lambda path: save_c3d(points, path, times),
        "csv": lambda path: save_csv(track.points, path, times),
        "npz": lambda path: save_parameters(rotations, roots, path, times),
        "fbx": lambda path: _save_fbx(rest, rotations, roots, path, times),
    }
    for name in wanted:
        write[name](folder / f"{stem}.{name}")
    return [f"{stem}.{name}" for name in wanted]


def save_trc(points: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write joints as markers for OpenSim; y up, millimetres.

    Args:
        points: (T, 17, 3) metres, H36M-17, camera frame.
        path: the .trc file.
        times: (T,) seconds; the file has as many frames a second as these on average, evenly.
    """
    fps, even = _evenly(times)
    names, count = H36M_17.joints, len(H36M_17)
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{Path(path).name}",
        "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames",
        f"{fps:.6f}\t{fps:.6f}\t{len(even)}\t{count}\tmm\t{fps:.6f}\t1\t{len(even)}",
        "Frame#\tTime\t" + "\t\t\t".join(names) + "\t\t",
        "\t\t" + "\t".join(f"{axis}{i + 1}" for i in range(count) for axis in "XYZ"),
        "",
    ]
    with _lines(path) as write:
        write(*lines)
        for part, rows in _resampled(points, times, even):
            rows = 1000 * (rows @ FLIP)
            for i, row in enumerate(rows.flatten(1).tolist(), part.start):
                write("\t".join([str(i + 1), f"{even[i]:.6f}", *(f"{v:.3f}" for v in row)]))
    return Path(path)


def save_c3d(points: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write joints as markers for motion capture programs; y up, millimetres; https://www.c3d.org/HTML.

    Args:
        points: (T, 17, 3) metres, H36M-17, camera frame.
        path: the .c3d file.
        times: (T,) seconds; the file has as many frames a second as these on average, evenly.
    """
    fps, even = _evenly(times)
    labels, last = H36M_17.joints, len(even)
    # The counts of 16 bits end at 65,535 frames; TRIAL has the same in two halves.
    halves = [[number & 0xFFFF, number >> 16] for number in (1, last)]
    groups: list[tuple[str, list[tuple[str, Any]]]] = [
        ("POINT", [
            ("USED", len(labels)), ("SCALE", -1.0), ("RATE", fps), ("DATA_START", 0),
            ("FRAMES", min(last, 0xFFFF)), ("LABELS", labels), ("UNITS", ["mm"]),
            ("X_SCREEN", ["+X"]), ("Y_SCREEN", ["+Y"]),
        ]),
        ("ANALOG", [("USED", 0)]),
        ("TRIAL", [("ACTUAL_START_FIELD", halves[0]), ("ACTUAL_END_FIELD", halves[1])]),
    ]  # fmt: skip
    blocks = -(-len(_parameters(groups)) // 512)
    groups[0][1][3] = ("DATA_START", 2 + blocks)
    head = struct.pack(
        "<BBHHHHHfHHf", 2, 0x50, len(labels), 0, 1, min(last, 0xFFFF), 0, -1.0, 2 + blocks, 0, fps
    )
    with replacing(path) as part, part.open("wb") as file:
        file.write(head.ljust(512, b"\0"))
        file.write(_parameters(groups, blocks).ljust(512 * blocks, b"\0"))
        for frames, rows in _resampled(points, times, even):
            # The fourth is for residual and cameras; below 0 it would mean not seen.
            data = torch.nn.functional.pad(1000 * (rows @ FLIP), (0, 1))
            file.write(data.numpy().astype("<f4").tobytes())
        file.write(bytes(-16 * len(labels) * last % 512))
    return Path(path)


def _parameters(groups: Sequence[tuple[str, Sequence[tuple[str, Any]]]], blocks: int = 0) -> bytes:
    """The parameter section of a .c3d: a record a group, then a record a parameter, each with the way on."""
    records = []
    for number, (group, parameters) in enumerate(groups, 1):
        records.append((-number, group, b"\0"))
        for name, value in parameters:
            items = list(value) if isinstance(value, Sequence) else [value]
            if isinstance(items[0], str):
                width = max(map(len, items))
                kind, shape = -1, [width, len(items)]
                data = "".join(item.ljust(width) for item in items).encode("ascii")
            else:
                kind, code = (4, "f") if isinstance(items[0], float) else (2, "H")
                shape, data = (
                    [len(items)] if len(items) > 1 else [],
                    struct.pack(f"<{len(items)}{code}", *items),
                )
            records.append((number, name, struct.pack("<bB", kind, len(shape)) + bytes(shape) + data + b"\0"))
    found = struct.pack("<BBBB", 1, 0x50, blocks, 84)  # 84: little-endian, as Intel's
    for i, (number, name, content) in enumerate(records):
        way = 0 if i == len(records) - 1 else 2 + len(content)
        found += (
            struct.pack("<bb", len(name), number) + name.encode("ascii") + struct.pack("<H", way) + content
        )
    return found


def save_csv(points: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write a row a frame with its time in seconds and x, y, z of each joint in metres, camera frame.

    Args:
        points: (T, 17, 3) metres, H36M-17, camera frame.
        path: the .csv file.
        times: (T,) seconds.
    """
    header = ["time", *(f"{joint}_{axis}" for joint in H36M_17.joints for axis in "xyz")]
    with _lines(path) as write:
        write(",".join(header))
        for part in parts(len(times)):
            for time, row in zip(times[part], points[part].flatten(1).tolist(), strict=True):
                write(",".join([f"{time:.6f}", *(f"{v:.5f}" for v in row)]))
    return Path(path)


@contextmanager
def _lines(path: str | Path) -> Iterator[Callable[..., None]]:
    """Gives what writes lines to a text file."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda *lines: file.writelines(f"{line}\n" for line in lines)


def save_parameters(rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write SMPL's parameters as AMASS has them: poses (T, 72), betas (10,), trans (T, 3), fps; y up.

    SMPL-X' are there too, root_orient (T, 3) and pose_body (T, 63): its first 22 joints are SMPL's. The tree
    is theirs, the body is not: shapes stay 0, and `trans` is where the pelvis is.

    Args:
        rotations: (T, 24, 3, 3) relative to the parent, the root's in the camera frame.
        roots: (T, 3) metres, camera frame.
        path: the .npz file.
        times: (T,) seconds.
    """
    fps, _ = _evenly(times)
    poses, places = np.empty((len(times), 72), np.float32), np.empty((len(times), 3), np.float32)
    for part in parts(len(times)):
        turned, where = _y_up(rotations[part], roots[part])
        poses[part], places[part] = matrix_to_axis_angle(turned).flatten(1).numpy(), where.numpy()
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


def _evenly(times: Times) -> tuple[float, list[float]]:
    """Frames a second on average, and as many even times."""
    if len(times) < 2:
        return 30.0, [0.0] * len(times)
    fps = (len(times) - 1) / (times[-1] - times[0])
    return fps, [times[0] + i / fps for i in range(len(times))]


def _between(times: Times, even: Times) -> tuple[Tensor, Tensor]:
    """Index of the frame before each time, and the share (T,) of the way to the next."""
    have, want = (torch.tensor(list(t), dtype=torch.float64) for t in (times, even))
    low = (torch.searchsorted(have, want, right=True) - 1).clamp(0, max(len(have) - 2, 0))
    high = (low + 1).clamp(max=len(have) - 1)
    share = (want - have[low]) / (have[high] - have[low]).clamp(min=1e-9)
    return low, share.clamp(0, 1).float()


def _resampled(values: Values, times: Times, even: Times) -> Iterator[tuple[slice, Tensor]]:
    """Values (T, ...) at other times, linearly, in parts."""
    low, share = _between(times, even)
    for part in parts(len(even)):
        first = int(low[part.start])
        here = values[first : int(low[part.stop - 1]) + 2]
        near = low[part] - first
        far = (near + 1).clamp(max=len(here) - 1)
        yield part, torch.lerp(here[near], here[far], share[part].view(-1, *[1] * (here.dim() - 1)).to(here))


def _continuous(quaternions: Tensor) -> Tensor:
    """Quaternions (T, J, 4) of the same rotations, each nearest to the one before: q and -q are one."""
    dots = (quaternions[1:] * quaternions[:-1]).sum(-1)
    signs = torch.cat([torch.ones_like(quaternions[:1, :, 0]), torch.where(dots < 0, -1.0, 1.0)]).cumprod(0)
    return quaternions * signs[..., None]


def save_bvh(rest: Tensor, rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write a skeleton's motion for animation programs; y up, centimetres, Z X Y rotations.

    Args:
        rest: (24, 3) metres, SMPL-24 joints at rest, y up, pelvis at zero.
        rotations: (T, 24, 3, 3) relative to the parent, the root's in the camera frame.
        roots: (T, 3) metres, camera frame.
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
    fps, even = _evenly(times)

    def read(part: slice) -> Tensor:
        """Quaternions and places (P, 99)."""
        turned, places = _y_up(rotations[part], roots[part])
        return torch.cat([_continuous(matrix_to_quaternion(turned)).flatten(1), places], 1)

    with _lines(path) as print_lines:
        print_lines(*lines, "MOTION", f"Frames: {len(even)}", f"Frame Time: {1 / fps:.7f}")
        for _, rows in _resampled(Series(len(times), read), times, even):
            turned = quaternion_to_matrix(rows[:, :96].unflatten(1, (24, 4)))
            angles = torch.rad2deg(_zxy(turned))[:, order]  # (P, 24, 3)
            print_lines(*map(_row, torch.cat([100 * rows[:, 96:], angles.flatten(1)], 1)))
    return Path(path)


def save_glb(rest: Tensor, rotations: Values, roots: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write a skinned body of bones: one armature of 24 joints, one mesh, and one action for several frames.

    Args:
        rest: (24, 3) metres, SMPL-24 joints at rest, y up, pelvis at zero.
        rotations: (T, 24, 3, 3) relative to the parent, the root's in the camera frame.
        roots: (T, 3) metres, camera frame.
        path: the .glb file.
        times: (T,) seconds.
    """
    quaternions, places = torch.empty(24, len(times), 4), torch.empty(len(times), 3)
    last = torch.empty(0, 24, 4)
    for part in parts(len(times)):
        turned, places[part] = _y_up(rotations[part], roots[part])
        own = _continuous(torch.cat([last, matrix_to_quaternion(turned)]))[len(last) :]
        quaternions[:, part], last = own[..., [1, 2, 3, 0]].transpose(0, 1), own[-1:]  # xyzw
    buffer = _Buffer()
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
        "POSITION": buffer.add(vertices, "VEC3", bounds=True),
        "NORMAL": buffer.add(normals, "VEC3"),
        "JOINTS_0": buffer.add(joints.to(torch.uint8), "VEC4"),
        "WEIGHTS_0": buffer.add(torch.eye(4)[0].expand(len(bones), 4), "VEC4"),
    }
    # The mesh is at rest with the pelvis at zero; matrices are column by column.
    inverse = torch.eye(4).repeat(24, 1, 1)
    inverse[:, 3, :3] = -rest
    armature = {"name": "Armature", "children": [0, 25]}
    figure = {"name": "Body", "mesh": 0, "skin": 0}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "dd3g"},
        "scene": 0,
        "scenes": [{"nodes": [24]}],
        "nodes": [*nodes, armature, figure],
        "meshes": [{"name": "Body", "primitives": [{"attributes": attributes, "material": 0}]}],
        "skins": [
            {
                "name": "Armature",
                "inverseBindMatrices": buffer.add(inverse.flatten(1), "MAT4"),
                "joints": list(range(24)),
                "skeleton": 0,
            }
        ],
        "materials": [
            {"pbrMetallicRoughness": {"baseColorFactor": [0.72, 0.55, 0.45, 1], "metallicFactor": 0}}
        ],
    }
    if len(rotations) > 1:
        stamps = buffer.add(torch.tensor(list(times)) - times[0], "SCALAR", bounds=True)
        samplers = [{"input": stamps, "output": buffer.add(places, "VEC3")}]
        channels = [{"sampler": 0, "target": {"node": 0, "path": "translation"}}]
        for joint in range(24):
            channels.append({"sampler": len(samplers), "target": {"node": joint, "path": "rotation"}})
            samplers.append({"input": stamps, "output": buffer.add(quaternions[joint], "VEC4")})
        document["animations"] = [{"name": "Pose", "samplers": samplers, "channels": channels}]
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(buffer.packed(document))
    return Path(path)


def _save_fbx(rest: Tensor, rotations: Values, roots: Values, path: Path, times: Times) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".dd3g-") as folder:
        glb = save_glb(rest, rotations, roots, Path(folder) / "body.glb", times)
        save_fbx(glb, path, _evenly(times)[0], len(times))


class _Buffer:
    """The binary part of a glb and the views and accessors into it."""

    def __init__(self) -> None:
        self.data: list[np.ndarray] = []
        self.length = 0
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: Tensor, kind: str, bounds: bool = False) -> int:
        """Append float32 values, or bytes; returns the accessor's index."""
        narrow = values.dtype == torch.uint8
        data = values.contiguous().numpy().astype("u1" if narrow else "<f4", copy=False)
        accessor: dict[str, Any] = {
            "bufferView": len(self.views),
            "componentType": 5121 if narrow else 5126,
        }
        accessor |= {"count": len(values), "type": kind}
        if bounds:
            flat = values.float().reshape(len(values), -1)
            accessor |= {"min": flat.amin(0).tolist(), "max": flat.amax(0).tolist()}
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": data.nbytes})
        self.accessors.append(accessor)
        self.data.append(data)
        self.length += data.nbytes
        return len(self.accessors) - 1

    def packed(self, document: dict[str, Any]) -> Iterator[bytes | memoryview]:
        """The whole file, piece by piece."""
        document = document | {
            "bufferViews": self.views,
            "accessors": self.accessors,
            "buffers": [{"byteLength": self.length}],
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        yield struct.pack("<4sII", b"glTF", 2, 28 + len(text) + self.length)
        yield struct.pack("<I4s", len(text), b"JSON") + text
        yield struct.pack("<I4s", self.length, b"BIN\0")
        yield from (data.data for data in self.data)


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
        turn = quaternion_to_matrix(_from_y(offset / length)[[3, 0, 1, 2]])
        shapes.append((pyramid * torch.tensor([width, length, width])) @ turn.T + rest[parent])
        bones += [parent] * 24
    triangles = torch.cat(shapes)
    normals = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=-1)[:, None].expand(-1, 3, -1)
    return triangles.reshape(-1, 3), normals.reshape(-1, 3), torch.tensor(bones)


def _y_up(rotations: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """Camera frame to y up and z towards the viewer; only the root's rotation knows the frame."""
    turned = rotations.clone()
    turned[:, 0] = FLIP.to(rotations) @ rotations[:, 0]
    return turned, roots @ FLIP.to(roots)


def _zxy(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 3) angles z, x, y in radians with R = Rz Rx Ry."""
    x = torch.asin(R[..., 2, 1].clamp(-1, 1))
    z = torch.atan2(-R[..., 0, 1], R[..., 1, 1])
    y = torch.atan2(-R[..., 2, 0], R[..., 2, 2])
    return torch.stack([z, x, y], -1)


def _from_y(direction: Tensor) -> Tensor:
    """Quaternion x, y, z, w that turns +y into a unit direction."""
    x, y, z = direction.tolist()
    if y < -0.999999:
        return torch.tensor([1.0, 0.0, 0.0, 0.0])
    return torch.nn.functional.normalize(torch.tensor([z, 0.0, -x, 1 + y]), dim=0)


def _row(values: Tensor) -> str:
    return " ".join(f"{v:.4f}" for v in values.tolist())
