""".bvh, .glb and .fbx: their joints by forward kinematics of our own, and in Blender."""

import importlib.util
import json
import math
import struct

import numpy as np
import pytest
import torch
import trimesh
from stand_ins.made_up_people import STANDING
from stand_ins.small_motion import rotations

from dd3g.errors import UserError
from dd3g.gaussians import quaternion_to_matrix
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.body.skeletons import SMPL_24
from dd3g.pose.export import skeletons
from dd3g.pose.series import CHUNK, Track


def rest() -> torch.Tensor:
    return default_body().pose(torch.eye(3).expand(1, 24, 3, 3))[0][0]


def end_points(text: str) -> tuple[list[str], np.ndarray]:
    """Forward kinematics of a .bvh by the letter of the format: names and (T, J, 3)."""
    head, motion = text.split("MOTION")
    rows = np.array([[float(v) for v in line.split()] for line in motion.strip().split("\n")[2:]])
    names, parents, offsets, stack, channels = [], [], [], [], []
    for line in head.split("\n"):
        words = line.split()
        if not words:
            continue
        if words[0] in ("ROOT", "JOINT"):
            names.append(words[1])
            parents.append(stack[-1] if stack else -1)
            current = len(names) - 1
        elif words[0] == "End":
            current = None
        elif words[0] == "{":
            stack.append(current)
        elif words[0] == "}":
            stack.pop()
        elif words[0] == "OFFSET" and current is not None:
            offsets.append([float(v) for v in words[1:]])
        elif words[0] == "CHANNELS":
            channels.append(words[2:])

    def turn(axis: str, degrees: float) -> np.ndarray:
        v = torch.tensor([float(axis == a) for a in "XYZ"]) * math.radians(degrees)
        return axis_angle_to_matrix(v.double()).numpy()

    frames = []
    for row in rows:
        values, placed, turned = list(row), [], []
        for joint, kinds in enumerate(channels):
            move, R = np.zeros(3), np.eye(3)
            for kind in kinds:
                value = values.pop(0)
                if kind.endswith("position"):
                    move["XYZ".index(kind[0])] = value
                else:
                    R = R @ turn(kind[0], value)
            if parents[joint] < 0:
                placed.append(np.array(offsets[joint]) + move)
                turned.append(R)
            else:
                placed.append(placed[parents[joint]] + turned[parents[joint]] @ offsets[joint])
                turned.append(turned[parents[joint]] @ R)
        assert not values
        frames.append(placed)
    return names, np.array(frames)


OURS = {name: joint for joint, name in skeletons.NAMES.items()}


def test_bvh_holds_the_posed_joints(tmp_path):
    R, roots = rotations(3), torch.tensor([[0.0, 0, 3], [0.1, 0, 3], [0.2, -0.1, 3]])
    text = skeletons.save_bvh(rest(), R, roots, tmp_path / "a.bvh", [0, 0.04, 0.08]).read_text()
    assert "Frames: 3" in text and "Frame Time: 0.0400000" in text
    names, placed = end_points(text)
    # The names that retargeters look for.
    assert names[0] == "Hips" and {"LeftUpLeg", "RightForeArm", "Spine2", "Neck", "LeftToeBase"} < set(names)
    want = (default_body().pose(R)[0] + roots[:, None]) * 100
    order = [SMPL_24.joints.index(OURS[name]) for name in names]
    assert sorted(order) == list(range(24))
    np.testing.assert_allclose(placed, want[:, order], atol=0.02)


def test_bvh_of_uneven_frames_is_even(tmp_path):
    R = rotations(1).expand(3, 24, 3, 3)
    roots = torch.tensor([[0.0, 0, 3], [0.1, 0, 3], [0.4, 0, 3]])  # at one speed
    text = skeletons.save_bvh(rest(), R, roots, tmp_path / "a.bvh", [0.0, 0.1, 0.4]).read_text()
    assert "Frame Time: 0.2000000" in text
    placed = end_points(text)[1]
    np.testing.assert_allclose(placed[:, 0, 0], [0, 20, 40], atol=0.01)


