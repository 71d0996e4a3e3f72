"""Views without alpha, of any number and from anywhere, from the teacher to a training step."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.tiny_objects import ellipsoid, write_quadruples

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard
from dd3g.pepd import Generator, GeneratorConfig
from distill import teachers
from distill.objective import Objective, ObjectiveConfig
from distill.quadruples import Quadruple, Quadruples, decode, encode, noise_of
from distill.samples.datasets import QuadrupleDataset, check_rig, front_camera, joined, known_views
from distill.samples.render_samples import Sample
from distill.simulate import main
from distill.simulation import generate_shards
from distill.simulation.mattes import Mattes
from distill.teachers.analytic import AnalyticTeacher
from distill.teachers.compact import SpaceToDepth
from distill.train import DistillConfig, first_quadruples, training_samples

GREY = 127 / 255
AZIMUTHS, ELEVATIONS = [30, 90, 150, 210, 270, 330], [20, -10] * 3  # Zero123++'s
SIX = Cameras.orbit(AZIMUTHS, ELEVATIONS, 32, radius=2.557, fovy=30)
SIX = replace(SIX, near=1.557, far=3.557)
AXES, COLOUR = torch.tensor([0.4, 0.3, 0.5]), torch.tensor([0.9, 0.2, 0.1])


def six_views(believed=(1, 1, 0, 1, 1, 1), **meta):
    """A quadruple of six views on grey, none of them the input's."""
    rgba, _ = ellipsoid(SIX, torch.tensor([0.4, 0.3, 0.5]), torch.tensor([0.9, 0.2, 0.1]))
    front, _ = ellipsoid(
        Cameras.default_rig(32), torch.tensor([0.4, 0.3, 0.5]), torch.tensor([0.9, 0.2, 0.1])
    )
    alpha = (rgba[:, 3:] * 255).round() / 255
    views = ((rgba[:, :3] * alpha + GREY * (1 - alpha)) * 255).round() / 255
    mattes = Mattes(alpha, torch.tensor(believed).float(), torch.full((6, 3), GREY), "ground")
    noise = noise_of((6, 4, 4, 4), 3)
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0)).half().float()
    return Quadruple(noise, SIX, (front[0] * 255).round() / 255, views, {"seed": 3} | meta, latents, mattes)


def stored(sample):
    return {k: v if k == "__key__" else v.encode() if isinstance(v, str) else v for k, v in sample.items()}


def test_a_quadruple_holds_latents_mattes_and_the_seed_of_its_noise():
    q = six_views()
    sample = encode(q, "a")
    assert set(sample) == {"__key__", "input.png", "json", "latents.npy", "outputs.png"}
    assert len(sample["latents.npy"]) == 128 + 2 * 6 * 4 * 4 * 4
    back = decode(stored(sample))
    assert torch.equal(back.noise, q.noise) and torch.equal(back.latents, q.latents)
    torch.testing.assert_close(back.outputs, q.outputs)
    torch.testing.assert_close(back.mattes.alpha, q.mattes.alpha)
    torch.testing.assert_close(back.mattes.ground, q.mattes.ground, atol=1e-4, rtol=0)
    assert back.mattes.confidence.tolist() == [1, 1, 0, 1, 1, 1] and back.mattes.model == "ground"
    assert (back.cameras.near, back.cameras.far) == (1.557, 3.557)
    assert back.meta == {"seed": 3, "key": "a"}


def test_latents_of_a_published_teacher_take_32_kilobytes():
    noise, views = noise_of((4, 4, 32, 32), 0), torch.zeros(4, 3, 256, 256)
    q = Quadruple(noise, Cameras.default_rig(256), torch.zeros(4, 256, 256), views, {"seed": 0}, noise)
    assert len(encode(q, "a")["latents.npy"]) - 128 == 32 * 1024
    pixels = torch.zeros(4, 4, 64, 64)  # latents that are the views once more are not kept twice
    q = replace(q, cameras=Cameras.default_rig(64), outputs=pixels, latents=SpaceToDepth().encode(pixels))
    assert "latents.npy" not in encode(q, "a")


def test_noise_that_is_drawn_otherwise_here_is_noticed(tmp_path):
    sample = encode(six_views(), "a")
    told = json.loads(sample["json"])
    told["seed"] += 1
    write_shard(tmp_path / "a.tar", [sample | {"json": json.dumps(told)}])
    with pytest.raises(UserError, match="the noise of seed 4 is not the same here"):
        Quadruples(tmp_path)[0]
    told["noise"]["shape"] = [10**9, 10**9]
    write_shard(tmp_path / "a.tar", [sample | {"json": json.dumps(told)}])
    with pytest.raises(UserError, match="more than any teacher takes"):
        Quadruples(tmp_path)[0]


