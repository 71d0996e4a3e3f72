from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny_objects import AZIMUTHS, ELEVATIONS, QUADS, ellipsoid, write_quadruples, write_renders

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.training import generator_for
from distill.draws import (
    MixedDraws,
    QuadrupleDraws,
    RenderDraws,
    background,
    check_fit,
    mirrored,
    recolouring,
)
from distill.quadruples import Quadruples
from distill.renders import RenderedObjects

SIZE, NOISE = 32, (4, 64, 8, 8)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return RenderedObjects(write_renders(tmp_path_factory.mktemp("renders")), cached=True)


@pytest.fixture(scope="module")
def quadruples(tmp_path_factory):
    return Quadruples(write_quadruples(tmp_path_factory.mktemp("quadruples")))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cameras_of(sample, kind):
    return Cameras(sample[f"{kind}_viewmats"], sample[f"{kind}_Ks"], SIZE, SIZE)


def test_a_draw_depends_on_seed_and_index_only(objects):
    draws, again = RenderDraws(objects, 3, NOISE), RenderDraws(objects, 3, NOISE)
    forwards = [draws.draw(i) for i in range(6)]
    torch.manual_seed(99)
    for i in reversed(range(6)):
        assert equal(again.draw(i), forwards[i])
    assert not equal(forwards[0], forwards[1])
    assert not equal(RenderDraws(objects, 4, NOISE).draw(0), forwards[0])


def test_streams_of_neighbours_differ():
    seen = {float(torch.rand(1, generator=generator_for(s, i))) for s in range(4) for i in range(200)}
    assert len(seen) == 800


def test_shapes(objects):
    sample = RenderDraws(objects, 0, NOISE, targets=3).draw(0)
    shapes = {k: tuple(v.shape) for k, v in sample.items()}
    assert shapes == {
        "image": (4, 32, 32), "rig_viewmats": (4, 4, 4), "rig_Ks": (4, 3, 3), "views": (4, 4, 32, 32),
        "depth": (4, 32, 32), "has_depth": (), "noise": NOISE, "target_viewmats": (3, 4, 4),
        "target_Ks": (3, 3, 3), "targets": (3, 4, 32, 32), "background": (3,), "uniform": (4,), "index": (),
    }  # fmt: skip
    assert all(v.dtype == torch.float32 for k, v in sample.items() if k != "index")


def test_the_input_is_at_azimuth_0_and_leads(objects):
    draws = RenderDraws(objects, 0, NOISE, free_fraction=0.5)
    levels = Counter()
    for i in range(40):
        sample = draws.draw(i)
        rig, targets = cameras_of(sample, "rig"), cameras_of(sample, "target")
        wanted = torch.deg2rad(torch.tensor([0.0, 90, 180, 270]))
        turned = rig.azimuths - wanted
        assert torch.allclose(turned.cos(), torch.ones(4), atol=1e-6)
        assert torch.equal(sample["views"][0], sample["image"])
        assert torch.equal(sample["targets"][0], sample["image"])
        assert torch.allclose(targets.viewmats[0], rig.viewmats[0], atol=1e-6)
        elevation = torch.rad2deg(torch.asin(rig.positions[:, 1] / 1.5))
        assert torch.allclose(elevation, elevation[:1].expand(4), atol=1e-2)
        levels[round(float(elevation[0]))] += 1
    assert set(levels) == {10, 30} and min(levels.values()) > 8


def seen_again(cameras, count):
    """The objects of `write_renders`, as an input at each azimuth and its mirror image would show them."""
    for o in range(count):
        g = torch.Generator().manual_seed(o)
        axes, colour = 0.25 + 0.3 * torch.rand(3, generator=g), torch.rand(3, generator=g)
        for azimuth in AZIMUTHS[:12]:  # the sample's world is turned by that of the input
            for flip in (False, True):
                world = mirrored(cameras) if flip else cameras
                rgba, depth = ellipsoid(world.turned(torch.deg2rad(torch.tensor(azimuth))), axes, colour)
                yield (rgba.flip(-1), depth.flip(-1), flip) if flip else (rgba, depth, flip)