@pytest.mark.slow
def test_long_motions_are_written_in_parts_that_fit(tmp_path):
    """Someone who walks at one speed, in uneven frames: all files put them on one line."""
    count = 2 * CHUNK + 10
    times = torch.cumsum(0.02 + 0.04 * torch.rand(count, generator=torch.Generator().manual_seed(2)), 0)
    roots = torch.stack([0.5 * times, 0 * times, 3 + 0 * times], 1)
    track = Track(times.tolist(), STANDING.expand(count, 17, 3), roots, rotations(1).expand(count, 24, 3, 3))
    skeletons.save_bodies(track, tmp_path, "a", ["bvh", "trc", "c3d", "csv", "npz", "glb"])
    even = times[0] + (times[-1] - times[0]) * torch.arange(count) / (count - 1)
    at = {}
    at["bvh"] = end_points((tmp_path / "a.bvh").read_text())[1][:, 0, 0] / 100
    lines = (tmp_path / "a.trc").read_text().splitlines()[6:]
    assert [int(line.split("\t")[0]) for line in lines] == list(range(1, count + 1))
    at["trc"] = np.array([float(line.split("\t")[2]) for line in lines]) / 1000
    content = (tmp_path / "a.c3d").read_bytes()
    assert len(content) % 512 == 0
    rows = np.frombuffer(content, "<f4", count * 17 * 4, 512 * (struct.unpack("<H", content[16:18])[0] - 1))
    at["c3d"] = rows.reshape(count, 17, 4)[:, 0, 0] / 1000
    for name, found in at.items():
        np.testing.assert_allclose(found, 0.5 * even, atol=1e-3, err_msg=name)
    table = np.genfromtxt(tmp_path / "a.csv", delimiter=",", names=True)
    np.testing.assert_allclose(table["hip_x"], roots[:, 0], atol=1e-4)
    with np.load(tmp_path / "a.npz") as found:
        np.testing.assert_allclose(found["trans"], roots * torch.tensor([1.0, -1, -1]), atol=1e-5)  # y up
    document, values = document_of(tmp_path / "a.glb")
    moves = values(document["animations"][0]["samplers"][0]["output"])
    np.testing.assert_allclose(moves[:, 0], roots[:, 0], atol=1e-5)


def document_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    document, binary = json.loads(data[20 : 20 + length]), data[28 + length :]

    def values(index):
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        size = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        flat = np.frombuffer(binary, kind, accessor["count"] * size, view["byteOffset"])
        return flat.reshape(accessor["count"], size)

    return document, values


def test_glb_holds_the_posed_joints(tmp_path):
    R, roots = rotations(2, seed=1), torch.tensor([[0.3, -0.2, 3.0], [0.0, 0, 3]])
    path = skeletons.save_glb(rest(), R, roots, tmp_path / "a.glb", [0.0, 0.5])
    scene = trimesh.load(path)
    want = default_body().pose(R)[0] + roots[:, None]
    for joint, name in enumerate(SMPL_24.joints):
        found = scene.graph.get(skeletons.NAMES[name])[0][:3, 3]
        np.testing.assert_allclose(found, want[0, joint], atol=1e-4, err_msg=name)
    document, values = document_of(path)
    (animation,), (skin,), (mesh,) = document["animations"], document["skins"], document["meshes"]
    assert len(animation["channels"]) == 25 and len(skin["joints"]) == 24 and "skin" in document["nodes"][25]
    assert values(animation["samplers"][0]["input"]).ravel().tolist() == [0, 0.5]
    still = skeletons.save_glb(rest(), R[:1], roots[:1], tmp_path / "b.glb").read_bytes()
    assert b"animations" not in still
    # Skinned by the letter of glTF, each bone reaches from its joint to the child's, in both frames.
    attributes = mesh["primitives"][0]["attributes"]
    vertices, joints = values(attributes["POSITION"]), values(attributes["JOINTS_0"])[:, 0]
    assert (values(attributes["WEIGHTS_0"]) == [1, 0, 0, 0]).all()
    bind = values(skin["inverseBindMatrices"]).reshape(24, 4, 4).transpose(0, 2, 1)
    moved = {c["target"]["path"] + str(c["target"]["node"]): c["sampler"] for c in animation["channels"]}
    for frame in range(2):
        world: list[np.ndarray] = []
        for j, parent in enumerate(SMPL_24.parents):
            x, y, z, w = values(animation["samplers"][moved[f"rotation{j}"]]["output"])[frame]
            local = np.eye(4)
            local[:3, :3] = quaternion_to_matrix(torch.tensor([w, x, y, z])).numpy()
            local[:3, 3] = document["nodes"][j]["translation"]
            if parent < 0:
                local[:3, 3] = values(animation["samplers"][moved["translation0"]]["output"])[frame]
            world.append(local if parent < 0 else world[parent] @ local)
        matrices = np.stack(world) @ bind
        carried = np.einsum(
            "nij,nj->ni", matrices[joints], np.pad(vertices, ((0, 0), (0, 1)), constant_values=1)
        )
        for child in range(1, 24):
            away = np.linalg.norm(carried[:, :3] - want[frame, child].numpy(), axis=1)
            assert away.min() < 1e-4, SMPL_24.joints[child]


