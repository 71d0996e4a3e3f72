"""JSON, figure, page, .bvh and .glb: written, and read back by other means."""

import importlib.util
import json
import math
import re
import struct
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from stand_ins.headless_chromium import CHROMIUM, Page
from stand_ins.made_up_people import SIZE, STANDING, K, person

from dd3g.errors import UserError
from dd3g.gaussians import quaternion_to_matrix
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix, project
from dd3g.pose.body.skeletons import H36M_17, SMPL_24
from dd3g.pose.export import markers, results, skeletons, skinned, viewer
from dd3g.pose.export.fbx import check_blender, save_fbx
from dd3g.pose.export.figures import LEFT, RIGHT, bone_colors, draw_overlay, draw_view, figure
from dd3g.pose.series import PART, Track


def rotations(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return axis_angle_to_matrix(0.6 * torch.randn(frames, 24, 3, generator=generator))


def rest() -> torch.Tensor:
    return default_body().pose(torch.eye(3).expand(1, 24, 3, 3))[0][0]


def test_json_says_what_was_estimated(tmp_path):
    people = [person(), person(1.0, m=1)]
    content = results.head("guided") | {"people": results.as_json(people)}
    read = json.loads(results.save_json(content, tmp_path / "a.json").read_text())
    first, second = read["people"]
    assert read["joints"] == list(H36M_17.joints) and len(first["hypotheses"]) == 8
    np.testing.assert_allclose(first["recommended"]["pose"], people[0].pose, atol=1e-6)
    np.testing.assert_allclose(first["recommended"]["translation"], [0, 0, 4], atol=0.2)
    assert [h["energy"] for h in first["hypotheses"]] == list(range(8))
    assert 0.03 < first["recommended"]["expected_error"] < 0.12
    assert second["recommended"]["expected_error"] is None  # one hypothesis has no spread; NaN is no JSON


def test_frames_are_written_as_they_come(tmp_path):
    """Those of an hour, all as Python numbers at once, take a gigabyte."""

    class Frame(dict):
        pass

    def frames():
        before = []
        for i in range(4):
            assert all(frame() is None for frame in before[:-1])
            frame = Frame(index=i, pose=torch.full((2,), i / 3))
            before.append(weakref.ref(frame))
            yield frame
            del frame

    listed = {"a": [1.5, None], "frames": [{"index": i, "pose": [i / 3, i / 3]} for i in range(4)], "b": {}}
    results.save_json(listed, tmp_path / "list.json")
    results.save_json(listed | {"frames": frames()}, tmp_path / "iterator.json")
    assert (tmp_path / "iterator.json").read_bytes() == (tmp_path / "list.json").read_bytes()
    read = json.loads((tmp_path / "list.json").read_text())
    assert read["frames"][1] == {"index": 1, "pose": [0.333333, 0.333333]} and read["a"] == [1.5, None]
    results.save_json({"frames": iter(())}, tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == {"frames": []}


def test_translation_puts_the_pose_on_its_keypoints():
    one = person(0.8, spread=0.0)
    np.testing.assert_allclose(one.translation, [0.8, 0, 4], atol=1e-3)
    assert torch.allclose(project(one.pose + one.translation, K), one.detection.keypoints, atol=0.1)


def test_overlay_draws_left_and_right_where_they_are():
    one = person(spread=0.0)
    image = np.asarray(draw_overlay([one], Image.new("RGB", SIZE, "white"))).astype(int)
    assert image.shape == (960, 1280, 3)
    for joints, color in (((4, 5), LEFT), ((1, 2), RIGHT)):
        x, y = (2 * one.detection.keypoints[list(joints)].mean(0)).round().int().tolist()
        np.testing.assert_allclose(image[y, x], color, atol=40)
    assert bone_colors()[0] == RIGHT and bone_colors()[3] == LEFT


def test_figure_has_three_views_for_each_person():
    sheet = figure([person(-0.5), person(0.5), person(0.0)], None)
    assert sheet.size == (853 + 660, 660)
    pixels = np.asarray(sheet).astype(int)
    for row in range(3):
        for column in range(3):
            panel = pixels[row * 220 : row * 220 + 220, 853 + column * 220 :][:, :220]
            blue = (panel[..., 2] - panel[..., 0] > 100).sum()
            red = (panel[..., 0] - panel[..., 2] > 100).sum()
            assert min(blue, red) > 40, (row, column)
    side = np.asarray(draw_view(person(spread=0.0), "side", 220)).astype(int)
    drawn = np.argwhere(np.ptp(side, axis=-1) > 60)
    assert np.ptp(drawn[:, 1]) < 30 < np.ptp(drawn[:, 0])  # someone who stands is thin from the side


def test_people_of_a_video_keep_their_numbers_when_others_leave():
    drawn = [draw_overlay([replace(person(), track=n)], None).tobytes() for n in (None, 0, 3)]
    assert drawn[0] == drawn[1] != drawn[2]


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


OURS = {name: joint for joint, name in skinned.NAMES.items()}


def test_bvh_holds_the_posed_joints(tmp_path):
    R, roots = rotations(3), torch.tensor([[0.0, 0, 3], [0.1, 0, 3], [0.2, -0.1, 3]])
    text = skeletons.save_bvh(rest(), R, roots, tmp_path / "a.bvh", [0, 0.04, 0.08]).read_text()
    assert "Frames: 3" in text and "Frame Time: 0.0400000" in text
    names, placed = end_points(text)
    # The names that retargeters look for.
    assert names[0] == "Hips" and {"LeftUpLeg", "RightForeArm", "Spine2", "Neck", "LeftToeBase"} < set(names)
    want = (default_body().pose(R)[0] + roots[:, None]) * torch.tensor([100.0, -100, -100])
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


def test_long_motions_are_written_in_parts_that_fit(tmp_path):
    """Someone who walks at one speed, in uneven frames: all files put them on one line."""
    count = 2 * PART + 10
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
        np.testing.assert_allclose(found["trans"][:, 0], roots[:, 0], atol=1e-5)
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
    path = skinned.save_glb(rest(), R, roots, tmp_path / "a.glb", [0.0, 0.5])
    scene = trimesh.load(path)
    want = (default_body().pose(R)[0] + roots[:, None]) * torch.tensor([1.0, -1, -1])
    for joint, name in enumerate(SMPL_24.joints):
        found = scene.graph.get(skinned.NAMES[name])[0][:3, 3]
        np.testing.assert_allclose(found, want[0, joint], atol=1e-4, err_msg=name)
    document, values = document_of(path)
    (animation,), (skin,), (mesh,) = document["animations"], document["skins"], document["meshes"]
    assert len(animation["channels"]) == 25 and len(skin["joints"]) == 24 and "skin" in document["nodes"][25]
    assert values(animation["samplers"][0]["input"]).ravel().tolist() == [0, 0.5]
    still = skinned.save_glb(rest(), R[:1], roots[:1], tmp_path / "b.glb").read_bytes()
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
    save = skeletons.save_bvh if kind == "bvh" else skinned.save_glb
    path = save(rest(), R, roots, tmp_path / f"a.{save.__name__[-3:]}", [0.0, 0.5, 1.0])
    if kind == "fbx":
        path = save_fbx(path, tmp_path / "a.fbx", 2.0, 3)
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
    want = (default_body().pose(R)[0] + roots[:, None])[..., [0, 2, 1]] * torch.tensor([1.0, 1, -1])  # z up
    for frame in range(3):
        bpy.context.scene.frame_set(round(action.frame_range[0]) + frame)
        found = {b.name: armature.matrix_world @ b.head for b in armature.pose.bones}
        for joint, name in enumerate(SMPL_24.joints):
            at = np.array(found[skinned.NAMES[name]])
            np.testing.assert_allclose(at, want[frame, joint], atol=1e-3, err_msg=f"{name}, frame {frame}")


def test_fbx_without_blender_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Blender as a module: pip install 'dd3g\[fbx\]'"):
        check_blender()


def test_quaternions_do_not_jump_between_frames(tmp_path):
    count = 2 * PART + 40  # written in parts
    angle = torch.linspace(0, 28 * math.pi, count)
    R = torch.eye(3).repeat(count, 24, 1, 1)
    R[:, 16] = axis_angle_to_matrix(angle[:, None] * torch.tensor([0.0, 0, 1]))  # 14 turns
    times = [i / 30 for i in range(count)]
    path = skinned.save_glb(rest(), R, torch.zeros(count, 3), tmp_path / "a.glb", times)
    document, values = document_of(path)
    samplers = document["animations"][0]["samplers"]
    assert np.abs(np.diff(values(samplers[17]["output"]), axis=0)).max() < 0.1


def test_marker_files_and_tables_hold_the_joints(tmp_path):
    points = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(1))
    times = [0.0, 0.04, 0.08]
    lines = markers.save_trc(points, tmp_path / "a.trc", times).read_text().splitlines()
    assert lines[2].split("\t")[:5] == ["25.000000", "25.000000", "3", "17", "mm"]
    assert lines[3].split("\t")[2::3][:17] == list(H36M_17.joints)
    rows = np.array([[float(v) for v in line.split("\t")] for line in lines[6:]])
    np.testing.assert_allclose(rows[:, 1], times, atol=1e-5)
    want = 1000 * points * torch.tensor([1.0, -1, -1])
    np.testing.assert_allclose(rows[:, 2:].reshape(3, 17, 3), want, atol=1e-2)
    table = np.genfromtxt(markers.save_csv(points, tmp_path / "a.csv", times), delimiter=",", names=True)
    np.testing.assert_allclose(table["time"], times)
    np.testing.assert_allclose(table["l_wrist_y"], points[:, 13, 1], atol=1e-4)


def test_c3d_holds_the_joints_byte_by_byte(tmp_path):
    points = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(1))
    content = markers.save_c3d(points, tmp_path / "a.c3d", [0.0, 0.04, 0.08]).read_bytes()
    assert content[:2] == b"\x02\x50" and content[512:516] == bytes([1, 0x50, content[514], 84])
    count, analog, first, last, gap, scale, start, _, rate = struct.unpack("<5HfHHf", content[2:24])
    assert (count, analog, first, last, gap, scale, rate) == (17, 0, 1, 3, 0, -1.0, 25.0)
    assert start == 2 + content[514] and len(content) % 512 == 0
    rows = np.frombuffer(content, "<f4", 3 * 17 * 4, 512 * (start - 1)).reshape(3, 17, 4)
    np.testing.assert_allclose(rows[..., :3], 1000 * points * torch.tensor([1.0, -1, -1]), rtol=1e-6)
    assert not rows[..., 3].any()


