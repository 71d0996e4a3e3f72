"""What the compact teacher is trained on."""

from dataclasses import replace
from math import cos, pi

import pytest
import torch
from stand_ins.tiny_objects import write_renders

from distill.samples.render_samples import RenderDataset, Sample
from distill.samples.renders import RenderedObjects
from distill.teachers.compact import CompactConfig, CompactTeacher
from distill.train_teacher import TeacherLoss


def started(folder, count):
    """A teacher and a batch of samples."""
    teacher = CompactTeacher(
        CompactConfig(size=32, width=32, depth=1, heads=2, residual_hidden=8, fine=8, mid=16)
    )
    dataset = RenderDataset(RenderedObjects(write_renders(folder)), 0, teacher.latent_shape, targets=1)
    return teacher, Sample.collate([dataset[i] for i in range(count)])


def test_errors_count_by_their_noise_down_to_a_sigma_of_three_tenths(tmp_path):
    teacher, batch = started(tmp_path, 3)
    uniform = batch.uniform.clone()
    uniform[:, 0] = torch.tensor([0.0505, 0.3005, 0.9005])  # levels 50, 300 and 900
    batch = replace(batch, uniform=uniform)
    true = teacher.codec.encode(batch.views)
    loss, _ = TeacherLoss(teacher, 0.0)(lambda x_t, t, condition: torch.zeros_like(x_t), batch, 0)
    wanted = 0.0
    for i, level in enumerate((50, 300, 900)):
        kept, whole = (cos((x + 0.008) / 1.008 * pi / 2) ** 2 for x in ((level + 1) / 1000, 0))
        wanted += float(true[i].square().mean()) / max(1 - kept / whole, 0.3**2) / 3
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_the_picture_is_taken_away_from_its_share_of_the_samples(tmp_path):
    teacher, batch = started(tmp_path, 300)
    seen = []

    def model(x_t, t, condition):
        seen.append(condition.image)
        return torch.zeros_like(x_t)

    shares = {}
    for dropout in (0.0, 0.1, 0.5):
        TeacherLoss(teacher, dropout)(model, batch, 0)
        empty = seen[-1].flatten(1).abs().amax(1) == 0  # (B,)
        assert torch.equal(seen[-1][~empty], batch.image[~empty])
        shares[dropout] = empty.float().mean().item()
    assert shares[0.0] == 0 and abs(shares[0.1] - 0.1) < 0.05 and abs(shares[0.5] - 0.5) < 0.08
