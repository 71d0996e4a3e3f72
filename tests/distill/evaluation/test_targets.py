"""Renders of several sizes are one target, and each size is measured by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stand_ins.targets import perfect, write_renders

from dd3g.errors import UserError
from distill.evaluation.predictors import (
    Prediction,
    Target,
)
from distill.evaluation.protocol import load_protocol
from distill.evaluation.scores import score
from distill.evaluation.targets import Targets, open_targets
from distill.pictures import on_white


def test_sizes_of_an_object_are_one_target(three_sizes):
    folders = [three_sizes / name for name in ("256", "32", "128")]  # in any order
    targets = Targets(folders)
    target = targets[1]
    assert len(targets) == 2 and target.size == 32
    assert [t.size for t in target.finer] == [128, 256]
    assert target.finest is target.finer[-1]
    assert all(t.id == "box1" and t.novel == target.novel for t in (target, *target.finer))
    torch.testing.assert_close(target.finest.cameras.viewmats, target.cameras.viewmats)
    small = torch.nn.functional.avg_pool2d(on_white(target.finest.image)[None], 8)[0]
    assert (small - on_white(target.image)).abs().mean() < 0.01
    assert len(Targets(folders, 1)) == 1


def test_sizes_that_do_not_belong_together_are_refused(three_sizes, tmp_path):
    write_renders(tmp_path / "other", 1, 64)
    with pytest.raises(UserError, match="does not hold the objects and views of"):
        Targets([three_sizes / "32", tmp_path / "other"])
    write_renders(tmp_path / "again", 2, 32)
    with pytest.raises(UserError, match="have one size: give each size once"):
        Targets([three_sizes / "32", tmp_path / "again"])
    with pytest.raises(UserError, match="meshes holds no renders"):
        open_targets([three_sizes / "32", three_sizes / "meshes"], load_protocol("house"))


def test_what_people_see_is_measured_at_its_own_size(three_sizes):
    target = Targets([three_sizes / name for name in ("32", "128", "256")])[0]
    asked = []

    def draw(at: Target, views: list[int]) -> Prediction:
        asked.append((at.size, views))
        best = perfect(at, views)
        if at.size == 128:  # half the alpha of everything
            return Prediction(views, best.rgb, 0.5 * best.alpha)
        return Prediction(views, best.rgb - 0.1 * (at.size == 256), best.alpha)

    found = score(target, draw)
    assert asked == [(32, list(range(20))), (128, target.novel), (256, [0])]
    assert found["input"]["psnr"] == 100 and found["input"]["psnr_256"] == pytest.approx(20, abs=1e-3)
    assert found["novel"]["psnr"] == 100 and found["novel"]["iou"] == 1
    assert 0.85 < found["novel"]["alpha_fuzz_128"] < 1  # all but the band along the edge
    alone = score(replace(target, finer=()), perfect)
    assert alone["novel"]["alpha_fuzz_32"] < 0.01 and not {"psnr_256", "alpha_fuzz_128"} & {*alone["input"]}
