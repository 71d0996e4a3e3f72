from __future__ import annotations

import pytest
import torch

from dd3g.gaussians import Gaussians, framing, matrix_to_quaternion, quaternion_multiply, quaternion_to_matrix


def some(*batch, n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (*batch, n)
    return Gaussians(
        torch.randn(*shape, 3, generator=g, dtype=torch.float64),
        torch.nn.functional.normalize(torch.randn(*shape, 4, generator=g, dtype=torch.float64), dim=-1),
        torch.rand(*shape, 3, generator=g, dtype=torch.float64) + 0.1,
        torch.rand(shape, generator=g, dtype=torch.float64),
        torch.rand(*shape, 3, generator=g, dtype=torch.float64),
    )


def covariance(gaussians):
    S = quaternion_to_matrix(gaussians.quats) * gaussians.scales[..., None, :]
    return S @ S.transpose(-1, -2)


def rotation(seed):
    q = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return quaternion_to_matrix(q)


def test_quaternion_by_hand():
    half = 0.5**0.5
    turn = quaternion_to_matrix(torch.tensor([half, 0.0, 0.0, half]))  # 90 degrees about z: x -> y
    assert torch.allclose(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(quaternion_to_matrix(torch.tensor([3.0, 0, 0, 0])), torch.eye(3))  # any length


@pytest.mark.parametrize("seed", range(20))
def test_quaternion_round_trip(seed):
    R = rotation(seed)
    q = matrix_to_quaternion(R)
    assert q[0] >= 0 and q.norm().item() == pytest.approx(1, abs=1e-12)
    assert torch.allclose(quaternion_to_matrix(q), R, atol=1e-12)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_round_trip(axis):
    R = -torch.eye(3, dtype=torch.float64)
    R[axis, axis] = 1  # w is 0, where naive formulas divide by it
    assert torch.allclose(quaternion_to_matrix(matrix_to_quaternion(R)), R, atol=1e-12)


def test_product_is_the_product_of_matrices():
    a, b = some(n=7).quats, some(n=7, seed=1).quats
    product = quaternion_to_matrix(quaternion_multiply(a, b))
    assert torch.allclose(product, quaternion_to_matrix(a) @ quaternion_to_matrix(b), atol=1e-12)


def test_transformed_moves_points_and_covariances():
    gaussians, R, t, s = some(2), rotation(3), torch.tensor([0.1, -2.0, 0.5]).double(), 1.7
    moved = gaussians.transformed(R, t, s)
    for b in range(2):
        for i in range(5):
            assert torch.allclose(moved.means[b, i], s * R @ gaussians.means[b, i] + t, atol=1e-12)
            wanted = s**2 * R @ covariance(gaussians)[b, i] @ R.T
            assert torch.allclose(covariance(moved)[b, i], wanted, atol=1e-12)
    assert torch.equal(moved.opacities, gaussians.opacities)
    assert torch.equal(moved.colors, gaussians.colors)
    assert torch.equal(gaussians.transformed().means, gaussians.means)


def test_pruned_keeps_what_is_visible_and_finite():
    gaussians = some(n=5)
    opacities = torch.tensor([0.5, 0.004, 0.005, 0.9, 0.9], dtype=torch.float64)
    means = gaussians.means.clone()
    means[3, 1] = float("nan")
    kept = Gaussians(means, gaussians.quats, gaussians.scales, opacities, gaussians.colors).pruned()
    assert torch.equal(kept.means, means[[0, 2, 4]]) and torch.equal(kept.colors, gaussians.colors[[0, 2, 4]])
    assert len(gaussians.select(slice(0, 0)).pruned()) == 0
    with pytest.raises(ValueError, match="index it first"):
        some(2).pruned()


def test_cat_select_index():
    a, b = some(2, n=3), some(2, n=4, seed=1)
    both = Gaussians.cat([a, b])
    assert len(both) == 7 and both.means.shape == (2, 7, 3)
    assert torch.equal(both.opacities[:, 3:], b.opacities) and torch.equal(both.quats[:, :3], a.quats)
    assert torch.equal(both.select([6, 0]).colors, both.colors[:, [6, 0]])
    assert torch.equal(both[1].scales, both.scales[1])
    solid = both.opacities > 0.5
    assert torch.equal(both.select(solid).quats, both.quats[solid])
    with pytest.raises(TypeError, match="select"):
        both[0][0]
    with pytest.raises(TypeError, match="select"):
        list(both[0])
    assert len(list(both)) == 2


def test_to_and_detach():
    gaussians = some(n=2)
    assert gaussians.to(torch.float32).quats.dtype == torch.float32
    gaussians.means.requires_grad_()
    assert not gaussians.detach().means.requires_grad


def test_shapes_are_checked():
    g = some(n=4)
    with pytest.raises(ValueError, match="quats must be"):
        Gaussians(g.means, g.quats[:3], g.scales, g.opacities, g.colors)
    wide = Gaussians(g.means, g.quats, g.scales, g.opacities, torch.rand(4, 9))
    assert wide.colors.shape == (4, 9)


def test_framing_finds_objects_that_lie_elsewhere():
    gen = torch.Generator().manual_seed(0)
    means = torch.rand(500, 3, generator=gen) - 0.5
    ones = Gaussians(
        means, torch.eye(4)[:1].expand(500, 4), torch.full((500, 3), 0.01), torch.ones(500), means
    )
    for moved in (ones, ones.transformed(translation=torch.tensor([0.2, 0.0, -0.1]))):  # as ours lie
        centre, size = framing(moved)
        assert size == 1 and not centre.any()
    far = torch.tensor([40.0, -3.0, 7.0])
    for scale in (0.01, 30.0):
        centre, size = framing(ones.transformed(scale=scale).transformed(translation=far))
        torch.testing.assert_close(centre, far, atol=0.02 * scale, rtol=0)
        assert size == pytest.approx(1.5 * scale, rel=0.1)  # half the diagonal of the cube is 0.87
    faint = Gaussians(means + 900, ones.quats, ones.scales, torch.full((500,), 0.01), means)
    assert framing(Gaussians.cat([ones, faint]))[1] == 1  # nobody sees it
    single = ones.select([0]).transformed(translation=far)
    centre, size = framing(single)
    torch.testing.assert_close(centre, single.means[0])
    assert size == pytest.approx(0.06)
