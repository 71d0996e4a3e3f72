"""What a training step computes on a GPU: no tensor of it is made on the host, which a GPU would wait for."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from stand_ins.on_meta import OnMeta
from stand_ins.tiny_objects import write_renders

from dd3g.pepd import Generator, GeneratorConfig
from distill.objective import Objective, ObjectiveConfig, direct_terms
from distill.render_samples import RenderDataset, Sample
from distill.renders import RenderedObjects
from distill.teachers.compact import CompactConfig, CompactTeacher
from distill.train_teacher import TeacherLoss

SHAPE = {"size": 32, "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8, "fine": 8, "mid": 16}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    objects = RenderedObjects(write_renders(tmp_path_factory.mktemp("renders")))
    dataset = RenderDataset(objects, 0, (4, 64, 8, 8))
    return Sample.collate([dataset[i] for i in range(2)])


def test_the_terms_of_the_generator(batch):
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(latent_shape=(4, 64, 8, 8), head_hidden=8, **SHAPE)).to("meta")
    there = batch.to("meta")
    objective = Objective(ObjectiveConfig(cover=1.0), 100)
    with OnMeta():
        frames = generator(there.noise, there.rig, there.image, apart=True)
        terms = direct_terms(frames, there)
        shown, alpha = there.targets[:, :, :3], there.targets[:, :, 3:]
        terms |= objective.explicit(shown, alpha, there.targets, there.background, there.targets_known)
    assert len(terms) == 8 and all(t.is_meta and t.shape == () for t in terms.values())


def test_the_teacher_and_its_loss(batch):
    torch.manual_seed(0)
    teacher = CompactTeacher(CompactConfig(**SHAPE)).to("meta")
    loss = TeacherLoss(teacher, 0.1)
    there = batch.to("meta")
    with OnMeta():
        value, terms = loss(teacher, there, 0)
    assert value.is_meta and set(terms) == {"front", "sides", "back"}


def test_noise_levels_are_looked_up_where_they_are(batch):
    schedule = CompactTeacher(CompactConfig(**SHAPE)).schedule
    t = torch.tensor([0, 7, 999, -1])
    with OnMeta():
        found = schedule.ab(t.to("meta"))
    assert found.is_meta and found.dtype == torch.float64 and found.shape == (4,)
    assert torch.equal(schedule.ab(t), schedule.alpha_bar[t])
    with pytest.raises(IndexError, match="-1..999"):
        schedule.ab(torch.tensor([1000]))


def test_a_batch_moves_as_a_whole(batch):
    there = batch.to("meta")
    values = (getattr(there, f.name) for f in fields(there))
    assert all(
        v.is_meta if isinstance(v, torch.Tensor) else v.viewmats.is_meta and v.Ks.is_meta for v in values
    )