@pytest.mark.parametrize("kind", ["glb", "bvh", "fbx"])
def test_blender_sees_the_joints_of_one_armature_and_one_action(tmp_path, kind):
    bpy = pytest.importorskip("bpy", reason="Blender as a module: pip install bpy")
    R, roots = rotations(3, seed=1), torch.tensor([[0.3, -0.2, 3], [0.4, -0.2, 3], [0.4, -0.1, 3.2]])
    save = {"glb": skeletons.save_glb, "bvh": skeletons.save_bvh, "fbx": skeletons.save_fbx}[kind]
    path = save(rest(), R, roots, tmp_path / f"a.{kind}", [0.0, 0.5, 1.0])
    if kind == "fbx":
        assert path.read_bytes().startswith(b"Kaydara FBX Binary")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = 2
    if kind == "glb":
        bpy.ops.import_scene.gltf(filepath=str(path))
    elif kind == "bvh":
        bpy.ops.import_anim.bvh(filepath=str(path), global_scale=0.01)
    else:
        bpy.ops.import_scene.fbx(filepath=str(path))
    (armature,) = (o for o in bpy.data.objects if o.type == "ARMATURE")
    (action,) = bpy.data.actions
    assert len(armature.data.bones) == 24
    want = (default_body().pose(R)[0] + roots[:, None])[..., [0, 2, 1]] * torch.tensor([1.0, -1, 1])  # z up
    for frame in range(3):
        bpy.context.scene.frame_set(round(action.frame_range[0]) + frame)
        found = {b.name: armature.matrix_world @ b.head for b in armature.pose.bones}
        for joint, name in enumerate(SMPL_24.joints):
            at = np.array(found[skeletons.NAMES[name]])
            np.testing.assert_allclose(at, want[frame, joint], atol=1e-3, err_msg=f"{name}, frame {frame}")


def test_fbx_without_blender_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Blender as a module: pip install 'dd3g\[fbx\]'"):
        skeletons.check_blender()


def test_quaternions_do_not_jump_between_frames(tmp_path):
    count = 2 * CHUNK + 40  # written in parts
    angle = torch.linspace(0, 28 * math.pi, count)
    R = torch.eye(3).repeat(count, 24, 1, 1)
    R[:, 16] = axis_angle_to_matrix(angle[:, None] * torch.tensor([0.0, 0, 1]))  # 14 turns
    times = [i / 30 for i in range(count)]
    path = skeletons.save_glb(rest(), R, torch.zeros(count, 3), tmp_path / "a.glb", times)
    document, values = document_of(path)
    samplers = document["animations"][0]["samplers"]
    assert np.abs(np.diff(values(samplers[17]["output"]), axis=0)).max() < 0.1
