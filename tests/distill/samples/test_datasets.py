from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from stand_ins.tiny_objects import AZIMUTHS, ELEVATIONS, QUADS, ellipsoid, write_quadruples, write_renders

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io import shards
from dd3g.training import generator_for
from dd3g.training.data import SPARE
from distill.quadruples import Quadruples
from distill.samples.datasets import MixedDataset, QuadrupleDataset, check_fit
from distill.samples.render_samples import RenderDataset, Sample, background, mirrored, recolouring
from distill.samples.renders import RenderedObjects
from distill.samples.unpacked import UnpackedRenders
from distill.shape.carving import CarvedQuadruples, Together
from distill.shape.samples import ShapeDataset

SIZE, NOISE = 32, (4, 64, 8, 8)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return RenderedObjects(write_renders(tmp_path_factory.mktemp("renders")), cached=True)


@pytest.fixture(scope="module")
def quadruples(tmp_path_factory):
    return Quadruples(write_quadruples(tmp_path_factory.mktemp("quadruples")))


def tensors(sample):
    """Name -> tensor of every field; a camera's are its viewmats."""
    values = {f.name: getattr(sample, f.name) for f in fields(sample)}
    return {k: v.viewmats if isinstance(v, Cameras) else v for k, v in values.items()}


def equal(a, b):
    a, b = tensors(a), tensors(b)
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_sample_depends_on_seed_and_index_only(objects):
    dataset, again = RenderDataset(objects, 3, NOISE), RenderDataset(objects, 3, NOISE)
    forwards = [dataset[i] for i in range(6)]
    torch.manual_seed(99)
    for i in reversed(range(6)):
        assert equal(again[i], forwards[i])
    assert not equal(forwards[0], forwards[1])
    assert not equal(RenderDataset(objects, 4, NOISE)[0], forwards[0])


def test_streams_of_neighbours_differ():
    seen = {float(torch.rand(1, generator=generator_for(s, i))) for s in range(4) for i in range(200)}
    assert len(seen) == 800


def test_shapes(objects):
    sample = RenderDataset(objects, 0, NOISE, targets=3)[0]
    assert {k: tuple(v.shape) for k, v in tensors(sample).items()} == {
        "image": (4, 32, 32), "rig": (4, 4, 4), "views": (4, 4, 32, 32), "depth": (4, 32, 32),
        "has_depth": (), "noise": NOISE, "target_cameras": (3, 4, 4), "targets": (3, 4, 32, 32),
        "background": (3, 3), "uniform": (4,), "index": (), "views_known": (4,), "targets_known": (3,),
    }  # fmt: skip
    assert all(v.dtype == torch.float32 for k, v in tensors(sample).items() if k != "index")


def test_a_batch_is_its_samples(objects):
    dataset = RenderDataset(objects, 0, NOISE)
    batch = Sample.collate([dataset[0], dataset[1]]).to(torch.float64)
    assert batch.rig.batch_shape == (2, 4) and batch.image.dtype == batch.rig.viewmats.dtype == torch.float64
    for i in range(2):
        one = {k: v[i] for k, v in tensors(batch).items()}
        assert all(torch.equal(v.double(), one[k]) for k, v in tensors(dataset[i]).items())


def test_the_input_is_at_azimuth_0_and_leads(objects):
    dataset = RenderDataset(objects, 0, NOISE, free_fraction=0.5)
    levels = Counter()
    for i in range(40):
        sample = dataset[i]
        rig, targets = sample.rig, sample.target_cameras
        wanted = torch.deg2rad(torch.tensor([0.0, 90, 180, 270]))
        turned = rig.azimuths - wanted
        assert torch.allclose(turned.cos(), torch.ones(4), atol=1e-6)
        assert torch.equal(sample.views[0], sample.image)
        assert torch.equal(sample.targets[0], sample.image)
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
    dataset = RenderDataset(objects, 1, NOISE, free_fraction=0.3, turned_fraction=0.4, recolour=0)
    flips = []
    for i in range(8):
        sample = dataset[i]
        for kind, pictures in (("rig", "views"), ("target_cameras", "targets")):
            found = getattr(sample, pictures)
            shown = found[:, :3].sort(1).values * found[:, 3:]  # recolouring may permute the channels
            best = float("inf")
            for rgba, depth, flip in seen_again(getattr(sample, kind), len(objects)):
                error = float((rgba[:, :3].sort(1).values * rgba[:, 3:] - shown).abs().mean())
                if error < best:
                    best, deep, flipped = error, depth, flip
            assert best < 0.003
            if kind == "rig":
                flips.append(flipped)
                both = (deep > 0) & (sample.depth > 0)
                assert both.any() and ((deep - sample.depth).abs() * both).max() < 0.01
    assert 0 < sum(flips) < 8


