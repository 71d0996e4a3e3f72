"""Samples of shapes against the pictures they come with."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from stand_ins.tiny_objects import AZIMUTHS, ELEVATIONS, ellipsoid_volume, write_cube, write_renders

from data_gen.meshes.objects import Options
from data_gen.render import render_folder
from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.pepd.frustum import frustum_places, slices
from dd3g.pepd.occupancy import Shape
from dd3g.pepd.surface import HALF, voxel_centres
from dd3g.training import generator_for
from distill.samples.renders import RenderedObjects
from distill.shape.objective import iou, ray_logits
from distill.shape.samples import (
    ShapeDataset,
    ShapeSample,
    check_volumes,
    is_square,
    matter_in_slices,
    occupancy_along,
    rank,
    shape_sample,
)

SIZE, BINS = 32, 24


class Alone(list):
    """Rendered objects that a test made."""

    def meta(self, index):
        return self[index].meta


def equal(a, b):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def silhouette(batch, steps=96):
    """What other views would see of the true matter."""
    return ray_logits(10 * batch.occupancy.float() - 5, batch, torch.full_like(batch.depth, 0.5), steps) > 0


def test_a_sample_depends_on_seed_and_index_only(objects):
    dataset, again = ShapeDataset(objects, 3, SIZE, BINS), ShapeDataset(objects, 3, SIZE, BINS)
    forwards = [dataset[i] for i in range(4)]
    torch.manual_seed(99)
    assert all(equal(again[i], forwards[i]) for i in reversed(range(4)))
    assert not equal(forwards[0], forwards[1])
    assert not equal(ShapeDataset(objects, 4, SIZE, BINS)[0], forwards[0])


def test_occupancy_is_the_volume_at_the_slices(objects):
    """By hand, voxel by voxel: between two voxels' centres the share lies between theirs."""
    item = objects[0]
    camera = item.cameras[5].resized(8)
    found = occupancy_along(item.volume, 0.6, camera, slices(6), torch.ones(8, 8, dtype=torch.bool))
    origins, directions = camera.rays()
    for d, y, x in ((1, 3, 4), (2, 4, 4), (3, 2, 5), (2, 1, 1), (3, 4, 2)):
        p = (origins[0, 0] + slices(6)[d] * directions[y, x] + 0.6) / 1.2 * 64 - 0.5
        low, share = p.floor().long().tolist(), (p - p.floor()).tolist()
        total = 0.0
        for corner in range(8):
            bits = [corner >> k & 1 for k in range(3)]
            weight = math.prod(s if b else 1 - s for s, b in zip(share, bits, strict=True))
            place = [i + b for i, b in zip(low, bits, strict=True)]
            if all(0 <= i < 64 for i in place):
                total += weight * float(item.volume[tuple(place)])
        assert float(found[d, y, x]) == pytest.approx(total, abs=1e-4)
    points = origins[0, 0] + slices(6)[:, None, None, None] * directions
    twin = F.grid_sample(item.volume[None, None].float(), (points / 0.6).flip(-1)[None], align_corners=False)
    assert (found - twin[0, 0]).abs().max() < 1e-5
    assert 0 < found.mean() < 1
    shown = item.rgba[5, 3, ::4, ::4] > 0
    assert torch.equal(occupancy_along(item.volume, 0.6, camera, slices(6), shown), found * shown)


def test_a_wall_between_two_slices_is_in_one_of_them():
    """Walls of one voxel at every distance across the rays; what the slices meet anyhow stays as it is."""
    camera = Cameras.orbit([0.0], [0.0], 16)[0]
    shown = torch.ones(16, 16, dtype=torch.bool)
    missed = 0
    for k in range(40, 60):
        volume = torch.zeros(128, 128, 128, dtype=torch.bool)
        volume[:, :, k] = True  # the camera looks along z
        plain = occupancy_along(volume, 0.6, camera, slices(48), shown)[:, 4:12, 4:12]
        found = matter_in_slices(volume, 0.6, camera, 48, shown)[:, 4:12, 4:12]
        missed += int((plain.amax(0) < 0.5).sum())
        assert (found.amax(0) >= 0.5).all() and ((found >= 0.5).sum(0) == 1).all()
        met = plain.amax(0) >= 0.5
        assert torch.equal(found[:, met], plain[:, met])
    assert missed > 20 * 64 / 2
    ball = torch.linspace(-1, 1, 128).square()
    volume = ball[:, None, None] + ball[:, None] + ball < 0.5
    plain = occupancy_along(volume, 0.6, camera, slices(48), shown)
    found = matter_in_slices(volume, 0.6, camera, 48, shown)
    assert ((found != plain).sum(0) <= 1).all() and (found != plain).float().mean() < 0.01