def test_pictures_belong_to_their_cameras(objects):
    draws = RenderDraws(objects, 1, NOISE, free_fraction=0.3, turned_fraction=0.4, recolour=0)
    flips = []
    for i in range(8):
        sample = draws.draw(i)
        for kind, pictures in (("rig", "views"), ("target", "targets")):
            found = sample[pictures]
            shown = found[:, :3].sort(1).values * found[:, 3:]  # recolouring may permute the channels
            best = float("inf")
            for rgba, depth, flip in seen_again(cameras_of(sample, kind), len(objects)):
                error = float((rgba[:, :3].sort(1).values * rgba[:, 3:] - shown).abs().mean())
                if error < best:
                    best, deep, flipped = error, depth, flip
            assert best < 0.003
            if kind == "rig":
                flips.append(flipped)
                both = (deep > 0) & (sample["depth"] > 0)
                assert both.any() and ((deep - sample["depth"]).abs() * both).max() < 0.01
    assert 0 < sum(flips) < 8


def test_every_view_of_a_quad_serves_as_input(objects):
    draws = RenderDraws(objects, 0, (1, 1, 1, 1), recolour=0, free_fraction=0.2)
    seen = set()
    for i in range(120):
        image = draws.draw(i)["image"].sort(0).values
        for o in range(len(objects)):
            views = (objects[o].rgba.float() / 255).sort(1).values
            for v in range(len(views)):
                if torch.equal(views[v], image) or torch.equal(views[v].flip(-1), image):
                    seen.add(v)
    assert seen == set(range(12))


def test_mirrored_cameras_see_the_mirrored_world():
    cameras = Cameras.orbit([20, 130], [10, -30], 16)
    point = torch.tensor([0.2, 0.3, -0.1, 1.0])
    for v in range(2):
        pixel = cameras.Ks[v] @ (cameras.viewmats[v] @ point)[:3]
        other = mirrored(cameras)
        flipped = other.Ks[v] @ (other.viewmats[v] @ (point * torch.tensor([-1.0, 1, 1, 1])))[:3]
        assert torch.allclose(flipped[0] / flipped[2], 16 - pixel[0] / pixel[2], atol=1e-4)
        assert torch.allclose(flipped[1] / flipped[2], pixel[1] / pixel[2], atol=1e-4)
        assert torch.linalg.det(other.viewmats[v, :3, :3]).item() == pytest.approx(1, abs=1e-5)


def test_turned_rigs_stand_at_other_azimuths(objects):
    draws = RenderDraws(objects, 0, NOISE, turned_fraction=1.0)
    offsets = set()
    for i in range(40):
        sample = draws.draw(i)
        azimuths = torch.rad2deg(cameras_of(sample, "rig").azimuths)
        steps = (azimuths - azimuths[0]).remainder(360)
        assert {round(float(s)) % 360 for s in steps} == {0, 90, 180, 270}
        offsets.add(round(float(azimuths[0])) % 90)
    assert {0, 30, 60} <= offsets


def test_recolouring_leaves_alpha_and_changes_all_views_alike():
    rgba = torch.rand(5, 4, 6, 6)
    permuted = 0
    for seed in range(20):
        apply = recolouring(0.15, torch.Generator().manual_seed(seed))
        changed = apply(rgba)
        assert torch.equal(changed[:, 3], rgba[:, 3]) and changed.min() >= 0 and changed.max() <= 1
        assert torch.equal(apply(rgba[2]), changed[2])
        low = rgba * torch.tensor([0.5, 0.5, 0.5, 1])[:, None, None]  # nothing clips
        ratio = apply(low)[:, :3, None] / low[:, None, :3]  # (5, new, old, 6, 6)
        spread = ratio.amax((0, 3, 4)) - ratio.amin((0, 3, 4))
        order = spread.argmin(1)
        assert sorted(order.tolist()) == [0, 1, 2]
        gains = ratio[0, torch.arange(3), order, 0, 0]
        assert ((gains - 1).abs() <= 0.15 + 1e-4).all()
        permuted += order.tolist() != [0, 1, 2]
    assert 3 < permuted < 17
    same = recolouring(0.0, torch.Generator().manual_seed(3))(rgba)
    assert torch.allclose(same.sort(1).values.sum(1), rgba.sort(1).values.sum(1), atol=1e-5)