@pytest.mark.filterwarnings("ignore:missing parameter|No analog data")
@pytest.mark.parametrize("frames", [1, 3, 70_000])  # 16 bits count to 65,535
def test_another_reader_of_c3d_sees_the_joints(tmp_path, frames):
    c3d = pytest.importorskip("c3d", reason="a reader of .c3d: pip install c3d")
    points = torch.randn(frames, 17, 3, generator=torch.Generator().manual_seed(1))
    path = markers.save_c3d(points, tmp_path / "a.c3d", [i / 30 for i in range(frames)])
    with path.open("rb") as file:
        reader = c3d.Reader(file)
        assert reader.point_rate == pytest.approx(30)
        assert [label.strip() for label in reader.point_labels] == list(H36M_17.joints)
        assert reader.get("POINT:UNITS").string_array == ["mm"]
        rows = np.stack([row[:, :4] for _, row, _ in reader.read_frames(copy=True)])
    assert (rows[..., 3] == 0).all()  # seen
    np.testing.assert_allclose(rows[..., :3], 1000 * points * torch.tensor([1.0, -1, -1]), atol=1e-2)


def test_parameters_are_those_of_amass(tmp_path):
    R, roots = rotations(2), torch.tensor([[0.0, 0.5, 3], [0.1, 0, 3]])
    with np.load(skeletons.save_parameters(R, roots, tmp_path / "a.npz", [0.0, 0.02])) as found:
        assert found["poses"].shape == (2, 72) and found["betas"].shape == (10,)
        assert str(found["gender"]) == "neutral" and float(found["mocap_framerate"]) == pytest.approx(50)
        # SMPL-X' names; its body is SMPL's without the hands.
        body = np.concatenate([found["root_orient"], found["pose_body"]], 1)
        assert body.shape == (2, 66) and (body == found["poses"][:, :66]).all()
        assert found["mocap_frame_rate"] == found["mocap_framerate"]
        back = axis_angle_to_matrix(torch.from_numpy(found["poses"]).reshape(2, 24, 3))
        trans = torch.from_numpy(found["trans"])
    want = (default_body().pose(R)[0] + roots[:, None]) * torch.tensor([1.0, -1, -1])
    torch.testing.assert_close(default_body().pose(back)[0] + trans[:, None], want, atol=1e-4, rtol=0)