@pytest.mark.parametrize(("mirror", "stretch"), [(False, 0.0), (True, 0.0), (True, 0.5)])
@pytest.mark.parametrize("which", ["objects", "cubes"])
def test_matter_lies_along_a_ray_where_the_picture_shows_it(which, mirror, stretch, request):
    items = request.getfixturevalue(which)
    for k in range(6):
        item = items[k % len(items)]
        sample = shape_sample(item, generator_for(4, k), SIZE, 96, 8, 0.0, mirror, stretch)
        found, true = sample.occupancy.amax(0) > 0.5, sample.image[3] > 0.5
        assert float(iou(found[None], true[None])) > 0.93


@pytest.mark.parametrize(("mirror", "stretch"), [(False, 0.0), (True, 0.0), (True, 0.5)])
@pytest.mark.parametrize("which", ["objects", "cubes"])
def test_the_true_volume_has_the_masks_of_other_views(which, mirror, stretch, request):
    items = request.getfixturevalue(which)
    for k in range(6):
        item = items[k % len(items)]
        sample = shape_sample(item, generator_for(1, k), SIZE, 96, 2000, 0.0, mirror, stretch)
        batch = ShapeSample.collate([sample])
        assert float(iou(silhouette(batch), batch.rgba[..., 3] > 0.5)) > 0.9


def test_rays_come_from_several_other_views(objects):
    item, first = objects[0], set()
    for k in range(8):
        sample = shape_sample(item, generator_for(9, k), SIZE, BINS, 200)
        elevation = round(math.degrees(float(sample.elevation)))
        stands = [v for v, e in enumerate(item.meta["elevation"]) if round(e) == elevation]
        found = sample.origins.unique(dim=0)
        assert len(found) == 4
        # One of the views at this elevation is the input, and from it the others stand where the rays start.
        possible = []
        for v in stands:
            around = item.cameras.turned(-math.radians(item.meta["azimuth"][v])).positions
            distances = torch.cdist(found, around)
            if distances.amin(1).max() < 1e-5:
                possible.append((v, set(distances.argmin(1).tolist())))
        assert any(v not in others and len(others) == 4 for v, others in possible)
        first |= {v for v, _ in possible}
    assert len(first) > 2


def test_an_object_of_three_views_has_two_others(objects):
    item = objects[0]
    meta = item.meta | {k: item.meta[k][:3] for k in ("azimuth", "elevation")}
    few = replace(item, rgba=item.rgba[:3], depth=item.depth[:3], cameras=item.cameras[:3], meta=meta)
    assert len(shape_sample(few, generator_for(9, 0), SIZE, BINS, 200).origins.unique(dim=0)) == 2


def test_stretched_objects_stay_in_the_picture_and_keep_their_colours(objects):
    widths = set()
    for k in range(12):
        plain = shape_sample(objects[0], generator_for(5, k), SIZE, 8, 4)
        wide = shape_sample(objects[0], generator_for(5, k), SIZE, 8, 4, stretch=0.7)
        extents = [int((s.image[3] > 0.5).any(0).sum()) for s in (plain, wide)]
        widths.add(round(extents[1] / extents[0], 1))
        assert float(wide.image[3, :, [0, -1]].max()) == 0
        means = [(s.image[:3] * s.image[3:]).sum((1, 2)) / s.image[3].sum() for s in (plain, wide)]
        torch.testing.assert_close(means[1], means[0], atol=0.03, rtol=0)
    assert min(widths) < 0.75 and max(widths) > 1.2 and len(widths) > 4


