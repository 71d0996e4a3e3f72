"""What the compact teacher is trained on."""

import torch
from stand_ins.tiny_objects import write_renders

from distill.samples.render_samples import RenderDataset, Sample
from distill.samples.renders import RenderedObjects
from distill.teachers.compact import CompactConfig, CompactTeacher
from distill.train_teacher import TeacherLoss


def test_the_picture_is_taken_away_from_its_share_of_the_samples(tmp_path):
    teacher = CompactTeacher(
        CompactConfig(size=32, width=32, depth=1, heads=2, residual_hidden=8, fine=8, mid=16)
    )
    dataset = RenderDataset(RenderedObjects(write_renders(tmp_path)), 0, teacher.latent_shape, targets=1)
    batch = Sample.collate([dataset[i] for i in range(300)])
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
