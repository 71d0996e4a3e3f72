"""Hulls of a generator beside the renders: what they are, and that they are made once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins.tiny_objects import write_renders

from dd3g.cameras import Cameras
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.pepd.frustum import slices
from dd3g.pepd.maps import resize
from dd3g.pepd.solid import Outlines, SolidOptions
from dd3g.training import generator_for
from distill import hulls as module
from distill.hulls import hulls_of, with_hulls
from distill.renders import RenderedObjects
from distill.shapes import ShapeDataset, input_views, shape_sample

SIZE, BINS = 32, 6
TINY = GeneratorConfig(
    size=SIZE,
    latent_shape=(4, 8, 8, 8),
    width=32,
    depth=1,
    heads=2,
    residual_hidden=8,
    fine=8,
    mid=16,
    head_hidden=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return Generator(TINY).save_pretrained(tmp_path_factory.mktemp("generator"))


@pytest.fixture
def renders(tmp_path):
    return write_renders(tmp_path / "renders", count=3, volumes=True)


def pictures(objects):
    return [input_views(objects.meta(i)) for i in range(len(objects))]


def test_hulls_are_those_of_each_picture_along_its_rays(folder):
    model = Generator.from_pretrained(folder)
    images = torch.rand(2, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    found = hulls_of(model, images, [10.0, 35.0], BINS, seed=4)
    assert found.shape == (2, BINS, SIZE, SIZE) and found.amax() > 0
    noise = torch.randn(2, *TINY.latent_shape, generator=generator_for(4, 0))
    rig, camera = Cameras.orbit([0.0, 90.0, 180.0, 270.0], 35.0, SIZE), Cameras.orbit([0.0], 35.0, SIZE)
    with torch.inference_mode():
        soft = model(noise[1:], rig, resize(images[1:], SIZE))[0]
    origins, directions = camera.rays()
    points = origins[0] + slices(BINS)[:, None, None, None] * directions[0]
    twin = Outlines.of(soft, SolidOptions()).hull(points.view(-1, 3)).view(BINS, SIZE, SIZE)
    torch.testing.assert_close(found[1], twin, atol=2e-3, rtol=0)


def test_hulls_are_made_once_and_again_where_damaged_or_of_another_generator(
    renders, folder, tmp_path, monkeypatch
):
    objects = RenderedObjects(renders)
    first = with_hulls(objects, str(folder), pictures(objects), BINS, "cpu")
    made = []
    monkeypatch.setattr(module, "made", lambda *a, real=module.made: made.append(a) or real(*a))
    again = with_hulls(objects, str(folder), pictures(objects), BINS, "cpu")
    assert not made and all(torch.equal(a, b) for a, b in zip(first.values, again.values, strict=True))
    (path,) = renders.glob("*.hulls.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with_hulls(objects, str(folder), pictures(objects), BINS, "cpu")
    assert len(made) == 1
    torch.manual_seed(1)
    other = Generator(replace(TINY)).save_pretrained(tmp_path / "other")
    with_hulls(objects, str(other), pictures(objects), BINS, "cpu")
    assert len(made) == 2
    with np.load(path, allow_pickle=False) as stored:
        assert stored["hulls"].shape == (3, module.PICTURES, BINS, SIZE, SIZE)


def test_samples_take_the_pictures_that_have_hulls(renders, folder):
    objects = RenderedObjects(renders)
    hulls = with_hulls(objects, str(folder), pictures(objects), BINS, "cpu")
    assert all(len(set(p)) == module.PICTURES for p in hulls.pictures)
    dataset = ShapeDataset(objects, 0, SIZE, BINS, hulls=hulls, pixels=8, recolour=0.0)
    seen = set()
    for index in range(40):
        sample = dataset[index]
        matches = [
            (i, k, mirror)
            for i in range(3)
            for k, view in enumerate(hulls.pictures[i])
            for mirror in (False, True)
            if torch.equal(sample.image[3], flipped(objects[i].rgba[view, 3].float() / 255, mirror))
        ]
        assert matches
        assert any(torch.equal(sample.hull, flipped(hulls[i, k], m).half()) for i, k, m in matches)
        seen |= {(i, k) for i, k, _ in matches}
    assert len(seen) > 5
    plain = shape_sample(objects[0], generator_for(0, 0), SIZE, BINS, 8)
    assert plain.hull.numel() == 0


def flipped(x, mirror):
    return x.flip(-1) if mirror else x
