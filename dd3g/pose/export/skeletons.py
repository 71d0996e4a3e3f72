"""The posed skeleton over time for animation programs: .bvh and .glb."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd3g.gaussians import matrix_to_quaternion
from dd3g.io.atomic import replacing
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.skeletons import SMPL_24
from dd3g.pose.hypotheses import PersonHypotheses

FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))  # OpenCV axes to y up, z towards the viewer


def save_bodies(people: Sequence[PersonHypotheses], folder: Path, stem: str, fps: float = 30.0) -> list[str]:
    """Write .bvh and .glb of one person's body over time; nothing where the method gave no rotations.

    Returns:
        Names of the files.
    """
    bodies = [p for p in people if p.rotations is not None]
    if not bodies:
        return []
    rotations = torch.stack([p.rotations for p in bodies if p.rotations is not None])
    roots = torch.stack([p.translation for p in bodies])
    betas = [p.betas for p in bodies if p.betas is not None]
    shape = torch.stack(betas).mean(0, keepdim=True) if betas else None
    rest = default_body().pose(torch.eye(3).expand(1, 24, 3, 3), shape)[0][0]
    save_bvh(rest, rotations, roots, folder / f"{stem}.bvh", fps)
    save_glb(rest, rotations, roots, folder / f"{stem}.glb", fps)
    return [f"{stem}.bvh", f"{stem}.glb"]


def save_bvh(rest: Tensor, rotations: Tensor, roots: Tensor, path: str | Path, fps: float = 30.0) -> Path:
    """Write a skeleton's motion for animation programs; y up, centimetres, Z X Y rotations.

    Args:
        rest: (24, 3) metres, SMPL-24 joints at rest, y up, pelvis at zero.
        rotations: (T, 24, 3, 3) relative to the parent, the root's in the camera frame.
        roots: (T, 3) metres, camera frame.
        path: the .bvh file.
        fps: frames a second.
    """
    order: list[int] = []
    lines = ["HIERARCHY"]

    def write(joint: int, depth: int) -> None:
        order.append(joint)
        pad, parent, children = "\t" * depth, SMPL_24.parents[joint], SMPL_24.children(joint)
        offset = 100 * (rest[joint] - rest[max(parent, 0)])
        places = "6 Xposition Yposition Zposition" if parent < 0 else "3"
        lines.append(f"{pad}{'ROOT' if parent < 0 else 'JOINT'} {SMPL_24.joints[joint]}\n{pad}{{")
        lines.append(f"{pad}\tOFFSET {_row(offset)}")
        lines.append(f"{pad}\tCHANNELS {places} Zrotation Xrotation Yrotation")
        for child in children:
            write(child, depth + 1)
        if not children:
            lines.append(f"{pad}\tEnd Site\n{pad}\t{{\n{pad}\t\tOFFSET {_row(0.5 * offset)}\n{pad}\t}}")
        lines.append(f"{pad}}}")

    write(0, 0)
    turned, places = _y_up(rotations, roots)
    angles = torch.rad2deg(_zxy(turned))[:, order]  # (T, 24, 3)
    rows = torch.cat([100 * places, angles.flatten(1)], 1)
    lines += ["MOTION", f"Frames: {len(rows)}", f"Frame Time: {1 / fps:.7f}", *map(_row, rows)]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n", "utf-8")
    return Path(path)


def save_glb(rest: Tensor, rotations: Tensor, roots: Tensor, path: str | Path, fps: float = 30.0) -> Path:
    """Write the posed skeleton: 24 nodes, each with a bone to draw; several frames become an animation.

    Args:
        rest: (24, 3) metres, SMPL-24 joints at rest, y up, pelvis at zero.
        rotations: (T, 24, 3, 3) relative to the parent, the root's in the camera frame.
        roots: (T, 3) metres, camera frame.
        path: the .glb file.
        fps: frames a second.
    """
    turned, places = _y_up(rotations, roots)
    quaternions = matrix_to_quaternion(turned)[..., [1, 2, 3, 0]]  # (T, 24, 4) xyzw
    buffer = _Buffer()
    mesh = _bone_mesh(buffer)
    nodes: list[dict[str, Any]] = []
    bones: list[
        dict[str, Any]
    ] = []  # one for each joint but the root; their nodes follow on those of the joints
    for joint, parent in enumerate(SMPL_24.parents):
        offset = places[0] if parent < 0 else rest[joint] - rest[parent]
        node = {"name": SMPL_24.joints[joint], "translation": offset.tolist()}
        node["rotation"] = quaternions[0, joint].tolist()
        if children := SMPL_24.children(joint):
            node["children"] = children + [23 + child for child in children]
        nodes.append(node)
        if parent >= 0:
            length = float(offset.norm())
            width = min(0.12 * length + 0.012, 0.05)
            turn = _from_y(offset / length).tolist()
            bones.append({"mesh": 0, "rotation": turn, "scale": [width, length, width]})
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "dd3g"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes + bones,
        "meshes": [mesh],
        "materials": [
            {"pbrMetallicRoughness": {"baseColorFactor": [0.72, 0.55, 0.45, 1], "metallicFactor": 0}}
        ],
    }
    if len(rotations) > 1:
        times = buffer.add(torch.arange(len(rotations)) / fps, "SCALAR", bounds=True)
        samplers = [{"input": times, "output": buffer.add(places, "VEC3")}]
        channels = [{"sampler": 0, "target": {"node": 0, "path": "translation"}}]
        for joint in range(24):
            channels.append({"sampler": len(samplers), "target": {"node": joint, "path": "rotation"}})
            samplers.append({"input": times, "output": buffer.add(quaternions[:, joint], "VEC4")})
        document["animations"] = [{"samplers": samplers, "channels": channels}]
    with replacing(path) as part:
        part.write_bytes(buffer.packed(document))
    return Path(path)


class _Buffer:
    """The binary part of a glb and the views and accessors into it."""

    def __init__(self) -> None:
        self.data = b""
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, values: Tensor, kind: str, bounds: bool = False) -> int:
        """Append float32 values; returns the accessor's index."""
        data = values.float().contiguous().numpy().astype("<f4").tobytes()
        accessor: dict[str, Any] = {"bufferView": len(self.views), "componentType": 5126}
        accessor |= {"count": len(values), "type": kind}
        if bounds:
            flat = values.float().reshape(len(values), -1)
            accessor |= {"min": flat.amin(0).tolist(), "max": flat.amax(0).tolist()}
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)})
        self.accessors.append(accessor)
        self.data += data
        return len(self.accessors) - 1

    def packed(self, document: dict[str, Any]) -> bytes:
        """The whole file."""
        document = document | {
            "bufferViews": self.views,
            "accessors": self.accessors,
            "buffers": [{"byteLength": len(self.data)}],
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        size = 28 + len(text) + len(self.data)
        start = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON")
        return start + text + struct.pack("<I4s", len(self.data), b"BIN\0") + self.data


def _bone_mesh(buffer: _Buffer) -> dict[str, Any]:
    """A double pyramid from (0, 0, 0) to (0, 1, 0), half a unit thick to each side, with flat faces."""
    ring = [torch.tensor([x, 0.2, z]) for x, z in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5))]
    low, high = torch.zeros(3), torch.tensor([0.0, 1.0, 0.0])
    faces = []
    for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
        faces += [torch.stack([a, b, high]), torch.stack([b, a, low])]
    triangles = torch.stack(faces)  # (8, 3, 3)
    normals = torch.linalg.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=-1)[:, None].expand(-1, 3, -1)
    attributes = {
        "POSITION": buffer.add(triangles.reshape(-1, 3), "VEC3", bounds=True),
        "NORMAL": buffer.add(normals.reshape(-1, 3), "VEC3"),
    }
    return {"primitives": [{"attributes": attributes, "material": 0}]}


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
