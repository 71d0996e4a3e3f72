"""Quadruples as rendered objects: what their masks carve, and that a shape network trains on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.tiny_objects import ellipsoid, ellipsoid_volume, write_quadruples, write_renders
from stand_ins.training_runs import fresh

from dd3g.cameras import Cameras
from dd3g.command.configuration import launch
from dd3g.errors import UserError
from dd3g.io.shards import write_shard
from dd3g.pepd.occupancy import OccupancyNet
from distill.quadruples import Quadruple, encode
from distill.samples.renders import RenderedObjects
from distill.shape import carving
from distill.shape.carving import CarvedQuadruples, Together, carved
from distill.shape.samples import check_volumes
from distill.simulation.mattes import Mattes
from distill.train_shape import ShapeConfig, run

AXES = torch.tensor([0.5, 0.35, 0.3])


def quadruple(channels=4):
    rig = Cameras.orbit([0.0, 90.0, 180.0, 270.0], 25.0, 48)
    rgba, depth = ellipsoid(rig, AXES, torch.tensor([0.2, 0.4, 0.6]))
    return Quadruple(torch.zeros(4, 8, 8, 8), rig, rgba[0], rgba[:, :channels], {"source": "a.png"}), depth


def test_what_is_carved_holds_the_object_and_little_more():
    q, depth = quadruple()
    item = carved(q, "a-0")
    true, found = ellipsoid_volume(AXES), item.volume
    assert found.sum() < 1.3 * true.sum()
    assert (found & true).sum() > 0.96 * true.sum()
    seen = (depth > 0) & (item.depth > 0)
    assert seen.sum() > 0.95 * (depth > 0).sum()
    ahead = depth[seen] - item.depth[seen]  # a hull is never behind the surface, but by a voxel
    assert ahead.min() > -0.04 and ahead.median() < 0.05
    assert item.meta["elevation"] == pytest.approx([25.0] * 4, abs=1e-3)
    assert [round(a) % 360 for a in item.meta["azimuth"]] == [0, 90, 180, 270]
    assert item.meta["cluster"] == "a.png"
    torch.testing.assert_close(item.rgba.float() / 255, q.outputs, atol=0.003, rtol=0)


def matted(confidence, rig=None):
    """The same from a teacher without alpha, on grey ground."""
    q, _ = quadruple()
    alpha, ground = q.outputs[:, 3:], torch.full((4, 3), 0.5)
    shown = alpha * q.outputs[:, :3] + (1 - alpha) * 0.5
    mattes = Mattes(alpha, torch.tensor(confidence), ground, "ground")
    return replace(q, outputs=shown, mattes=mattes, cameras=rig or q.cameras)


def test_views_without_alpha_carve_nothing():
    with pytest.raises(UserError, match="a-0 has 0 views with alpha beside its picture"):
        carved(quadruple(3)[0], "a-0")
    with pytest.raises(UserError, match="a-0 has 1 views with alpha .* see --view-matte"):
        carved(matted([1.0, 0.4, 0.9, 0.1]), "a-0")


def test_mattes_carve_as_alpha_does():
    whole, found = carved(quadruple()[0], "a-0"), carved(matted([1.0, 0.9, 0.8, 0.7]), "a-0")
    assert torch.equal(whole.volume, found.volume) and whole.meta == found.meta
    assert torch.equal(whole.depth, found.depth)
    # The one that is not believed is left out, and its matter stays.
    three = carved(matted([0.1, 0.9, 0.8, 0.1]), "a-0")
    assert [round(a) % 360 for a in three.meta["azimuth"]] == [0, 90, 180] and len(three.rgba) == 3
    assert (three.volume | whole.volume).sum() == three.volume.sum()


def test_a_rig_without_the_pictures_view():
    """Its camera is the usual one, whatever the others are."""
    rig = Cameras.orbit([30.0, 120.0, 210.0, 300.0], [20.0, -10.0, 20.0, -10.0], 48, 2.6, 30.0)
    rig = replace(rig, near=1.6, far=3.6)
    rgba, depth = ellipsoid(rig, AXES, torch.tensor([0.2, 0.4, 0.6]))
    front = Cameras.orbit([0.0], 25.0, 48)
    picture, _ = ellipsoid(front, AXES, torch.tensor([0.2, 0.4, 0.6]))
    item = carved(Quadruple(torch.zeros(4, 8, 8, 8), rig, picture[0], rgba, {"elevation": 25.0}), "a-0")
    assert len(item.rgba) == 5 and item.meta["elevation"][0] == pytest.approx(25.0, abs=1e-3)
    true = ellipsoid_volume(AXES)
    assert (item.volume & true).sum() > 0.96 * true.sum() and item.volume.sum() < 1.3 * true.sum()
    seen = (depth > 0) & (item.depth[1:] > 0)
    assert seen.sum() > 0.95 * (depth > 0).sum() and (depth - item.depth[1:])[seen].abs().median() < 0.05


def test_a_picture_from_elsewhere_is_refused():
    far = Cameras.orbit([0.0, 90.0, 180.0, 270.0], 25.0, 48, 2.0)
    with pytest.raises(UserError, match="was taken from 2 with a focal length of 1.09 sides"):
        carved(replace(quadruple()[0], cameras=far), "a-0")


def test_only_the_last_carved_ones_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(carving, "KEPT", 2 * 4 * 32 * 32 * 8)  # bytes of two
    quadruples = CarvedQuadruples([write_quadruples(tmp_path, count=4)])
    first, second, third = (quadruples[i] for i in range(3))
    assert quadruples[2] is third and quadruples[1] is second
    assert quadruples[0] is not first and torch.equal(quadruples[0].depth, first.depth)
    assert quadruples.meta(3).items() <= quadruples[3].meta.items()


def test_renders_and_quadruples_are_one_sequence(tmp_path):
    renders = RenderedObjects(write_renders(tmp_path / "r", count=2, volumes=True))
    quadruples = CarvedQuadruples([write_quadruples(tmp_path / "q", count=3)])
    both = Together([renders, quadruples])
    assert len(both) == 5 and [both.meta(i)["id"] for i in range(5)] == [
        "object0",
        "object1",
        "q0",
        "q1",
        "q2",
    ]
    assert [both.meta(i)["id"] for i in (-1, -3, 1 - len(both))] == ["q2", "q0", both[1].meta["id"]]
    assert both[-1] is both[4]
    for index in (5, -6):
        with pytest.raises(IndexError):
            both.meta(index)
    assert both[4] is both[4] and "source" in both.meta(1) and both[2].meta["id"] == "q0"
    check_volumes(both, 32)
    with pytest.raises(UserError, match="q0 has 32 pixels per side, but the network takes 64"):
        check_volumes(Together([quadruples]), 64)


def test_a_shape_network_trains_on_quadruples_alone(tmp_path, capsys):
    folder = write_quadruples(tmp_path / "q", count=4)
    words = [
        "renders=[]", f"quadruples=[{folder}]", f"output_dir={tmp_path / 'out'}", "train_batch_size=2",
        "max_train_steps=2", "report_to=none", "held_out=0.3", "pixels=32", "network.size=32",
        "network.bins=8", "network.fine=8", "network.widths=[8,16]", "network.width=16", "network.depth=1",
        "network.heads=2", "network.residual_hidden=8", "network.color_bins=4",
    ]  # fmt: skip
    fresh()
    assert launch(run, ShapeConfig, words) == 0
    assert OccupancyNet.from_pretrained(tmp_path / "out/model").config.size == 32
    fresh()
    assert launch(run, ShapeConfig, ["renders=[]", f"output_dir={tmp_path / 'none'}"]) == 2
    assert "nothing to train on" in capsys.readouterr().err
    (tmp_path / "rgb").mkdir()
    write_shard(tmp_path / "rgb/quadruples-00000.tar", [encode(quadruple(3)[0], "a-0")])
    assert launch(run, ShapeConfig, ["renders=[]", f"quadruples=[{tmp_path / 'rgb'}]"]) == 2
    assert "quadruple a-0 has 0 views with alpha" in capsys.readouterr().err
