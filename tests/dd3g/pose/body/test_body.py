import math

import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.bodies import Body, default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.body.skeletons import COCO_17, H36M_17, OPENPOSE_25, SMPL_24, flip

AT_REST = torch.eye(3).expand(1, 24, 3, 3)


def draws(count, seed=0, angle=0.6):
    generator = torch.Generator().manual_seed(seed)
    rotations = axis_angle_to_matrix(angle * torch.randn(count, 24, 3, generator=generator))
    return rotations, torch.randn(count, 10, generator=generator)


def test_the_shipped_body_stands_in_a_t_pose():
    joints = dict(zip(SMPL_24.joints, default_body().joints, strict=True))
    assert torch.equal(joints["pelvis"], torch.zeros(3))
    for side, x in (("l", 1.0), ("r", -1.0)):
        arm = joints[f"{side}_wrist"] - joints[f"{side}_shoulder"]
        leg = joints[f"{side}_ankle"] - joints[f"{side}_hip"]
        assert torch.allclose(arm / arm.norm(), torch.tensor([x, 0.0, 0.0]), atol=1e-3)
        assert torch.allclose(leg / leg.norm(), torch.tensor([0.0, -1.0, 0.0]), atol=1e-3)
        assert joints[f"{side}_hip"][0] * x > 0.05  # left is +x
    assert 0.75 < -joints["l_ankle"][1] < 0.95 and 0.55 < joints["head"][1] < 0.75
    nose, neck = default_body().points(AT_REST, None, "openpose-25")[0, :2]
    assert nose[2] > neck[2] + 0.05  # faces +z


def test_growing_the_first_shape_makes_people_taller():
    heights = []
    for value in (-2.0, 0.0, 2.0):
        points = default_body().points(AT_REST, torch.eye(10)[:1] * value)
        heights.append(float(points[0, 10, 1] - points[0, 3, 1]))
    assert heights[0] < heights[1] - 0.05 < heights[2] - 0.1


@pytest.mark.parametrize("layout", ["h36m-17", "smpl-24", "openpose-25", "coco-17"])
def test_points_are_those_of_matrices_multiplied_along_the_tree(layout):
    body, (rotations, betas) = default_body(), draws(3)
    found = body.points(rotations, betas, layout)
    smpl = SMPL_24.joints.index
    for b in range(3):
        rest = body.joints + sum(betas[b, k] * body.joint_directions[k] for k in range(10))
        marks = body.marks + sum(betas[b, k] * body.mark_directions[k] for k in range(10))
        world = []
        for j, parent in enumerate(SMPL_24.parents):
            local = torch.eye(4)
            local[:3, :3] = rotations[b, j]
            local[:3, 3] = rest[j] - rest[parent] if parent >= 0 else 0
            world.append(local if parent < 0 else world[parent] @ local)
        joints = torch.stack([w[:3, 3] for w in world])
        moved = []
        for mark, j in zip(marks, body.mark_joints.tolist(), strict=True):
            moved.append(world[j][:3, :3] @ (mark - rest[j]) + world[j][:3, 3])
        moved = torch.stack(moved)
        expected = {
            "smpl-24": joints,
            "openpose-25": moved[:25],
            "coco-17": torch.stack([moved[OPENPOSE_25.joints.index(n)] for n in COCO_17.joints]),
            "h36m-17": torch.stack(
                [
                    moved[25] if n == "nose" else moved[26] if n == "head"
                    else joints[smpl({"hip": "pelvis", "spine": "spine2", "thorax": "neck"}.get(n, n))]
                    for n in H36M_17.joints
                ]
            ),
        }[layout]  # fmt: skip
        assert torch.allclose(found[b], expected, atol=1e-5)


def test_a_mirrored_person_is_the_mirror_image():
    body, (rotations, betas) = default_body(), draws(4)
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    other = mirror @ rotations[:, SMPL_24.mirrored] @ mirror
    assert torch.allclose(body.points(other, betas), flip(body.points(rotations, betas)), atol=1e-5)
    expected = body.points(rotations, betas, "openpose-25")[:, OPENPOSE_25.mirrored] @ mirror
    assert torch.allclose(body.points(other, betas, "openpose-25"), expected, atol=1e-5)


def test_gradients_of_the_kinematics():
    body = Body().double()
    body.load_state_dict({k: v for k, v in default_body().state_dict().items()})
    x = (
        0.3 * torch.randn(1, 24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ).requires_grad_()
    betas = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v, s: body.points(axis_angle_to_matrix(v), s, "h36m-17")[:, [6, 10, 13]], (x, betas)
    )


def test_what_a_joint_moves():
    bend = AT_REST.clone()
    bend[:, SMPL_24.joints.index("l_elbow")] = axis_angle_to_matrix(torch.tensor([0.0, -math.pi / 2, 0.0]))
    before, after = default_body().points(AT_REST), default_body().points(bend)
    changed = (before - after).norm(dim=-1)[0] > 1e-5
    assert [H36M_17.joints[i] for i in changed.nonzero()[:, 0]] == ["l_wrist"]
    forearm = after[0, 13] - after[0, 12]
    assert forearm[2] > 0.2 and forearm[:2].abs().max() < 1e-3  # to the front


def test_a_body_survives_its_folder(tmp_path):
    default_body().save_pretrained(tmp_path)
    again = Body.from_pretrained(tmp_path)
    rotations, betas = draws(2)
    assert torch.equal(again.points(rotations, betas), default_body().points(rotations, betas))
    with pytest.raises(UserError, match="blazepose-33"):
        again.points(rotations, betas, "blazepose-33")
    with pytest.raises(UserError, match="unknown joint layout"):
        again.points(rotations, betas, "mpii-16")