def test_bodies_are_written_where_there_are_rotations_or_a_format_is_named(tmp_path):
    assert skeletons.save_bodies(Track.of([person()]), tmp_path, "a") == []
    body = person(rotations=rotations(1)[0], betas=torch.zeros(10))
    assert skeletons.save_bodies(Track.of([body]), tmp_path, "a") == ["a.bvh", "a.glb"]
    names = ["a.trc", "a.c3d", "a.csv", "a.npz", "a.glb"]
    formats = [name[2:] for name in names]
    assert skeletons.save_bodies(Track.of([person()] * 2, [0.0, 0.1]), tmp_path, "a", formats) == names
    entry = results.as_json([body])[0]["body"]
    assert entry["joints"] == list(SMPL_24.joints) and entry["rotations"].shape == (24, 3)


def test_page_is_whole_and_can_not_be_injected(tmp_path):
    path = viewer.save_viewer([[person()]], tmp_path / "a.html", "</title><script>x</script>{{data}}")
    page = path.read_text()
    assert "<title>&lt;/title&gt;&lt;script&gt;x&lt;/script&gt;{{data}}</title>" in page
    assert "default-src 'none'" in page and not re.search(r"https?://|//\w+\.\w+/", page)
    data = json.loads(re.search(r'<script type="application/json" id="data">([^<]*)</script>', page)[1])
    assert len(data["frames"]) == 1 and np.shape(data["frames"][0]) == (1, 9, 17, 3)
    np.testing.assert_allclose(np.array(data["frames"][0][0][0])[3, 1], 1000 * STANDING[3, 1], atol=150)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    page = Page(tmp_path_factory.mktemp("profile"), 256)
    yield page
    page.close()