def test_every_view_of_a_quad_serves_as_input(objects):
    dataset = RenderDataset(objects, 0, (1, 1, 1, 1), recolour=0, free_fraction=0.2)
    seen = set()
    for i in range(120):
        image = dataset[i].image.sort(0).values
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
    dataset = RenderDataset(objects, 0, NOISE, turned_fraction=1.0)
    offsets = set()
    for i in range(40):
        sample = dataset[i]
        azimuths = torch.rad2deg(sample.rig.azimuths)
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
        # The tint is less than the change of brightness: three tenths of 2 x 0.15 at most.
        assert 1e-3 < gains.max() - gains.min() <= 0.3 * 0.3 + 1e-4
        permuted += order.tolist() != [0, 1, 2]
    assert 3 < permuted < 17
    same = recolouring(0.0, torch.Generator().manual_seed(3))(rgba)
    assert torch.allclose(same.sort(1).values.sum(1), rgba.sort(1).values.sum(1), atol=1e-5)


def test_styles_are_drawn_by_their_shares(objects):
    dataset = RenderDataset(objects, 0, (1, 1, 1, 1), scan_fraction=0.8, shape_fraction=0.2, targets=1)
    assert [(round(s, 2), p.tolist()) for s, p in dataset.styles.pools] == [
        (0.8, [0, 2])
    ]  # "game" has no share left
    with pytest.raises(UserError, match="shares of 1"):
        RenderDataset(objects, 0, NOISE, scan_fraction=0.9, shape_fraction=0.2)
    with pytest.raises(UserError, match="style with a share above 0"):
        RenderDataset(objects, 0, NOISE, scan_fraction=0, shape_fraction=1)


def test_quadruples_come_as_the_teacher_gave_them(quadruples):
    dataset = QuadrupleDataset(quadruples, 5, targets=3)
    seen = set()
    for i in range(12):
        sample = dataset[i]
        matches = [q for q in quadruples if torch.equal(q.noise, sample.noise)]
        assert len(matches) == 1
        q = matches[0]
        seen.add(q.meta["key"])
        assert torch.equal(sample.image, q.input) and torch.equal(sample.views[0], q.input)
        assert torch.equal(sample.views[1:], q.outputs[1:]) and len(sample.targets) == 3
        assert torch.equal(sample.rig.viewmats, q.cameras.viewmats)
        assert sample.has_depth == 0 and sample.depth.shape == (4, 32, 32)
    assert len(seen) == 3


def test_the_pictures_own_pixels_replace_the_teachers_copy(quadruples):
    dataset = QuadrupleDataset([replace(q, outputs=1 - q.outputs) for q in quadruples], 0)
    sample = dataset[0]
    for pictures in (sample.views, sample.targets):
        assert torch.equal(pictures[0], sample.image)
        assert not torch.equal(pictures[1], sample.image)


def test_the_first_items_alone(objects, quadruples):
    """`max_train_samples`, of which epochs are counted."""
    few = QuadrupleDataset(quadruples, 0, most=2)
    assert {float(few[i].noise[0, 0, 0, 0]) for i in range(20)} == {
        float(quadruples[k].noise[0, 0, 0, 0]) for k in range(2)
    }
    renders = RenderDataset(objects, 0, NOISE, most=1)
    assert [pool.tolist() for _, pool in renders.styles.pools] == [[0]]
    assert (len(few), len(renders)) == (2, 1)
    assert len(QuadrupleDataset(quadruples, 0, most=99)) == len(QuadrupleDataset(quadruples, 0)) == 3


@pytest.mark.parametrize("targets", [2, 4, 6, 20])  # the teacher has 4 views, a rendered object 14
def test_renders_and_quadruples_collate(objects, quadruples, targets):
    a = RenderDataset(objects, 0, NOISE, targets=targets)[0]
    b = QuadrupleDataset(quadruples, 0, targets=targets)[0]
    assert len(a.targets) == targets and torch.equal(b.targets[4:], b.targets[: max(0, targets - 4)])
    assert {k: v.shape for k, v in tensors(a).items()} == {k: v.shape for k, v in tensors(b).items()}


def test_workers_get_handles(tmp_path, quadruples, monkeypatch):
    """What is sent to a worker does not grow with the data."""
    renders = write_renders(tmp_path, count=40)
    monkeypatch.setattr(RenderedObjects, "meta", lambda self, index: {"style": "scan", "size": 32})
    objects = RenderedObjects([renders] * 100)
    mixed = MixedDataset(RenderDataset(objects, 0, NOISE), QuadrupleDataset(quadruples, 0), 2, 0.5, 0)
    sent = ForkingPickler.dumps(mixed)
    assert len(objects) == 4000 and len(sent) < 65536
    assert equal(ForkingPickler.loads(sent)[1], mixed[1])


