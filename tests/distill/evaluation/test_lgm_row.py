from __future__ import annotations

import pytest
import torch
from stand_ins.tiny_lgm import DEEP, save_lgm, tiny_lgm

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.rasterizer import rasterize
from distill.evaluation.predictors import Target
from distill.evaluation.protocol import Evaluation
from distill.evaluation.rows import lgm_predictor, make_rows, teacher_predictor, teacher_views
from distill.simulation import ode
from distill.teachers.analytic import AnalyticConfig, AnalyticTeacher

AZIMUTHS = [0, 90, 180, 270, 45]


def target_at(elevation: float, name: str = "disc") -> Target:
    """A red disc from everywhere."""
    y, x = torch.meshgrid(*[torch.arange(16) - 7.5] * 2, indexing="ij")
    rgba = torch.zeros(5, 4, 16, 16)
    rgba[:, 0] = 1
    rgba[:, 3] = (x.square() + y.square() < 25).float()
    return Target(
        name,
        "made",
        rgba,
        Cameras.orbit(AZIMUTHS, elevation, 16),
        torch.tensor(AZIMUTHS).float(),
        [0, 1, 2, 3],
        [4],
    )


@pytest.fixture
def counted(monkeypatch):
    """How often a teacher was run."""
    runs = []
    whole = ode.simulate
    monkeypatch.setattr(ode, "simulate", lambda *a, **k: runs.append(a) or whole(*a, **k))
    return runs


@pytest.mark.slow
def test_teacher_and_lgm_are_two_rows_of_one_run(teacher, tmp_path, counted):
    file = save_lgm(tmp_path / "lgm", tiny_lgm(2, DEEP))
    asked = Evaluation(seed=4, teacher_steps=3, device="cpu")
    (rows,) = make_rows([f"teacher={teacher}+{file}"], asked).values()
    assert list(rows) == ["teacher", "teacher + LGM"]
    target = target_at(10.0)
    views = rows["teacher"](target)(target, [0, 1, 2, 3, 4])
    assert views.views == [0, 1, 2, 3]
    drawn = rows["teacher + LGM"](target)(target, [1, 4])
    assert len(counted) == 1 and drawn.views == [1, 4]  # free views too
    # By hand: the views over white, LGM, the rasteriser.
    white = torch.nn.functional.interpolate(views.rgb, (256, 256), mode="bilinear")
    gaussians = tiny_lgm(2, DEEP).half().float().reconstruct(white[None], target.cameras[:4])[0]
    wanted = rasterize(gaussians, target.cameras[[1, 4]], background=1.0, antialiased=True)
    torch.testing.assert_close(drawn.rgb, wanted.rgb.clamp(0, 1), atol=2e-3, rtol=0)
    rows["teacher + LGM"](target_at(10.0, "another"))
    assert len(counted) == 2


def test_a_teacher_of_any_elevation_takes_that_of_the_target(counted):
    teacher = AnalyticTeacher(AnalyticConfig(size=16, steps=2))
    with pytest.raises(UserError, match="rig is not the one of disc"):
        teacher_predictor(teacher_views(teacher, 0, None, None))(target_at(30.0))
    teacher.follows_elevation = True
    seen = teacher_views(teacher, 0, None, None)
    answer = seen(target_at(30.0))
    assert answer.shape == (4, 4, 16, 16)
    cameras = counted[-1][5]
    torch.testing.assert_close(cameras.viewmats, Cameras.orbit([0, 90, 180, 270], 30.0, 16).viewmats)
    lgm_predictor(seen, tiny_lgm(), 32)(target_at(30.0))
    assert len(counted) == 1
    teacher.rig = Cameras.default_rig(16, 6)
    with pytest.raises(UserError, match="rig is not the one"):
        teacher_views(teacher, 0, None, None)(target_at(30.0))
