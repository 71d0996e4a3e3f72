"""Motion files, written here in the layouts of their makers and read back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dd3g.command import make_app
from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.acclaim import read_amc
from dd3g.pose.data.bvh import parse_bvh, positions, read_bvh
from dd3g.pose.data.motion import load_cmu
from dd3g.pose.data.motion_files import load_motion
from dd3g.pose.export.skeletons import save_bvh
from dd3g.pose.train import train_command

DATA = Path(os.environ.get("DD3G_DATA", Path(__file__).parents[5] / "shared" / "data"))
ARCHIVE = DATA / "motion" / "cmu_mocap_30fps.npz"


def archive(path, **changes):
    rng = np.random.default_rng(0)
    lengths = np.array([4, 3, 5, 2])
    arrays = {
        "joints_rel": rng.normal(size=(14, 17, 3)).astype(np.float16),
        "root": rng.normal(size=(14, 3)).astype(np.float32),
        "rot24": rng.normal(size=(14, 24, 3)).astype(np.float16),
        "clip_start": np.cumsum(lengths) - lengths,
        "clip_len": lengths,
        "subject": np.array(["1", "x_walking", "5", "2"]),
        "trial": np.array(["1", "1", "2", "1"]),
        "action": np.array(["walk", "walk", "dance", "run"]),
        "source": np.array(["amc"] * 4),
        "rot_valid": np.array([True, True, False, True]),
        "split": np.array(["train", "train", "test", "train"]),
        "fps": np.float32(30),
    } | changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_splits_of_the_archive(tmp_path):
    path = tmp_path / "cmu.npz"
    arrays = archive(path)
    strict, loose, test = load_cmu(path), load_cmu(path, strict=False), load_cmu(path, "test")
    assert strict.subjects == ["1", "2"] and strict.clip.tolist() == [0] * 4 + [1] * 2
    assert loose.subjects == ["1", "x_walking", "2"] and len(loose) == 9
    assert test.actions == ["dance"] and not test.rotations_valid.any() and test.fps == 30
    rows = [0, 1, 2, 3, 12, 13]
    np.testing.assert_array_equal(strict.joints.numpy(), arrays["joints_rel"][rows].astype(np.float32))
    np.testing.assert_array_equal(strict.rotations.numpy(), arrays["rot24"][rows].astype(np.float32))
    np.testing.assert_array_equal(strict.root.numpy(), arrays["root"][rows])
    assert len(load_cmu(path, "all", strict=False)) == 14


def test_windows_stay_within_clips(tmp_path):
    archive(tmp_path / "cmu.npz")
    motion = load_cmu(tmp_path / "cmu.npz", "all", strict=False)
    assert motion.windows(2).tolist() == [[0, 1], [2, 3], [4, 5], [7, 8], [9, 10], [12, 13]]
    assert motion.windows(4, 1).tolist() == [[0, 1, 2, 3], [7, 8, 9, 10], [8, 9, 10, 11]]
    assert motion.windows(99).shape == (0, 99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rot24": None}, "rot24"),
        ({"joints_rel": np.zeros((14, 16, 3))}, r"joints_rel must be \(N, 17, 3\)"),
        ({"clip_len": np.array([4, 3, 5, 1])}, "do not add up"),
        ({"clip_start": np.array([0, 4, 8, 12])}, "clip_start"),
        ({"split": np.array(["train"] * 4)}, "no clips in split 'test'"),
    ],
)
def test_broken_archives_are_told(tmp_path, changes, message):
    archive(tmp_path / "cmu.npz", **changes)
    with pytest.raises(UserError, match=message):
        load_cmu(tmp_path / "cmu.npz", "test")


def test_no_archive_and_half_an_archive(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_cmu(tmp_path / "no.npz")
    archive(tmp_path / "cmu.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "cmu.npz").read_bytes()[:1500])
    with pytest.raises(UserError, match="half.npz is not a whole npz"):
        load_cmu(tmp_path / "half.npz")
    with pytest.raises(UserError, match="split must be"):
        load_cmu(tmp_path / "cmu.npz", "dev")


@pytest.mark.skipif(not ARCHIVE.exists(), reason="needs the CMU motion archive ($DD3G_DATA)")
def test_the_real_archive():
    train, test = load_cmu(ARCHIVE), load_cmu(ARCHIVE, "test")
    assert (len(train), len(test)) == (58721, 5537)
    assert set(test.subjects) == {"5", "49"} and not set(test.subjects) & set(train.subjects)
    assert not any(s.startswith("x_") for s in train.subjects)
    assert train.joints[:, 0].abs().max() == 0


BVH = """HIERARCHY
ROOT Hips
{
 OFFSET 0 0 0
 CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
 JOINT LeftUpLeg
 {
  OFFSET 10 0 0
  CHANNELS 3 Zrotation Yrotation Xrotation
  JOINT LeftLeg
  {
   OFFSET 0 -40 0
   CHANNELS 3 Zrotation Yrotation Xrotation
   JOINT LeftFoot
   {
    OFFSET 0 -42 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    End Site
    { OFFSET 0 0 10 }
   }
  }
 }
 JOINT RightUpLeg
 {
  OFFSET -10 0 0
  CHANNELS 3 Zrotation Yrotation Xrotation
  JOINT RightLeg
  {
   OFFSET 0 -40 0
   CHANNELS 3 Zrotation Yrotation Xrotation
   JOINT RightFoot
   {
    OFFSET 0 -42 0
    CHANNELS 3 Zrotation Yrotation Xrotation
   }
  }
 }
 JOINT Spine
 {
  OFFSET 0 24 0
  CHANNELS 3 Zrotation Yrotation Xrotation
  JOINT Neck
  {
   OFFSET 0 28 0
   CHANNELS 3 Zrotation Yrotation Xrotation
   JOINT Head
   {
    OFFSET 0 10 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    End Site
    { OFFSET 0 16 0 }
   }
  }
  JOINT LeftShoulder
  {
   OFFSET 3 24 0
   CHANNELS 3 Zrotation Yrotation Xrotation
   JOINT LeftArm
   {
    OFFSET 14 0 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    JOINT LeftForeArm
    {
     OFFSET 28 0 0
     CHANNELS 3 Zrotation Yrotation Xrotation
     JOINT LeftHand
     {
      OFFSET 25 0 0
      CHANNELS 3 Zrotation Yrotation Xrotation
     }
    }
   }
  }
  JOINT RightShoulder
  {
   OFFSET -3 24 0
   CHANNELS 3 Zrotation Yrotation Xrotation
   JOINT RightArm
   {
    OFFSET -14 0 0
    CHANNELS 3 Zrotation Yrotation Xrotation
    JOINT RightForeArm
    {
     OFFSET -28 0 0
     CHANNELS 3 Zrotation Yrotation Xrotation
     JOINT RightHand
     {
      OFFSET -25 0 0
      CHANNELS 3 Zrotation Yrotation Xrotation
     }
    }
   }
  }
 }
}
MOTION
Frames: 2
Frame Time: 0.05
"""
COLUMNS = 6 + 3 * 17


def bvh(path, frame, text=BVH):
    rows = [[0.0] * COLUMNS, frame]
    path.write_text(text + "\n".join(" ".join(str(v) for v in row) for row in rows))
    return path


def test_bvh_by_hand(tmp_path):
    frame = [0.0] * COLUMNS
    frame[:6] = [100, 95, -20, 0, 90, 0]  # turned to the left: +z becomes +x
    frame[9:12] = [0, 0, 90]  # left knee; its joint is third in the file
    path = bvh(tmp_path / "walk.bvh", frame)
    tree = parse_bvh(path)
    assert tree.names[:5] == ["Hips", "LeftUpLeg", "LeftLeg", "LeftFoot", "LeftFoot end"]
    assert positions(tree)[0, 4].tolist() == [10, -82, 10]
    motion = read_bvh(path)
    assert len(motion) == 2 and motion.fps == pytest.approx(20) and motion.actions == ["walk"]
    rest = motion.joints[0]
    expected = {1: [-0.1, 0, 0], 3: [-0.1, -0.82, 0], 6: [0.1, -0.82, 0], 7: [0, 0.24, 0], 8: [0, 0.49, 0],
                9: [0, 0.70, 0.07], 10: [0, 0.78, 0], 11: [0.17, 0.48, 0], 13: [0.70, 0.48, 0],
                16: [-0.70, 0.48, 0]}  # fmt: skip
    for joint, place in expected.items():
        torch.testing.assert_close(rest[joint], torch.tensor(place), atol=1e-6, rtol=0)
    torch.testing.assert_close(motion.root[1], torch.tensor([1.0, 0.95, -0.2]))
    turned = motion.joints[1]
    torch.testing.assert_close(turned[4], torch.tensor([0.0, 0, -0.1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned[5], torch.tensor([0.0, -0.4, -0.1]), atol=1e-6, rtol=0)
    # The knee bends by 90 degrees about x, the shin swings from -y to -z, which the root turns to -x.
    torch.testing.assert_close(turned[6], torch.tensor([-0.42, -0.4, -0.1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned[9], torch.tensor([0.07, 0.70, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("UpLeg", "Thigh"), ("RightUpLeg", "RightHip"), ("LeftArm", "lShldr"), ("Hips", "CC_Base_Hip"),
        ("LeftForeArm", "l_elbow"), ("RightFoot", "mixamorig:RightFoot"), ("Spine", "abdomen"),
    ],
)  # fmt: skip
def test_other_exporters_names(tmp_path, old, new):
    frame = list(range(COLUMNS))
    plain = read_bvh(bvh(tmp_path / "a.bvh", frame))
    other = read_bvh(bvh(tmp_path / "b.bvh", frame, BVH.replace(old + "\n", new + "\n")))
    torch.testing.assert_close(plain.joints, other.joints)


def test_our_own_bvh_comes_back(tmp_path):
    rest = default_body().pose(torch.eye(3).expand(1, 24, 3, 3))[0][0]
    v = 0.3 * torch.randn(3, 24, 3, generator=torch.Generator().manual_seed(0))
    rotations, roots = axis_angle_to_matrix(v), torch.tensor([[0.0, 0.1, 4.0]] * 3)
    save_bvh(rest, rotations, roots, tmp_path / "person.bvh", [0.0, 0.04, 0.08])
    motion = read_bvh(tmp_path / "person.bvh")
    down = torch.tensor([1.0, -1.0, -1.0])  # the file is y up, the camera y down
    body = default_body().points(rotations, layout="smpl-24") * down
    limbs = {1: 2, 2: 5, 3: 8, 4: 1, 5: 4, 6: 7, 11: 16, 12: 18, 13: 20, 14: 17, 15: 19, 16: 21}
    torch.testing.assert_close(
        motion.joints[:, list(limbs)], body[:, list(limbs.values())], atol=2e-4, rtol=0
    )
    assert motion.fps == pytest.approx(25)


def test_bad_bvh_is_told(tmp_path):
    path = bvh(tmp_path / "a.bvh", [0.0] * (COLUMNS - 1))
    with pytest.raises(UserError, match="cut off: 113 numbers for 2 frames of 57"):
        read_bvh(path)
    path.write_text(BVH[:400])
    with pytest.raises(UserError, match="no whole BVH"):
        read_bvh(path)
    path.write_text("solid cube")
    with pytest.raises(UserError, match="no BVH file"):
        read_bvh(path)
    for old, new in (("Xrotation", "Wrotation"), ("Frame Time: ", "Frame Time: -")):
        assert old in bvh(path, [0.0] * COLUMNS).read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(UserError, match="no whole BVH.*(channel 'wrotation'|frame time -)"):
            read_bvh(path)
    path = bvh(path, [0.0] * COLUMNS, BVH.replace("LeftHand", "LeftPaw"))
    with pytest.raises(UserError, match="no joint for 'l_wrist'.*LeftPaw"):
        read_bvh(path)


def asf():
    """CMU's layout with straight limbs; the left arm's axis frame is turned to show that it matters."""
    bones = [
        ("lhipjoint", "1 0 0", 2, "0 0 0", ""), ("lfemur", "0 -1 0", 8, "0 0 0", "rx ry rz"),
        ("ltibia", "0 -1 0", 8, "0 0 0", "rx"), ("rhipjoint", "-1 0 0", 2, "0 0 0", ""),
        ("rfemur", "0 -1 0", 8, "0 0 0", "rx ry rz"), ("rtibia", "0 -1 0", 8, "0 0 0", "rx"),
        ("lowerback", "0 1 0", 3, "0 0 0", "rx ry rz"), ("upperback", "0 1 0", 3, "0 0 0", ""),
        ("thorax", "0 1 0", 3, "0 0 0", ""), ("upperneck", "0 1 0", 2, "0 0 0", ""),
        ("head", "0 1 0", 3, "0 0 0", ""), ("lclavicle", "1 0 0", 3, "0 0 0", ""),
        ("lhumerus", "1 0 0", 5, "0 0 90", "rx"), ("lradius", "1 0 0", 4, "0 0 0", "rx"),
        ("rclavicle", "-1 0 0", 3, "0 0 0", ""), ("rhumerus", "-1 0 0", 5, "0 0 0", "rx ry rz"),
        ("rradius", "-1 0 0", 4, "0 0 0", "rx"),
    ]  # fmt: skip
    data = ""
    for i, (name, direction, length, axis, dof) in enumerate(bones, 1):
        data += f"  begin\n     id {i}\n     name {name}\n     direction {direction}\n     length {length}\n"
        data += f"     axis {axis}  XYZ\n" + (f"    dof {dof}\n" if dof else "") + "  end\n"
    tree = (
        "root lhipjoint rhipjoint lowerback,lhipjoint lfemur,lfemur ltibia,rhipjoint rfemur,rfemur rtibia,"
        "lowerback upperback,upperback thorax,thorax upperneck lclavicle rclavicle,upperneck head,"
        "lclavicle lhumerus,lhumerus lradius,rclavicle rhumerus,rhumerus rradius"
    )
    lines = "".join(f"    {line}\n" for line in tree.split(","))
    return (
        "# AST/ASF file\n:version 1.10\n:name person\n:units\n  mass 1.0\n  length 0.45\n  angle deg\n"
        ":documentation\n   made for a test\n:root\n   order TX TY TZ RX RY RZ\n   axis XYZ\n"
        f"   position 0 0 0\n   orientation 0 0 0\n:bonedata\n{data}:hierarchy\n  begin\n{lines}  end\n"
    )


AMC = """#!OML:ASF person.ASF
:FULLY-SPECIFIED
:DEGREES
1
root 0 17 0 0 0 0
lowerback 0 0 0
lfemur 0 0 0
ltibia 0
rfemur 0 0 0
rtibia 0
lhumerus 0
lradius 0
rhumerus 0 0 0
rradius 0
2
root 1 17 2 0 90 0
lowerback 0 0 0
lfemur 0 0 0
ltibia 90
rfemur 90 0 90
rtibia 0
lhumerus 90
lradius 0
rhumerus 0 0 0
rradius 0
"""


def test_amc_by_hand(tmp_path):
    (tmp_path / "p.asf").write_text(asf())
    (tmp_path / "p.amc").write_text(AMC)
    motion = read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
    unit = 0.0254 / 0.45
    assert motion.fps == 120 and motion.root[0].tolist() == pytest.approx([0, 17 * unit, 0])
    rest = motion.joints[0] / unit
    expected = {1: [-2, 0, 0], 3: [-2, -16, 0], 4: [2, 0, 0], 7: [0, 6, 0], 8: [0, 9, 0], 10: [0, 14, 0],
                11: [3, 9, 0], 12: [8, 9, 0], 13: [12, 9, 0], 16: [-12, 9, 0]}  # fmt: skip
    for joint, place in expected.items():
        torch.testing.assert_close(rest[joint], torch.tensor(place).float(), atol=1e-4, rtol=0)
    # Undo the root's turn of 90 degrees about y, (x, y, z) -> (z, y, -x), to read the second frame.
    x, y, z = (motion.joints[1] / unit).unbind(-1)
    bent = torch.stack([-z, y, x], -1)
    expected = {
        6: [2, -8, -8],  # the left shin swings from -y to -z
        # The right thigh turns about x first, -y to -z, and then about z, which leaves -z alone.
        2: [-2, 0, -8],
        # The arm turns about its own x, the world's y in its axis frame: +x goes to -z.
        12: [3, 9, -5],
    }
    for joint, place in expected.items():
        torch.testing.assert_close(bent[joint], torch.tensor(place).float(), atol=1e-4, rtol=0)


def test_a_take_of_cmu_finds_its_skeleton_and_can_be_learnt_from(tmp_path):
    (tmp_path / "07.asf").write_text(asf())
    (tmp_path / "08.asf").write_text(asf().replace("length 8", "length 9"))
    (tmp_path / "07_01.amc").write_text(AMC)
    found, want = load_motion(tmp_path / "07_01.amc"), read_amc(tmp_path / "07.asf", tmp_path / "07_01.amc")
    assert torch.equal(found.joints, want.joints) and torch.equal(found.root, want.root)
    words = ["lifter", "--motion", tmp_path / "07_01.amc", "-o", tmp_path / "run", "--steps", 1]
    result = CliRunner().invoke(make_app(train_command), [str(w) for w in words])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ltibia 90", "ltibia"), "line 19: ltibia needs 1 values"),
        (("rradius 0\n2", "2"), "rradius has 1 rows for 2 frames"),
        (("ltibia 90", "tail 90"), "no bone 'tail'"),
        (("ltibia 90", "ltibia x"), "line 19"),
    ],
)
def test_bad_amc_is_told(tmp_path, change, message):
    (tmp_path / "p.asf").write_text(asf())
    (tmp_path / "p.amc").write_text(AMC.replace(*change, 1))
    with pytest.raises(UserError, match=message):
        read_amc(tmp_path / "p.asf", tmp_path / "p.amc")


def test_bad_asf_is_told(tmp_path):
    (tmp_path / "p.amc").write_text(AMC)
    (tmp_path / "p.asf").write_text(asf().split(":hierarchy")[0])
    with pytest.raises(UserError, match="no section :hierarchy"):
        read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
    (tmp_path / "p.asf").write_text(asf().replace("     name lradius\n", ""))
    with pytest.raises(UserError, match="no ASF file that can be read.*name"):
        read_amc(tmp_path / "p.asf", tmp_path / "p.amc")
