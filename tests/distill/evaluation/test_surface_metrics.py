from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins.targets import ellipsoid, target_of

from dd3g.cameras import Cameras
from dd3g.meshes.mesh import Mesh
from distill.evaluation.geometry import (
    aligned,
    find_move,
    moved,
    surface_scores,
    towards,
    umeyama,
    visible_points,
)
from distill.evaluation.predictors import Drawing, all_white, flat_card, mesh_drawing
from distill.evaluation.targets import probe_cameras


def seen(mesh: Mesh) -> torch.Tensor:
    """Points of a mesh that the probes see."""
    probes = probe_cameras(0.6)
    shown = mesh_drawing(mesh)(replace(target_of(mesh, size=16), cameras=probes), list(range(len(probes))))
    return visible_points(shown.depth, shown.alpha > 0.5, probes)


def test_visible_points_lie_on_a_ball_and_look_outwards():
    points = seen(ellipsoid(radii=(0.4, 0.4, 0.4)))
    radius = points[:, :3].norm(dim=1)
    assert len(points) > 2000 and abs(radius.mean() - 0.4) < 0.003 and radius.std() < 0.004
    known = points[points.isfinite().all(1)]
    assert len(known) > 0.9 * len(points)
    cosine = (torch.nn.functional.normalize(known[:, :3], dim=1) * known[:, 3:]).sum(1)
    assert cosine.min() > 0.8 and torch.rad2deg(torch.acos(cosine.clamp(max=1))).mean() < 5
    # All around, and no cell twice.
    assert (points[:, :3].mean(0).abs() < 0.01).all()
    cells = ((points[:, :3] - points[:, :3].amin(0)) / (0.8 / 128)).floor()
    assert len(torch.unique(cells, dim=0)) > 0.8 * len(points)


def brute_force(a: np.ndarray, b: np.ndarray, unit: float, t: float) -> tuple[float, float, float]:
    """Chamfer, F-score and angle by all distances."""
    distances = np.linalg.norm(a[:, None, :3] - b[None, :, :3], axis=-1) * unit
    to_b, to_a = distances.min(1), distances.min(0)
    p, r = (to_b < t).mean(), (to_a < t).mean()
    angles = [
        math.degrees(math.acos(np.clip(a[i, 3:] @ b[j, 3:], -1, 1)))
        for j, i in enumerate(distances.argmin(0))
    ]
    return (to_b.mean() + to_a.mean()) / 2, 2 * p * r / (p + r), float(np.mean(angles))


def test_surface_scores_equal_their_brute_force_twin():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 6, generator=g) for n in (150, 200))
    for x in (a, b):
        x[:, 3:] = torch.nn.functional.normalize(x[:, 3:], dim=1)
    got = surface_scores(a, b, 2.5, [0.7])
    chamfer, f, angle = brute_force(a.double().numpy(), b.double().numpy(), 2.5, 0.7)
    assert got["chamfer"] == pytest.approx(chamfer) and got["f_0.7"] == pytest.approx(f)
    assert got["normals"] == pytest.approx(angle, abs=1e-4)
    same = surface_scores(b, b, 1.0, [0.1])
    assert same["chamfer"] == 0 and same["f_0.1"] == 1 and same["normals"] < 0.05
    nothing = surface_scores(a[:0], b, 1.0, [0.1])
    assert math.isnan(nothing["chamfer"]) and nothing["f_0.1"] == 0


def test_two_balls_are_as_far_apart_as_their_radii():
    small, large = seen(ellipsoid(radii=(0.3, 0.3, 0.3))), seen(ellipsoid(radii=(0.4, 0.4, 0.4)))
    got = surface_scores(small, large, 2 / 0.8, [0.2, 0.3])
    assert got["chamfer"] == pytest.approx(0.25, abs=0.01)
    assert got["f_0.2"] == 0 and got["f_0.3"] == 1 and got["normals"] < 6


