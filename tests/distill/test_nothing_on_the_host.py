"""What a training step computes on a GPU: no tensor of it is made on the host, which a GPU would wait for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from stand_ins.on_meta import OnMeta
from stand_ins.published_teachers import write_imagedream, write_zero123plus
from stand_ins.tiny_objects import write_renders

from dd3g.cameras import Cameras
from dd3g.command.configuration import parse
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.pepd.occupancy import OccupancyNet
from dd3g.rasterizer import Render
from distill import objective as objective_module
from distill.lgm import LGM
from distill.objective import Objective, ObjectiveConfig, Verifier, direct_terms, zero_of
from distill.perceptual import VggDistance
from distill.samples.render_samples import RenderDataset, Sample
from distill.samples.renders import RenderedObjects
from distill.shape.objective import ShapeObjective
from distill.shape.samples import ShapeSample
from distill.teachers import load
from distill.teachers.compact import CompactConfig, CompactTeacher
from distill.teachers.latents import END, START
from distill.teachers.zero123plus import Zero123PlusTeacher
from distill.train import DistillConfig
from distill.train_shape import ShapeConfig
from distill.train_teacher import TeacherConfig, TeacherLoss
from tools.scale import IMAGEDREAM

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


@pytest.mark.parametrize(
    "name", ["nano", "small", pytest.param("base", marks=pytest.mark.slow), "base, compact phase 1"]
)
def test_generators_as_configured(name):
    """Forward and backward; base starts from ImageDream at its published size."""
    config = parse(["--config", name.partition(",")[0]], DistillConfig)
    shape = config.generator
    if config.start.teacher and "compact" not in name:
        shape = replace(shape, teacher=IMAGEDREAM)
    forward_and_backward(shape)


def forward_and_backward(shape):
    with torch.device("meta"):
        generator = Generator(shape)
    c = generator.config
    rig = generator.rig.to("meta")
    noise, image = (torch.empty(1, *s, device="meta") for s in (c.latent_shape, (4, c.size, c.size)))
    with OnMeta():
        made = generator(noise, rig, image)
        zero_of(*(getattr(made, f.name) for f in fields(made))).backward()
    assert made.means.is_meta
    assert all(p.grad.is_meta for p in generator.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "start", [{"lower": "low_rank", "rank": 3}, {"lower": "trained"}, {"top_only": True}]
)
def test_every_start_from_the_teacher(start):
    """As `start.` of configs/distill/base.yaml may say; "frozen" is what it says.

    A block of each kind does: `test_generators_as_configured` runs all of them.
    """
    config = parse(["--config", "base", *(f"start.{k}={v}" for k, v in start.items())], DistillConfig)
    names = ("top_only", "lower", "rank", "lower_rate")
    unet = replace(IMAGEDREAM.unet, num_res_blocks=1, channel_mult=[1, 2])
    image = replace(IMAGEDREAM.image, num_hidden_layers=2)
    vae = IMAGEDREAM.vae | {"layers_per_block": 1}
    learns = {name: getattr(config.start, name) for name in names}
    phase = replace(IMAGEDREAM, unet=unet, image=image, vae=vae, **learns)
    forward_and_backward(replace(config.generator, depth=1, blocks=(1, 1, 1), teacher=phase))


@pytest.mark.parametrize("name", ["nano", "small", "base"])
def test_teachers_as_configured(name):
    config = parse(["--config", name], TeacherConfig).teacher
    with torch.device("meta"):
        teacher = CompactTeacher(config)
    teacher = looked_up(teacher)
    image = torch.empty(1, 4, config.size, config.size, device="meta")
    x = torch.empty(1, *teacher.latent_shape, device="meta")
    cameras = Cameras.stack([teacher.rig]).to("meta")
    with OnMeta():
        condition = teacher.condition(image, cameras)
        out = teacher(x, torch.zeros(1, dtype=torch.long, device="meta"), condition)
        out.square().sum().backward()
    assert out.is_meta and all(p.grad.is_meta for p in teacher.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["nano", "small", "base"])
def test_shape_networks_as_configured(name):
    """With the terms that they are trained on."""
    config = parse(["--config", name], ShapeConfig)
    c, pixels = config.network, config.pixels
    with torch.device("meta"):
        network = OccupancyNet(c)
        image, occupancy = torch.empty(1, 4, c.size, c.size), torch.empty(1, c.bins, c.size, c.size).half()
        rays = (torch.empty(1, pixels, n) for n in (3, 3, 4))
        one = torch.empty(1, pixels)
        batch = ShapeSample(image, torch.empty(1), occupancy, *rays, one, one)
    with OnMeta():
        loss, terms = ShapeObjective(config.objective)(network, batch, 0)
        loss.backward()
    assert set(terms) == {"bce", "dice", "silhouette", "silhouette_dice", "color"} and loss.is_meta
    assert all(p.grad.is_meta for p in network.parameters())


def test_lgm_as_published():
    with torch.device("meta"):
        model = LGM().requires_grad_(False)
    with OnMeta():
        made = model(torch.empty(1, 4, 9, 256, 256, device="meta"))
    assert made.means.is_meta and made.means.shape == (1, 65_536, 3)


@pytest.mark.parametrize("kind", ["imagedream", "mvdream", "zero123plus", "compact"])
def test_a_teachers_guided_loop(kind, tmp_path, monkeypatch):
    """Pictures become a condition where they are, and the loop looks at nothing else; only words are read."""
    monkeypatch.setitem(Zero123PlusTeacher.__init__.__kwdefaults__, "size", 32)
    if kind == "compact":
        teacher = CompactTeacher(CompactConfig(**SHAPE))
    elif kind == "zero123plus":
        teacher = load(write_zero123plus(tmp_path / "zero123plus-v1.2"))
    else:
        teacher = load(write_imagedream(tmp_path / kind, ip_dim=4 if kind == "imagedream" else 0))
    teacher = looked_up(teacher)
    rgba = torch.empty(2, 4, teacher.picture_size, teacher.picture_size, device="meta")
    cameras = Cameras.stack([teacher.rig] * 2).to("meta") if kind in ("imagedream", "compact") else None
    if kind == "mvdream":
        teacher.text.tokenizer = lambda text: [START, 7, END]
        condition = teacher.condition(rgba, captions=["a cup", "a lamp"])
    else:
        teacher.condition(rgba)  # from the first call on, the empty caption is known
        with OnMeta():
            condition = teacher.condition(rgba, cameras)
    x = torch.empty(2, *teacher.latent_shape, device="meta")
    denoiser = teacher.denoiser(condition)
    plan = teacher.schedule.plan(2)
    with OnMeta(), torch.no_grad():
        for t, _ in plan:
            out = denoiser(x, torch.full((2,), t, device="meta"), condition)
        views = teacher.codec.decode(out)
        assert teacher.codec.encode(views).shape == x.shape
    assert out.shape == x.shape and views.is_meta


@pytest.fixture(scope="module")
def imagedream(tmp_path_factory):
    return write_imagedream(tmp_path_factory.mktemp("teachers") / "imagedream", image_size=16)


@pytest.mark.parametrize(
    ("kind", "form"), [("compact", "x0"), *(("imagedream", form) for form in ("x0", "score", "literal"))]
)
def test_the_whole_objective(batch, monkeypatch, imagedream, kind, form):
    """Renders, verification with all that its condition is made of, and their gradients."""

    def drawn(gaussians, cameras, background=1.0, antialiased=False):
        value = zero_of(*(getattr(gaussians, f.name) for f in fields(gaussians)))
        B, V, S = len(gaussians.means), cameras.viewmats.shape[-3], cameras.width
        return Render(*(value.expand(B, V, channels, S, S) for channels in (3, 1, 1)))

    monkeypatch.setattr(objective_module, "rasterize", drawn)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # of "meta" there is none
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(latent_shape=(4, 64, 8, 8), head_hidden=8, **SHAPE)).to("meta")
    there = batch.to("meta")
    if kind == "compact":
        teacher = CompactTeacher(CompactConfig(**SHAPE))
    else:
        teacher = load(imagedream)
    verifier = Verifier(looked_up(teacher), form, 0, 1.5)
    verifier.rig = teacher.rig.to("meta")
    teacher.condition(there.image, verifier.rig)  # from the first call on, the empty caption is known
    with torch.device("meta"):
        perceptual = MadeUpVgg()
    config = ObjectiveConfig(cover=1.0, implicit=1.0, bootstrap=0.0, implicit_form=form, perceptual=1.0)
    objective = Objective(config, 100, verifier, perceptual)
    with OnMeta():
        loss, terms = objective(generator, there, 50)
        loss.backward()
    assert {"implicit", "perceptual", "cover", "color"} <= set(terms) and loss.is_meta
    assert all(p.grad.is_meta for p in generator.parameters())


class MadeUpVgg(VggDistance):
    """Without weights, which have to be fetched."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        blocks = ([torch.nn.Conv2d(channels, 4, 3, padding=1)] for channels in (3, 4, 4, 4, 4))
        self.blocks = torch.nn.ModuleList(map(torch.nn.ModuleList, blocks))
        self.register_buffer("mean", torch.empty(3, 1, 1))


def looked_up(teacher):
    """The teacher on "meta", whose levels of noise are there, too, as from the first call on."""
    teacher = teacher.to("meta")
    teacher.schedule.ab(torch.zeros(1, dtype=torch.long, device="meta"))
    return teacher