@pytest.mark.parametrize("kind", ["renders", "unpacked", "quadruples", "mixed", "shapes", "carved"])
def test_workers_get_handles_of_thousands_of_shards(kind, tmp_path, monkeypatch):
    """As 120,000 pictures are: every data set that a trainer sends to its workers."""
    seen = CarvedQuadruples([write_quadruples(tmp_path / "q", count=1)])[0]
    folder = "/shared/somebody/runs/a rather long name"
    paths = [f"{folder}/quadruples-{k:02d}-{s:05d}.tar" for k in range(2) for s in range(2000)]
    known = dict.fromkeys("ab", {"rgba.png": (0, 1), "outputs.png": (0, 1)})
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_index", lambda path, tolerant: known)
        patch.setattr(RenderedObjects, "meta", lambda self, index: {"style": "scan", "size": 32})
        patch.setattr(UnpackedRenders, "meta", lambda self, index: {"style": "scan", "size": 32})
        patch.setattr(CarvedQuadruples, "meta", lambda self, index: {"style": "teacher"})
        patch.setattr(UnpackedRenders, "_open", lambda self: setattr(self, "_lines", [()] * 8000))
        renders, made = RenderedObjects(paths), Quadruples(paths)
        bins = object.__new__(UnpackedRenders)
        bins.bins = [
            Path(f"/tmp/unpacked/{Path(p).stem}-{i * 2654435761 % 2**32:08x}.bin")
            for i, p in enumerate(paths)
        ]
        bins._open()
        carved = CarvedQuadruples(paths)
        carved._carved = dict.fromkeys(range(4), seen)  # as split and check_volumes left it
        late = QuadrupleDataset(made, 0)
        dataset = {
            "renders": lambda: RenderDataset(renders, 0, NOISE),
            "unpacked": lambda: RenderDataset(bins, 0, NOISE),
            "quadruples": lambda: late,
            "mixed": lambda: MixedDataset(RenderDataset(renders, 0, NOISE), late, 2, 0.5, 0),
            "shapes": lambda: ShapeDataset(Together([renders, bins]), 0, 32, 16, range(0, 16000, 2)),
            "carved": lambda: ShapeDataset(Together([carved]), 0, 32, 16, range(1, 8000)),
        }[kind]()
        sent = ForkingPickler.dumps(dataset)
        assert len(sent) < 65536
        again = ForkingPickler.loads(sent)
        assert len(again) == len(dataset) >= 7999
        if kind in ("quadruples", "mixed"):
            there = again if kind == "quadruples" else again.quadruples
            assert there.quadruples._shards.paths == list(map(Path, paths))


def test_mixed_schedule(objects, quadruples):
    renders, late = RenderDataset(objects, 0, NOISE), QuadrupleDataset(quadruples, 0)
    mixed = MixedDataset(renders, late, 50, 0.5, 0)
    kinds = [bool(mixed[i].has_depth == 0) for i in range(150)]
    assert not any(kinds[:50]) and 30 < sum(kinds[50:]) < 70
    assert all(MixedDataset(renders, late, 3, 1.0, 0)[i].has_depth == 0 for i in range(3, 8))
    spare = [MixedDataset(renders, late, 3, 1.0, 0)[i + SPARE].has_depth == 0 for i in range(6)]
    assert spare == [False, False, False, True, True, True]  # what replaces a damaged one is as it was
    first = kinds.index(True)
    assert equal(mixed[first], late[first]) and equal(mixed[2], renders[2])


def test_backgrounds_are_white_half_of_the_time():
    drawn = [background(torch.Generator().manual_seed(i)) for i in range(200)]
    white = sum(bool((b == 1).all()) for b in drawn)
    assert 70 < white < 130 and all(((b >= 0) & (b <= 1)).all() for b in drawn)


def test_data_of_another_size_is_refused(objects):
    dataset = RenderDataset(objects, 0, NOISE)
    check_fit(dataset, SIZE, list(NOISE))
    with pytest.raises(UserError, match="4 pictures of 32 pixels .* the model takes 4 of 64"):
        check_fit(dataset, 64, NOISE)
    three = (3, *NOISE[1:])
    with pytest.raises(UserError, match="4 pictures of 32 pixels .* the model takes 3 of 32"):
        check_fit(RenderDataset(objects, 0, three), SIZE, three)


def test_the_tiny_objects_have_what_renders_have(objects):
    assert objects[0].meta["quads"] == QUADS and len(objects[0].cameras) == len(ELEVATIONS) == len(AZIMUTHS)
