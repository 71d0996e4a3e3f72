from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dd3g.cameras import Cameras
from dd3g.diffusion import ClassifierFree, sample
from dd3g.errors import UserError
from dd3g.nn.blocks import camera_code
from distill.teachers import load
from distill.teachers.compact import CompactConfig, CompactTeacher, SpaceToDepth
from distill.train_teacher import TeacherLoss

TINY = CompactConfig(size=32, width=32, depth=2, heads=2, residual_hidden=8, fine=8, mid=16)


def teacher(seed=0):
    torch.manual_seed(seed)
    made = CompactTeacher(TINY)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "conv2" in name or name.startswith("out.4"):
                parameter.normal_(std=0.1)
    return made.eval()


def inputs(batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 4, 32, 32, generator=g)
    image[:, 3] = (image[:, 3] > 0.3).float()
    return torch.randn(batch, 4, 64, 8, 8, generator=g), image


def test_codec():
    codec, rgba = SpaceToDepth(), inputs()[1]
    latent = codec.encode(rgba)
    assert latent.shape == (2, 64, 8, 8) and latent.min() >= -1 and latent.max() <= 1
    back = codec.decode(latent)
    assert torch.allclose(back[:, 3], rgba[:, 3], atol=1e-6)
    assert torch.allclose(back[:, :3] * rgba[:, 3:], rgba[:, :3] * rgba[:, 3:], atol=1e-5)
    clear = codec.encode(torch.tensor([0.3, 0.9, 0.1, 0.0])[:, None, None].expand(4, 8, 8))
    assert torch.allclose(clear.unflatten(0, (4, 16))[:3], torch.ones(()))  # white where nothing is


def test_shapes_and_protocol():
    made = teacher()
    noise, image = inputs()
    condition = made.condition(image)
    x0 = made(noise, torch.tensor([999, 10]), condition)
    assert x0.shape == noise.shape and tuple(noise.shape[1:]) == made.latent_shape
    assert torch.equal(made(noise, 10, condition)[1], x0[1])  # one level for all
    assert len(made.rig) == 4 and made.rig.width == 32
    assert isinstance(made.denoiser(condition), ClassifierFree) and made.denoiser(condition, 1.0) is made


def test_an_untrained_teacher_answers_with_the_prior():
    torch.manual_seed(0)
    made = CompactTeacher(TINY)
    noise, image = inputs()
    with torch.no_grad():
        views = made.codec.decode(made(noise, 999, made.condition(image)))
    over_white = views[:, :, :3] * views[:, :, 3:] + 1 - views[:, :, 3:]
    wanted = image[:, :3] * image[:, 3:] + 1 - image[:, 3:]
    assert (over_white[:, 0] - wanted).abs().max() < 0.03
    assert (over_white[:, 2] - wanted.flip(-1)).abs().max() < 0.03


def test_every_parameter_is_trained():
    made = teacher().train()
    loss_of = TeacherLoss(made, 0.1)
    noise, image = inputs()
    uniform = torch.tensor([[0.3, 0.5, 0, 0], [0.9, 0.01, 0, 0]])
    batch = SimpleNamespace(
        views=torch.rand(2, 4, 4, 32, 32), noise=noise, image=image, uniform=uniform,
        rig=Cameras.stack([made.rig, made.rig]),
    )  # fmt: skip
    loss, terms = loss_of(made, batch, 0)
    loss.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert set(terms) == {"front", "sides", "back"}


def test_the_loss_by_brute_force():
    made, (noise, image) = teacher(), inputs()
    views = torch.rand(2, 4, 4, 32, 32)
    uniform = torch.tensor([[0.3, 0.5, 0, 0], [0.9, 0.01, 0, 0]])  # the second one loses its picture
    rig = made.rig
    batch = SimpleNamespace(
        views=views, noise=noise, image=image, uniform=uniform, rig=Cameras.stack([rig, rig])
    )
    with torch.no_grad():
        found = float(TeacherLoss(made, 0.1)(made, batch, 0)[0])
        wanted = 0.0
        for b, (t, shown) in enumerate(((300, image[:1]), (900, torch.zeros(1, 4, 32, 32)))):
            ab = float(made.schedule.alpha_bar[t])
            x0 = made.codec.encode(views[b])[None]
            x_t = math.sqrt(ab) * x0 + math.sqrt(1 - ab) * noise[b : b + 1]
            error = (made(x_t, t, made.condition(shown)) - x0).square().mean()
            wanted += float(error) / max(math.sqrt(1 - ab), 0.3) ** 2 / 2
    assert found == pytest.approx(wanted, rel=1e-4)