def test_matter_begins_at_the_depth_of_other_views(objects):
    batch = ShapeSample.collate([shape_sample(objects[1], generator_for(2, 0), SIZE, 96, 500, mirror=True)])
    seen = batch.depth > 0
    for shift, expected in ((0.06, True), (-0.06, False)):
        points = batch.origins + (batch.depth + shift)[..., None] * batch.directions
        places = frustum_places(points, batch.elevation)[:, None, None]
        matter = F.grid_sample(batch.occupancy[:, None].float(), places, align_corners=False)[0, 0, 0] > 0.5
        assert (matter[seen] == expected).float().mean() > 0.8


def test_the_field_of_the_true_occupancy_is_the_object(objects):
    """Along the rays and back onto the grid of the world, which is the volume's own here."""
    item = objects[2]
    camera = item.cameras[[9]]
    logits = 20 * occupancy_along(item.volume, HALF, camera[0], slices(96), item.rgba[9, 3] > 0) - 10
    elevation = torch.deg2rad(torch.tensor(item.meta["elevation"][9:10]))
    shape = Shape(logits[None], torch.zeros(1, 4, 1, 1, 1), torch.zeros(1, 4, 8, 8), elevation)
    ahead = item.cameras[[9]].turned(-math.radians(item.meta["azimuth"][9]))
    turn = (
        ahead.viewmats[0, :3, :3].T @ camera.viewmats[0, :3, :3]
    )  # of the world, so that it is at azimuth 0
    field = shape.occupancy(voxel_centres(64) @ turn.T).view(64, 64, 64)
    assert float(iou((field > 0)[None], item.volume[None])) > 0.93


def test_inputs_are_taken_from_usual_elevations(objects):
    item = replace(objects[0], meta=objects[0].meta | {"elevation": [60.0] * 12 + [-5.0, 25.0]})
    seen = {
        round(math.degrees(float(shape_sample(item, generator_for(0, k), SIZE, BINS, 4).elevation)))
        for k in range(20)
    }
    assert seen == {-5, 25}
    high = replace(item, meta=item.meta | {"elevation": [60.0] * 14})
    with pytest.raises(UserError, match="one of them from -10 to 40 degrees"):
        shape_sample(high, generator_for(0, 0), SIZE, BINS, 4)
    assert len(AZIMUTHS) == len(ELEVATIONS) == 14


def test_colours_change_alike_in_all_views(objects):
    plain = shape_sample(objects[0], generator_for(7, 0), SIZE, BINS, 400)
    tinted = shape_sample(objects[0], generator_for(7, 0), SIZE, BINS, 400, recolour=0.15)
    assert torch.equal(plain.occupancy, tinted.occupancy) and torch.equal(plain.depth, tinted.depth)
    order = [
        next(k for k in range(3) if torch.allclose(tinted.image[c], g * plain.image[k], atol=1e-4))
        for c, g in enumerate(_gains(plain, tinted))
    ]
    assert sorted(order) == [0, 1, 2]
    for c, (k, gain) in enumerate(zip(order, _gains(plain, tinted), strict=True)):
        torch.testing.assert_close(tinted.rgba[:, c], gain * plain.rgba[:, k], atol=1e-4, rtol=0)


def _gains(plain, tinted):
    """Factor of each channel of the tinted picture over the channel of the plain one that it came from."""
    gains = []
    for c in range(3):
        ratios = [tinted.image[c].max() / plain.image[k].max() for k in range(3)]
        errors = [(tinted.image[c] - r * plain.image[k]).abs().max() for k, r in enumerate(ratios)]
        gains.append(ratios[min(range(3), key=errors.__getitem__)])
    return gains


def test_larger_renders_serve_a_smaller_network(objects):
    sample = ShapeDataset(objects, 0, 16, BINS)[0]
    assert sample.image.shape == (4, 16, 16) and sample.occupancy.shape == (BINS, 16, 16)
    check_volumes(objects, SIZE)
    with pytest.raises(UserError, match="object0 has 32 pixels per side, but the network takes 64"):
        check_volumes(objects, 64)