def test_umeyama_finds_the_move_that_was_made():
    g = np.random.default_rng(0)
    a = g.normal(size=(50, 3))
    R = np.linalg.qr(g.normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    scale, rotation, shift = umeyama(a, 1.7 * a @ R.T + [0.1, -0.2, 0.3])
    assert scale == pytest.approx(1.7) and np.allclose(rotation, R) and np.allclose(shift, [0.1, -0.2, 0.3])


def test_icp_brings_a_turned_and_scaled_surface_home():
    box = seen(ellipsoid(radii=(0.5, 0.2, 0.3))).double()
    angle = math.radians(100)
    turn = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    turn = turn.double()
    away = torch.cat([0.7 * box[:, :3] @ turn.T + torch.tensor([0.1, 0.05, 0.0]), box[:, 3:] @ turn.T], 1)
    assert surface_scores(away, box, 1.0, [0.1])["chamfer"] > 0.07
    got = surface_scores(away, box, 1.0, [0.1], "icp")
    assert got["chamfer"] < 0.006 and got["f_0.1"] == 1 and got["normals"] < 6
    home = aligned(away.numpy(), box.numpy())
    # An ellipsoid may also come home turned by half a turn.
    assert min(np.abs(home[:, :3] * s - box[:, :3].numpy()).mean() for s in ([1, 1, 1], [-1, 1, -1])) < 0.01


# ---- alignment to the input view -------------------------------------------------------------------------


def shifted_ball(radius: float, place: tuple[float, float, float]) -> Drawing:
    mesh = ellipsoid(radii=(radius, radius, radius))
    return mesh_drawing(replace(mesh, vertices=mesh.vertices + np.float32(place)))


def test_moving_cameras_is_moving_the_object():
    target = target_of(ellipsoid(), size=32)
    scale, shift = 1.4, torch.tensor([0.1, -0.05, 0.08])
    one, other = shifted_ball(0.2, (0.0, 0.0, 0.0)), shifted_ball(0.28, tuple(shift.tolist()))
    a, b = moved(one, scale, shift)(target, [0, 5]), other(target, [0, 5])
    assert (a.alpha - b.alpha).abs().mean() < 2e-3
    inside = (a.alpha > 0.9) & (b.alpha > 0.9)
    assert (a.depth - b.depth)[inside].abs().mean() < 2e-3
    back = towards(towards(target.cameras, scale, shift), 1 / scale, -shift / scale)
    torch.testing.assert_close(back.viewmats, target.cameras.viewmats, atol=1e-5, rtol=0)


def test_scale_and_shift_are_found_from_the_input_view():
    target = target_of(ellipsoid(radii=(0.35, 0.35, 0.35)), size=64, elevation=0.0)
    move = find_move(shifted_ball(0.25, (0.1, -0.08, 0.0)), target)
    assert move.scale == pytest.approx(1.4, abs=0.02) and move.residual < 0.02
    assert move.shift.tolist() == pytest.approx([-0.14, 0.112, 0.0], abs=0.015)
    at_home = find_move(shifted_ball(0.35, (0.0, 0.0, 0.0)), target)
    assert at_home.scale == pytest.approx(1, abs=0.01) and at_home.residual < 0.01
    nothing = find_move(all_white(target), target)
    assert (nothing.scale, nothing.residual) == (1.0, 1.0)
    # The card lies on the input's own pixels: nothing to do.
    assert find_move(flat_card(target), target).residual < 0.03


def test_probes_see_all_that_is_within_reach():
    probes = probe_cameras(0.7)
    g = torch.Generator().manual_seed(0)
    points = 0.7 * torch.nn.functional.normalize(torch.randn(500, 3, generator=g), dim=1)
    places, depth = probes.project(points)
    assert places.abs().max() <= 1 and (depth > probes.near).all() and (depth < probes.far).all()
    assert isinstance(probes, Cameras) and len(probes) == 24