def test_views_and_picture_are_seen_by_all_views():
    made, (noise, image) = teacher(), inputs(1)
    with torch.no_grad():
        before = made(noise, 500, made.condition(image))
        changed = noise.clone()
        changed[:, 1] += 1
        other = image.clone()
        other[:, :3] = 1 - other[:, :3]
        assert ((made(changed, 500, made.condition(image)) - before).abs().amax((0, 2, 3, 4)) > 1e-5).all()
        assert ((made(noise, 500, made.condition(other)) - before).abs().amax((0, 2, 3, 4)) > 1e-3).all()
        turned = made.rig.turned(torch.tensor(0.5))
        assert (
            (made(noise, 500, made.condition(image, turned)) - before).abs().amax((0, 2, 3, 4)) > 1e-4
        ).all()


def test_only_the_clean_frame_has_no_camera():
    made, (noise, image) = teacher(), inputs()
    codes = []
    made.camera.register_forward_pre_hook(lambda module, arguments: codes.append(arguments[0]))
    with torch.no_grad():
        made(noise, 500, made.condition(image))
    assert codes[0].shape == (2, 5, 16) and (codes[0][:, 4] == 0).all()
    assert torch.equal(codes[0][1, :4], camera_code(made.rig))


def test_samples_are_deterministic_and_independent_of_the_batch():
    made, (noise, image) = teacher(), inputs(3)
    plan = made.schedule.plan(3)

    def run(n, i):
        condition = made.condition(i)
        return sample(made.denoiser(condition), made.schedule, n, plan, condition).x0

    together = run(noise, image)
    assert torch.equal(run(noise, image), together)
    assert torch.allclose(run(noise[1:2], image[1:2]), together[1:2], atol=1e-4)
    rigs = Cameras(made.rig.viewmats.expand(3, 4, 4, 4), made.rig.Ks.expand(3, 4, 3, 3), 32, 32)
    with torch.no_grad():
        each = made(noise, 500, made.condition(image, rigs))
        assert torch.allclose(each, made(noise, 500, made.condition(image)), atol=1e-6)


def test_the_null_condition_has_no_picture():
    made, (noise, image) = teacher(), inputs()
    with torch.no_grad():
        null = made.condition(image).null()
        assert torch.equal(made(noise, 500, null), made(noise, 500, made.condition(torch.zeros_like(image))))


def test_round_trip(tmp_path):
    made = teacher()
    again = load(made.save_pretrained(tmp_path))
    assert isinstance(again, CompactTeacher) and not again.training
    assert again.fingerprint == made.fingerprint != teacher(1).fingerprint
    noise, image = inputs()
    with torch.no_grad():
        assert torch.equal(again(noise, 7, again.condition(image)), made(noise, 7, made.condition(image)))


@pytest.mark.parametrize(("key", "value"), [("size", 33), ("width", 30), ("heads", 5)])
def test_wrong_shapes_are_named(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"{value}"):
        CompactConfig(**{key: value})
    path = teacher().save_pretrained(tmp_path) / "config.json"
    path.write_text(path.read_text().replace(f'"{key}": {getattr(TINY, key)}', f'"{key}": {value}'))
    with pytest.raises(UserError, match="does not build a teacher"):
        CompactTeacher.from_pretrained(tmp_path)


def test_parameters_have_their_published_names():
    names = {n.split(".")[0] for n, _ in teacher().named_parameters()}
    assert names == {
        "picture",
        "stem",
        "prior",
        "down",
        "coarse_prior",
        "time",
        "camera",
        "trunk",
        "up",
        "out",
    }
    assert isinstance(teacher(), nn.Module)