def test_styles_are_drawn_by_their_shares(objects):
    draws = RenderDraws(objects, 0, (1, 1, 1, 1), scan_fraction=0.8, shape_fraction=0.2, targets=1)
    assert [(round(s, 2), p) for s, p in draws.pools] == [(0.8, [0, 2])]  # "game" has no share left
    with pytest.raises(UserError, match="shares of 1"):
        RenderDraws(objects, 0, NOISE, scan_fraction=0.9, shape_fraction=0.2)
    with pytest.raises(UserError, match="style with a share above 0"):
        RenderDraws(objects, 0, NOISE, scan_fraction=0, shape_fraction=1)


def test_quadruples_come_as_the_teacher_gave_them(quadruples):
    draws = QuadrupleDraws(quadruples, 5, targets=3)
    seen = set()
    for i in range(12):
        sample = draws.draw(i)
        matches = [q for q in quadruples if torch.equal(q.noise, sample["noise"])]
        assert len(matches) == 1
        q = matches[0]
        seen.add(q.meta["key"])
        assert torch.equal(sample["image"], q.input) and torch.equal(sample["views"][0], q.input)
        assert torch.equal(sample["views"][1:], q.outputs[1:]) and len(sample["targets"]) == 3
        assert torch.equal(sample["rig_viewmats"], q.cameras.viewmats)
        assert sample["has_depth"] == 0 and sample["depth"].shape == (4, 32, 32)
    assert len(seen) == 3


def test_the_pictures_own_pixels_replace_the_teachers_copy(quadruples):
    draws = QuadrupleDraws([replace(q, outputs=1 - q.outputs) for q in quadruples], 0)
    sample = draws.draw(0)
    for name in ("views", "targets"):
        assert torch.equal(sample[name][0], sample["image"])
        assert not torch.equal(sample[name][1], sample["image"])


@pytest.mark.parametrize("targets", [2, 4, 6, 20])  # the teacher has 4 views, a rendered object 14
def test_renders_and_quadruples_collate(objects, quadruples, targets):
    a = RenderDraws(objects, 0, NOISE, targets=targets).draw(0)
    b = QuadrupleDraws(quadruples, 0, targets=targets).draw(0)
    assert len(a["targets"]) == targets and torch.equal(b["targets"][4:], b["targets"][: max(0, targets - 4)])
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}


def test_mixed_schedule(objects, quadruples):
    renders, late = RenderDraws(objects, 0, NOISE), QuadrupleDraws(quadruples, 0)
    mixed = MixedDraws(renders, late, 50, 0.5, 0)
    kinds = [bool(mixed.draw(i)["has_depth"] == 0) for i in range(150)]
    assert not any(kinds[:50]) and 30 < sum(kinds[50:]) < 70
    assert all(MixedDraws(renders, late, 3, 1.0, 0).draw(i)["has_depth"] == 0 for i in range(3, 8))
    first = kinds.index(True)
    assert equal(mixed.draw(first), late.draw(first)) and equal(mixed.draw(2), renders.draw(2))


def test_backgrounds_are_white_half_of_the_time():
    drawn = [background(torch.Generator().manual_seed(i)) for i in range(200)]
    white = sum(bool((b == 1).all()) for b in drawn)
    assert 70 < white < 130 and all(((b >= 0) & (b <= 1)).all() for b in drawn)


def test_data_of_another_size_is_refused(objects):
    draws = RenderDraws(objects, 0, NOISE)
    check_fit(draws, SIZE, list(NOISE))
    with pytest.raises(UserError, match="4 pictures of 32 pixels .* the model takes 4 of 64"):
        check_fit(draws, 64, NOISE)
    three = (3, *NOISE[1:])
    with pytest.raises(UserError, match="4 pictures of 32 pixels .* the model takes 3 of 32"):
        check_fit(RenderDraws(objects, 0, three), SIZE, three)


def test_the_tiny_objects_have_what_renders_have(objects):
    assert objects[0].quads == QUADS and len(objects[0].cameras) == len(ELEVATIONS) == len(AZIMUTHS)
