from __future__ import annotations

import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.skeletons import BLAZEPOSE_33, COCO_17, H36M_17, OPENPOSE_25, SKELETONS, flip, to_h36m


def test_h36m_is_the_published_order():
    assert H36M_17.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    assert H36M_17.left == [4, 5, 6, 11, 12, 13]
    assert H36M_17.right == [1, 2, 3, 14, 15, 16]


@pytest.mark.parametrize("name", SKELETONS)
def test_trees_reach_the_root_and_sides_mirror(name):
    s = SKELETONS[name]
    assert len(s) == int(name.split("-")[1]) and len(set(s.joints)) == len(s)
    assert sum(parent < 0 for parent in s.parents) == 1
    for joint in range(len(s)):
        steps = 0
        while joint >= 0:
            joint, steps = s.parents[joint], steps + 1
            assert steps < len(s)
    for a, b in zip(s.left, s.right, strict=True):
        pa, pb = s.parents[a], s.parents[b]
        assert pa == pb or s.mirrored[pa] == pb, (s.joints[a], s.joints[b])


def test_known_slots_of_detectors():
    assert COCO_17.joints[9] == "l_wrist" and OPENPOSE_25.joints[8] == "mid_hip"
    assert OPENPOSE_25.joints[19] == "l_big_toe" and BLAZEPOSE_33.joints[24] == "r_hip"
    # COCO to OpenPose slots as ScoreHMR writes them.
    slots = [0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11]
    assert [OPENPOSE_25.joints[i] for i in slots] == list(COCO_17.joints)


def test_coco_to_h36m_by_hand():
    points = torch.arange(34.0).reshape(17, 2)
    confidence = torch.linspace(0.2, 1.0, 17)
    house, seen = to_h36m(points, confidence, "coco-17")
    hip = (points[11] + points[12]) / 2
    neck = (points[5] + points[6]) / 2
    ears = (points[3] + points[4]) / 2
    expected = {0: hip, 1: points[12], 3: points[16], 4: points[11], 8: neck, 9: points[0], 13: points[9]}
    for joint, value in expected.items():
        torch.testing.assert_close(house[joint], value)
    torch.testing.assert_close(house[7], (hip + neck) / 2)
    torch.testing.assert_close(house[10], ears + 0.35 * (ears - neck))
    assert seen[0] == confidence[11] and seen[10] == confidence[3] and seen[16] == confidence[10]


def test_a_missing_point_takes_only_what_is_made_of_it():
    points, confidence = torch.ones(2, 25, 2), torch.ones(2, 25)
    points[0, 17], confidence[0, 17] = float("nan"), 0.0  # right ear
    house, seen = to_h36m(points, confidence, "openpose-25")
    assert seen[0].tolist() == [1.0] * 10 + [0.0] + [1.0] * 6 and (house[0, 10] == 0).all()
    others = [j for j in range(17) if j != 10]
    torch.testing.assert_close(house[0, others], torch.ones(16, 2))
    assert (seen[1] == 1).all() and house.isfinite().all()


def test_h36m_stays_itself():
    points = torch.randn(3, 17, 3, generator=torch.Generator().manual_seed(0))
    house, seen = to_h36m(points, None, "h36m-17")
    assert torch.equal(house, points) and (seen == 1).all()


def test_wrong_layouts_are_named():
    with pytest.raises(UserError, match="openpose-18.*coco-17"):
        to_h36m(torch.zeros(18, 2), None, "openpose-18")
    with pytest.raises(UserError, match="coco-17 has 17 joints.*18"):
        to_h36m(torch.zeros(18, 2), None, "coco-17")
    with pytest.raises(UserError, match="confidence"):
        to_h36m(torch.zeros(17, 2), torch.zeros(16), "coco-17")


def test_flip_swaps_sides_and_undoes_itself():
    points = torch.randn(2, 17, 2, generator=torch.Generator().manual_seed(0))
    flipped = flip(points)
    assert torch.equal(flipped[:, 1], points[:, 4] * torch.tensor([-1.0, 1.0]))
    assert torch.equal(flipped[:, 0, 0], -points[:, 0, 0])
    assert torch.equal(flip(flipped), points)