def test_page_shows_left_and_right_and_turns(page, tmp_path):
    file = viewer.save_viewer([[person(spread=0.0)]], tmp_path / "a.html")
    page.open(file, "#spin=0&azimuth=0&elevation=0")
    page.wait("!stale")
    page.eval("document.querySelectorAll('header, #hint, nav').forEach((part) => part.remove())")
    shot = page.screenshot().astype(int)
    blue, red = shot[..., 2] - shot[..., 0] > 100, shot[..., 0] - shot[..., 2] > 100
    assert min(blue.sum(), red.sum()) > 100
    assert np.argwhere(red)[:, 1].mean() < 120 < 136 < np.argwhere(blue)[:, 1].mean()
    assert np.argwhere(blue)[:, 0].min() < 90 and np.argwhere(blue)[:, 0].max() > 190  # upright
    page.eval("turn(180, 0)")
    page.wait("!stale")
    shot = page.screenshot().astype(int)
    assert np.argwhere(shot[..., 2] - shot[..., 0] > 100)[:, 1].mean() < 120  # from behind
    assert page.requests == [file.as_uri()] and page.errors == []


def test_page_of_a_video_plays(page, tmp_path):
    frames = [[person(x)] for x in (-0.2, 0.0, 0.2)] + [[]]
    page.open(viewer.save_viewer(frames, tmp_path / "a.html", fps=20), "#spin=0")
    page.wait("current > 0")
    assert page.eval("byId('count').textContent") == "1 person, 4 frames"
    page.eval("byId('play').click(), show(1)")
    assert page.eval("[playing, current, byId('time').value]") == [False, 1, "1"]
    assert page.errors == []