def test_noise_without_a_seed_is_stored():
    q = replace(six_views(), noise=torch.ones(6, 4, 4, 4))
    sample = encode(q, "a")
    assert "noise.npy" in sample and torch.equal(decode(stored(sample)).noise, q.noise)


def test_shards_of_before_are_still_read(tmp_path):
    """Their layout written down: noise.npy, no hash, no latents, no mattes; RGB or RGBA."""

    def png(x):
        stream = io.BytesIO()
        Image.fromarray((x * 255).round().byte().movedim(0, -1).contiguous().numpy()).save(stream, "PNG")
        return stream.getvalue()

    rig, array = Cameras.default_rig(16), io.BytesIO()
    np.save(array, noise_of((4, 64, 4, 4), 7).half().numpy())
    about = {"seed": 7, "width": 16, "height": 16, "viewmats": rig.viewmats.tolist(), "Ks": rig.Ks.tolist()}
    rest = {
        "json": json.dumps(about),
        "noise.npy": array.getvalue(),
        "input.png": png(torch.zeros(4, 16, 16)),
    }
    for channels in (3, 4):
        views = torch.full((channels, 16, 64), 0.2)
        write_shard(tmp_path / "a.tar", [{"__key__": "a", "outputs.png": png(views), **rest}])
        for q in (Quadruples(tmp_path)[0], Quadruples(tmp_path, cache=True)[0]):
            assert torch.equal(q.noise, noise_of((4, 64, 4, 4), 7)) and q.outputs.shape == (
                4,
                channels,
                16,
                16,
            )
            assert q.mattes is None and q.latents is None and q.meta == {"seed": 7, "key": "a"}
        sample = QuadrupleDataset([q], 0)[0]
        assert sample.views_known.tolist() == [1, 1, 1, 1] if channels == 4 else [1, 0, 0, 0]


def test_a_cache_keeps_mattes(tmp_path):
    write_shard(tmp_path / "a.tar", [encode(six_views(), "a")])
    plain, cached = Quadruples(tmp_path)[0], Quadruples(tmp_path, cache=True)[0]
    torch.testing.assert_close(cached.mattes.alpha, plain.mattes.alpha)
    torch.testing.assert_close(cached.outputs, plain.outputs)


def test_a_bad_matte_leaves_colour_and_takes_alpha():
    q = six_views()
    views, known, ground = known_views(q, 0.5)
    assert known.tolist() == [1, 1, 0, 1, 1, 1]
    torch.testing.assert_close(views[2, :3], q.outputs[2])
    assert (views[2, 3] == 1).all() and (ground == torch.tensor(GREY)).all()
    torch.testing.assert_close(views[1, 3:], q.mattes.alpha[1])
    inside = q.mattes.alpha[1, 0] > 0.9
    over_grey = views[1, :3] * views[1, 3] + GREY * (1 - views[1, 3])
    assert inside.any() and (over_grey - q.outputs[1]).abs().max() < 0.02


def test_six_views_none_of_them_the_inputs():
    dataset = QuadrupleDataset([six_views(elevation=25.0)], 0, targets=7)
    sample = dataset[0]
    front = Cameras.orbit([0.0], 25.0, 32)
    assert torch.equal(sample.target_cameras.viewmats[0], front.viewmats[0])
    assert torch.equal(sample.target_cameras.viewmats[1:], SIX.viewmats) and len(sample.rig) == 6
    assert (sample.target_cameras.near, sample.target_cameras.far) == (0.5, 3.557)
    assert torch.equal(sample.targets[0], sample.image) and torch.equal(sample.targets[1:], sample.views)
    assert sample.targets_known.tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert (sample.background[3] == torch.tensor(GREY)).all()
    assert (sample.background[[1, 2, 4]] == sample.background[0]).all()
    few = QuadrupleDataset([six_views()], 0, targets=3)
    shown = {tuple(few[i].target_cameras.azimuths[1:].rad2deg().round().tolist()) for i in range(20)}
    assert len(shown) > 5  # other ones of the six each time, the input's always first
    assert front_camera(six_views())[0].positions[0, 1] == pytest.approx(
        1.5 * np.sin(np.deg2rad(10)), abs=1e-5
    )


def test_views_and_picture_of_other_sizes_are_resized():
    q = six_views()
    sample = QuadrupleDataset([replace(q, input=torch.ones(4, 64, 64))], 0, size=16)[0]
    assert sample.image.shape == (4, 16, 16) and sample.views.shape == (6, 4, 16, 16)
    torch.testing.assert_close(sample.rig.Ks[0, 0, 0], SIX.Ks[0, 0, 0] / 2)


