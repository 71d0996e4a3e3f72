"""Motion in .bvh files, by hand and from other exporters."""

from __future__ import annotations

import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.data.bvh import parse_bvh, positions, read_bvh
from dd3g.pose.export.skeletons import save_bvh

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
    body = default_body().points(rotations, layout="smpl-24")
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
    with pytest.raises(UserError, match="not a complete BVH"):
        read_bvh(path)
    path.write_text("solid cube")
    with pytest.raises(UserError, match="no BVH file"):
        read_bvh(path)
    for old, new in (("Xrotation", "Wrotation"), ("Frame Time: ", "Frame Time: -")):
        assert old in bvh(path, [0.0] * COLUMNS).read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(UserError, match="not a complete BVH.*(channel 'wrotation'|frame time -)"):
            read_bvh(path)
    path = bvh(path, [0.0] * COLUMNS, BVH.replace("LeftHand", "LeftPaw"))
    with pytest.raises(UserError, match="no joint for 'l_wrist'.*LeftPaw"):
        read_bvh(path)
