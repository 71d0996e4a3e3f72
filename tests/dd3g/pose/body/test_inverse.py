"""Rotations from joints: the body takes the pose again."""

import torch

from dd3g.pose.body.bodies import body_rotations, default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.body.skeletons import H36M_17, SMPL_24

G = torch.Generator().manual_seed(6)
MOVING = [0, 6, 12, 1, 2, 4, 5, 16, 17, 18, 19]  # joints that H36M's points tell


def posed(count):
    angles = torch.zeros(count, 24, 3)
    angles[:, MOVING] = 0.7 * torch.randn(count, len(MOVING), 3, generator=G)
    rotations = axis_angle_to_matrix(angles)
    return rotations, default_body().points(rotations, torch.zeros(count, 10))


def test_a_body_takes_its_own_pose_again():
    rotations, poses = posed(20)
    found = body_rotations(poses)
    torch.testing.assert_close(
        found @ found.transpose(-1, -2), torch.eye(3).expand(20, 24, 3, 3), atol=1e-4, rtol=0
    )
    assert torch.linalg.det(found).min() > 0.99
    torch.testing.assert_close(default_body().points(found, torch.zeros(20, 10)), poses, atol=2e-3, rtol=0)


def test_known_rotations_keep_their_twist():
    rotations, poses = posed(5)
    found = body_rotations(poses, rotations)
    torch.testing.assert_close(found[:, 18], rotations[:, 18], atol=1e-3, rtol=0)
    elbow = SMPL_24.joints.index("l_elbow")
    free = body_rotations(poses)
    assert (free[:, elbow] - rotations[:, elbow]).abs().max() > 0.1


def test_bones_point_where_the_poses_do_whatever_their_lengths():
    _, poses = posed(4)
    longer = poses.clone()
    longer[:, [3, 13]] += 0.1 * (poses[:, [3, 13]] - poses[:, [2, 12]])  # an ankle and a wrist
    found = default_body().points(body_rotations(longer), torch.zeros(4, 10))
    for joint in (3, 13):
        parent = H36M_17.parents[joint]
        a, b = (x[:, joint] - x[:, parent] for x in (found, longer))
        cosine = torch.nn.functional.cosine_similarity(a, b)
        assert cosine.min() > 0.9999


def test_a_limb_that_points_the_other_way_turns_by_half():
    pose = default_body().points(torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10)).clone()
    pose[:, 13] = pose[:, 12] - (pose[:, 13] - pose[:, 12])  # the forearm folded back exactly
    found = default_body().points(body_rotations(pose), torch.zeros(1, 10))
    torch.testing.assert_close(found[:, 13], pose[:, 13], atol=1e-3, rtol=0)