def test_a_generator_says_which_rig_it_would_need(tmp_path):
    dataset = QuadrupleDataset([six_views()], 0)
    plain = GeneratorConfig(size=32, latent_shape=(6, 4, 4, 4))
    with pytest.raises(
        UserError, match=r"azimuths=\[30,90,150,210,270,330\] .*=\[20,-10,20,-10,20,-10\] .*2.557"
    ):
        check_rig(dataset, plain)
    fitting = replace(
        plain, azimuths=[30, 90, 150, 210, 270, 330], elevations=[20, -10] * 3, distance=2.557, fovy=30
    )
    check_rig(dataset, fitting)
    torch.testing.assert_close(fitting.rig_at(10.0).viewmats, SIX.viewmats)
    # One elevation of all views is the input's.
    level = QuadrupleDataset(Quadruples(write_quadruples(tmp_path)), 0)
    own = GeneratorConfig(size=32, latent_shape=(4, 64, 8, 8))
    check_rig(level, own)
    with pytest.raises(UserError, match=r"elevations=\[\] "):
        check_rig(level, replace(own, elevations=[30.0] * 4))
    with pytest.raises(ValueError, match="azimuths"):
        replace(plain, azimuths=[0.0, 90.0])


def test_sets_of_teachers_that_do_not_go_together(tmp_path):
    """The one that does not fit is named before the first step, wherever it stands in the list."""
    four = write_quadruples(tmp_path / "four")
    six = tmp_path / "six"
    six.mkdir()
    write_shard(six / "quadruples-00-00000.tar", [encode(six_views(), "0_0")])
    turned = tmp_path / "turned"
    turned.mkdir()
    one = Quadruples(four)[0]
    other = replace(one, cameras=Cameras.orbit([0, 60, 120, 180], 10.0, one.cameras.width))
    write_shard(turned / "quadruples-00-00000.tar", [encode(other, "0_0")])
    generator = GeneratorConfig(size=32, latent_shape=tuple(one.noise.shape))

    def samples(*sets):
        return training_samples(DistillConfig(quadruples=[str(s) for s in sets], generator=generator))

    samples(four, four)
    for sets in ((four, six), (six, four)):
        with pytest.raises(UserError, match="six has 6 pictures of 32 pixels"):
            samples(*sets)
    with pytest.raises(UserError, match="the views of .*turned are not those that this generator imagines"):
        samples(four, turned)


def test_a_shard_of_another_teacher_within_a_set_is_named(tmp_path):
    four = write_quadruples(tmp_path / "four")
    write_shard(four / "quadruples-99-00000.tar", [encode(six_views(), f"99_{i}") for i in range(3)])
    generator = GeneratorConfig(size=32, latent_shape=tuple(Quadruples(four)[0].noise.shape))
    dataset = training_samples(DistillConfig(quadruples=[str(four)], generator=generator))
    said = []
    for i in range(12):
        try:
            assert len(dataset[i].views) == 4
        except UserError as error:
            said.append(str(error))
    assert 0 < len(said) < 12
    assert all("99-00000.tar is of another teacher (6 views, noise (6, " in words for words in said)
    assert first_quadruples(dataset) is not None


TINY = dict(width=32, depth=1, heads=2, residual_hidden=8, fine=8, mid=16, head_hidden=8)