def test_objects_without_volumes_are_refused(tmp_path):
    plain = RenderedObjects(write_renders(tmp_path))
    with pytest.raises(UserError, match="object0 has no volume: render it again with --volumes"):
        check_volumes(plain, SIZE)


def test_only_members_are_drawn(objects):
    dataset = ShapeDataset(objects, 0, SIZE, BINS, members=[1], recolour=0)
    masks = objects[1].rgba[:, 3].float() / 255
    for i in range(5):
        mask = dataset[i].image[3]
        assert any(torch.equal(mask, m) or torch.equal(mask.flip(-1), m) for m in masks)


def test_half_of_the_samples_are_stretched(objects):
    dataset = ShapeDataset(objects, 0, SIZE, BINS, members=[1], recolour=0, stretch=0.5)
    masks = objects[1].rgba[:, 3].float() / 255
    masks = torch.cat([masks, masks.flip(-1)])
    as_drawn = sum((masks == dataset[i].image[3]).all((1, 2)).any() for i in range(60))
    assert 18 < as_drawn < 42


def test_some_samples_see_their_object_squarely(objects):
    """By the front, where it is known; each view is told from the others by its mask."""
    first = objects[0]
    rgba = first.rgba.clone()
    for v in range(len(AZIMUTHS)):
        rgba[v, 3, 0, v] = 255  # opposite views of an ellipsoid have one mask
    facing = {v for v, a in enumerate(AZIMUTHS) if min((a - 33) % 90, (33 - a) % 90) <= 10}
    assert facing == {4, 5, 6, 7} and len(AZIMUTHS) == 14

    def drawn(square_on, **meta):
        item = replace(first, rgba=rgba, meta=first.meta | meta)
        dataset = ShapeDataset(Alone([item]), 0, SIZE, 8, pixels=4, recolour=0, square_on=square_on)
        rows = [dataset[i].image[3, 0] for i in range(80)]
        return [int((row + row.flip(0))[: SIZE // 2].argmax()) for row in rows]  # half are mirrored

    assert set(drawn(1.0, front=33.0)) == facing
    for views in (drawn(0.0, front=33.0), drawn(1.0, front=None), drawn(1.0, variant=1)):
        assert set(views) == set(range(14))
    assert 40 < sum(v in facing for v in drawn(0.5, front=33.0)) < 64  # half, and 4 of 14 of the others
    assert set(drawn(1.0)) == {v for v, a in enumerate(AZIMUTHS) if min(a % 90, -a % 90) <= 10}


def test_views_of_a_turned_mesh_know_its_front(tmp_path):
    write_cube(tmp_path / "meshes/cube/model.glb")
    options = Options(size=8, supersample=1, quads=0, free_quads=0, square_quads=2, novel=0)
    render_folder(tmp_path / "meshes", tmp_path / "out", options)
    plain, turned = (item.meta for item in RenderedObjects(tmp_path / "out"))
    assert plain["front"] == 0 and 10 < turned["front"] % 90 < 80
    assert all(is_square(meta, v) for meta in (plain, turned) for v in range(8))


def test_whole_clusters_are_held_out():
    metas = [{"cluster": str(c), "id": f"{c}-{k}"} for c in range(400) for k in range(2)]
    held = [rank(m) < 0.1 for m in metas]
    assert held[::2] == held[1::2] and 0.06 < sum(held) / len(held) < 0.14
    more = [rank(m) < 0.2 for m in metas]
    assert all(b for a, b in zip(held, more, strict=True) if a)
    assert not any(rank(m) < 0 for m in metas) and all(rank(m) < 1 for m in metas)
    alone = {rank({"cluster": "", "id": f"thing{k}"}) < 0.5 for k in range(20)}
    assert alone == {True, False}  # by their own names


def test_the_written_volume_is_the_ellipsoids(objects):
    g = torch.Generator().manual_seed(0)
    assert torch.equal(objects[0].volume, ellipsoid_volume(0.25 + 0.3 * torch.rand(3, generator=g)))
    assert json.dumps(objects[0].meta["volume"]) == '{"resolution": 64, "half": 0.6}'
