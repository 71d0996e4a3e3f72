"""Anny on our joints; what needs its package is skipped without it, and where its first start is to come."""

import os
import sys
from pathlib import Path

import pytest
import torch

from dd3g.errors import UserError
from dd3g.pose.body.anny_body import AnnyBody, straighten
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import axis_angle_to_matrix
from dd3g.pose.body.skeletons import SMPL_24, skeleton

AT_REST = torch.eye(3).expand(1, 24, 3, 3)
LAYOUTS = ("smpl-24", "h36m-17", "openpose-25", "coco-17")
index = SMPL_24.joints.index


@pytest.fixture(scope="module")
def anny():
    pytest.importorskip("anny", reason="needs the extra 'body'")
    if not Path(os.getenv("ANNY_CACHE_DIR", Path.home() / ".cache" / "anny")).is_dir():
        pytest.skip("Anny was never started: its first start takes a minute and 790 MB")
    return AnnyBody()


def draws(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotations = axis_angle_to_matrix(0.6 * torch.randn(count, 24, 3, generator=generator))
    return rotations, torch.randn(count, 10, generator=generator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_rest_it_stands_like_our_own_body(anny, layout):
    found = anny.points(AT_REST, torch.zeros(1, 10), layout)
    expected = default_body().points(AT_REST, None, layout)
    assert found.shape == (1, len(skeleton(layout)), 3)
    assert (found - expected).norm(dim=-1).max() < 0.04


def test_joints_are_those_of_matrices_multiplied_along_the_tree(anny):
    rotations, betas = draws(3)
    rest = anny.points(AT_REST.expand(3, 24, 3, 3), betas, "smpl-24")
    found = anny.points(rotations, betas, "smpl-24")
    for b in range(3):
        world = []
        for j, parent in enumerate(SMPL_24.parents):
            local = torch.eye(4)
            local[:3, :3] = rotations[b, j]
            local[:3, 3] = rest[b, j] - rest[b, parent] if parent >= 0 else 0
            world.append(local if parent < 0 else world[parent] @ local)
        assert torch.allclose(found[b], torch.stack([w[:3, 3] for w in world]), atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_of_detectors_go_where_those_of_our_own_body_go(anny, layout):
    rotations, _ = draws(8, seed=1)
    found = anny.points(rotations, torch.zeros(8, 10), layout)
    expected = default_body().points(rotations, None, layout)
    # Its skin stretches around hips and shoulders, where ours has stiff points.
    assert (found - expected).norm(dim=-1).mean() < 0.04
    assert (found - expected).norm(dim=-1).max() < 0.2


def test_the_head_turns_nose_and_crown(anny):
    turn = AT_REST.clone()
    turn[:, index("head")] = axis_angle_to_matrix(torch.tensor([0.0, torch.pi / 2, 0.0]))
    before, after = (anny.points(r, torch.zeros(1, 10), "openpose-25")[0] for r in (AT_REST, turn))
    nose, neck = after[:2]
    assert nose[0] > neck[0] + 0.08 and before[0, 2] > before[1, 2] + 0.08  # from +z to +x, the left
    nod = AT_REST.clone()
    nod[:, index("head")] = axis_angle_to_matrix(torch.tensor([torch.pi / 2, 0.0, 0.0]))
    head, crown = (
        anny.points(nod, torch.zeros(1, 10), layout)[0, i] for layout, i in (("smpl-24", 15), ("h36m-17", 10))
    )
    assert torch.allclose(crown - head, torch.tensor([0.0, 0.0, 0.15]), atol=1e-4)


def test_shapes_are_phenotypes(anny):
    def height(beta, k):
        betas = torch.zeros(1, 10)
        betas[0, k] = beta
        points = anny.points(AT_REST, betas)[0]
        return float(points[10, 1] - points[3, 1])

    assert anny.phenotypes(torch.zeros(1, 10))[0].tolist() == [0.5, 0.75, 0.5, 0.5, 0.5, 0.5]
    tall = anny.model.phenotype_labels.index("height")
    assert height(-1.0, tall) < height(0.0, tall) - 0.05 < height(1.0, tall) - 0.1
    assert height(2.0, 9) == height(0.0, 9)


def test_gradients_reach_rotations_and_shapes(anny):
    rotations, betas = draws(2)
    rotations.requires_grad_()
    betas.requires_grad_()
    anny.points(rotations, betas)[:, 13].sum().backward()
    moved = rotations.grad.abs().sum((0, 2, 3)) > 0
    assert moved[index("l_shoulder")] and not moved[index("r_shoulder")]
    assert (betas.grad[:, :6].abs().sum(0) > 0).all() and rotations.grad.isfinite().all()


def test_straight_limbs():
    generator = torch.Generator().manual_seed(0)
    joints = default_body().joints + 0.05 * torch.randn(5, 24, 3, generator=generator)
    straight, turns = straighten(joints)
    for start, end, direction in (
        ("l_hip", "l_knee", (0, -1, 0)), ("r_knee", "r_ankle", (0, -1, 0)),
        ("l_shoulder", "l_elbow", (1, 0, 0)), ("r_elbow", "r_wrist", (-1, 0, 0)),
        ("r_wrist", "r_hand", (-1, 0, 0)),
    ):  # fmt: skip
        bone = straight[:, index(end)] - straight[:, index(start)]
        length = (joints[:, index(end)] - joints[:, index(start)]).norm(dim=-1)
        assert torch.allclose(bone, length[:, None] * torch.tensor(direction), atol=1e-5)
    # Each bone is turned with the joint that it starts from.
    for joint, parent in list(enumerate(SMPL_24.parents))[1:]:
        bone = joints[:, joint] - joints[:, parent]
        turned = (turns[:, parent] @ bone[..., None])[..., 0]
        assert torch.allclose(straight[:, joint] - straight[:, parent], turned, atol=1e-5)
    assert torch.equal(turns[:, index("head")], torch.eye(3).expand(5, 3, 3))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "anny", None)
    with pytest.raises(UserError, match=r"dd3g\[body\]"):
        AnnyBody()