def test_a_step_on_six_views(tmp_path):
    """Gaussians lie around the origin, and alpha is asked of no view whose matte is bad."""
    rig = dict(azimuths=AZIMUTHS, elevations=ELEVATIONS, distance=2.557, fovy=30)
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(size=32, latent_shape=(6, 4, 4, 4), **rig, **TINY))
    bad = six_views()
    batch = Sample.collate([QuadrupleDataset([bad], 0, targets=7)[i] for i in range(2)])
    gaussians = model(batch.noise, batch.rig, batch.image, front=batch.target_cameras[:, 0])
    assert gaussians.means.norm(dim=-1).max() < 1.6
    objective = Objective(ObjectiveConfig(bootstrap=0.0, alpha=1.0, cover=1.0), 10)
    loss, terms = objective(model, batch, 0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # Another alpha of the view that is not believed changes nothing.
    alpha = bad.mattes.alpha.clone()
    alpha[2] = 1 - alpha[2]
    other = replace(bad, mattes=replace(bad.mattes, alpha=alpha))
    again = Sample.collate([QuadrupleDataset([other], 0, targets=7)[i] for i in range(2)])
    _, same = objective(model, again, 0)
    assert all(float(same[k]) == pytest.approx(float(terms[k]), rel=1e-6) for k in terms)
    # Its colour does.
    outputs = bad.outputs.clone()
    outputs[2] = 1 - outputs[2]
    again = Sample.collate(
        [QuadrupleDataset([replace(bad, outputs=outputs)], 0, targets=7)[i] for i in range(2)]
    )
    _, changed = objective(model, again, 0)
    assert float(changed["color"]) > 1.01 * float(terms["color"])
    assert float(changed["alpha"]) == pytest.approx(float(terms["alpha"]), rel=1e-6)
    picture = torch.zeros(4, 32, 32)
    picture[:, 8:24, 8:24] = 1
    found = model.generate(picture, raw=True)
    assert found.means.isfinite().all()


class GreyCodec(SpaceToDepth):
    """Views without alpha; the ground of the fourth one is not of one colour."""

    def decode(self, latent):
        rgba = super().decode(latent)
        alpha = rgba[..., 3:, :, :]
        rgb = rgba[..., :3, :, :] * alpha + GREY * (1 - alpha)
        ramp = torch.linspace(0, 1, rgb.shape[-1])
        rgb[:, 3] = rgba[:, 3, :3] * alpha[:, 3] + ramp * (1 - alpha[:, 3])
        return rgb


class OnGrey(AnalyticTeacher):
    """An analytic teacher that draws without alpha."""

    draws_alpha = False
    background = GREY

    def __init__(self, config=None):
        super().__init__(config)
        self.codec = GreyCodec()


@pytest.fixture
def on_grey(monkeypatch, tmp_path):
    monkeypatch.setitem(teachers.CLASSES, "analytic", OnGrey)
    folder = tmp_path / "teacher"
    folder.mkdir()
    about = {"kind": "teacher", "teacher": "analytic", "size": 32, "modes": 1, "steps": 4, "spread": 0.01}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def picture(path):
    y, x = np.mgrid[:64, :64] - 31.5
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 220, 255 * (x**2 / 600 + y**2 / 400 < 1)
    Image.fromarray(rgba).save(path)


def test_a_set_most_of_whose_mattes_fail_says_so(on_grey, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in/a.png")
    words = [str(tmp_path / "in"), "--teacher", str(on_grey), "--device", "cpu", "--seeds", "1"]
    monkeypatch.setattr(generate_shards, "BELIEVED", 1.01)
    assert main([*words, "-o", str(tmp_path / "set"), "--view-matte", "ground"]) == 0
    assert "warning: 4 of 4 views have a matte of confidence below 0.5" in capsys.readouterr().err
    assert main([*words, "-o", str(tmp_path / "without"), "--view-matte", "none"]) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
def test_simulate_stores_mattes_and_training_takes_them(on_grey, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in/a.png")
    command = [
        str(tmp_path / "in"),
        "--teacher",
        str(on_grey),
        "-o",
        str(tmp_path / "set"),
        "--device",
        "cpu",
    ]
    assert main([*command, "--seeds", "1", "--view-matte", "ground"]) == 0
    assert json.loads((tmp_path / "set/simulate.json").read_text())["view_matte"] == "ground"
    (raw,) = Shards(tmp_path / "set")
    assert "noise.npy" not in raw and json.loads(raw["json"])["noise"]["shape"] == [4, 64, 8, 8]
    (q,) = Quadruples(tmp_path / "set")
    assert q.outputs.shape == (4, 3, 32, 32) and q.mattes.model == "ground"
    assert (q.mattes.confidence > 0.5).tolist() == [True, True, True, False]
    assert "warning" not in capsys.readouterr().err
    assert (q.mattes.ground[:3] - GREY).abs().max() < 0.01
    sample = QuadrupleDataset([q], 0)[0]
    assert sample.views_known.tolist() == [1, 1, 1, 0]
    assert main([*command, "--seeds", "1", "--view-matte", "none"]) == 2  # another set
    assert "view_matte ground (now none)" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "set"), "--device", "cpu", "--teacher", str(on_grey)]) == 0


@pytest.mark.slow
def test_a_captions_first_view_is_cut_out_as_the_input(on_grey, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OnGrey, "sees_picture", False)
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in/a.png")
    command = [str(tmp_path / "in"), "--teacher", str(on_grey), "--seeds", "1", "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "set"), "--view-matte", "ground"]) == 0
    (q,) = Quadruples(tmp_path / "set")
    assert (q.input[3] == 0).float().mean() > 0.3 and (q.input[3] == 1).any()
    monkeypatch.setattr("distill.simulation.generate_shards.BELIEVED", 1.1)
    assert main([*command, "-o", str(tmp_path / "other"), "--view-matte", "ground"]) == 1
    assert "stands out too little" in capsys.readouterr().err


def test_cameras_are_joined():
    both = joined(Cameras.default_rig(32), SIX)
    assert len(both) == 10 and (both.near, both.far) == (0.5, 3.557)
    assert torch.equal(both.Ks[4:], SIX.Ks)
