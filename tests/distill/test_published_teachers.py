"""ImageDream, MVDream and Zero123++, small and untrained: what decides their views."""

from __future__ import annotations

import shutil
import sys
import types

import pytest
import torch
from PIL import Image
from stand_ins.published_teachers import pictures

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from distill.simulation.ode import simulate
from distill.teachers import load
from distill.teachers.latents import END, START, TextEncoder
from distill.teachers.zero123plus import Zero123PlusTeacher


def noise(teacher, batch, seed=0):
    return torch.randn(batch, *teacher.latent_shape, generator=torch.Generator().manual_seed(seed))


def test_the_front_is_the_input_and_azimuths_count_from_it(imagedream):
    assert imagedream.rig.azimuths.rad2deg().tolist() == pytest.approx([0, 90, 180, -90], abs=1e-4)
    codes = imagedream.condition(pictures(1, 16)).codes[0]
    # Their world has z up, and the picture is taken from +x; columns are right, up, backwards and the place.
    front = torch.tensor([[0.0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert torch.allclose(codes[0].reshape(4, 4), front, atol=1e-6)
    assert codes[1].reshape(4, 4)[:3, 3].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert codes[4].abs().max() == 0  # the clean frame


def test_cameras_of_zero123plus(folders, zero123plus, tmp_path, capsys):
    rig = zero123plus.rig
    azimuths = rig.azimuths.rad2deg() % 360
    assert azimuths.tolist() == pytest.approx([30, 90, 150, 210, 270, 330], abs=1e-3)
    heights = rig.positions[:, 1] / rig.positions.norm(dim=-1)
    assert heights.asin().rad2deg().tolist() == pytest.approx([30, -20] * 3, abs=1e-3)
    # As large on screen as in the project's own rig, and inside its depth range.
    own = Cameras.default_rig(320)
    assert rig.Ks[0, 0, 0] / 2.557 == pytest.approx(float(own.Ks[0, 0, 0]) / 1.5, rel=1e-3)
    assert rig.near < 2.557 - 0.9 and rig.far > 2.557 + 0.9
    shutil.copytree(folders["zero123plus"], tmp_path / "release-v1.1" / "a")
    capsys.readouterr()
    later = load(tmp_path / "release-v1.1" / "a")
    assert capsys.readouterr().err.count("a is taken for Zero123++ v1.2") == 1
    heights = later.rig.positions[:, 1] / later.rig.positions.norm(dim=-1)
    assert heights.asin().rad2deg().tolist() == pytest.approx([20, -10] * 3, abs=1e-3)
    assert later.fingerprint != zero123plus.fingerprint
    with pytest.raises(UserError, match="its own cameras alone"):
        later.condition(pictures(1, 16), Cameras.default_rig(320, 6))


def test_a_batch_equals_single_runs(imagedream, mvdream):
    for teacher in (imagedream, mvdream):
        rgba, x, captions = pictures(3, 16), noise(teacher, 3), ["a cat", "three red stools", "lamp"]
        cameras = Cameras.stack([teacher.rig_at(e) for e in (0.0, 20.0, -10.0)])
        batch = simulate(teacher, rgba, x, 2, 4.0, cameras, captions)
        assert batch.outputs.shape == (3, 4, 3, 16, 16)
        for b in range(3):
            one = simulate(
                teacher, rgba[b : b + 1], x[b : b + 1], 2, 4.0, cameras[b : b + 1], captions[b : b + 1]
            )
            assert torch.allclose(one.outputs[0], batch.outputs[b], atol=2e-5)
        again = simulate(teacher, rgba, x, 2, 4.0, cameras, captions)
        assert torch.equal(again.outputs, batch.outputs)


@pytest.fixture
def small_canvas(monkeypatch):
    monkeypatch.setitem(Zero123PlusTeacher.__init__.__kwdefaults__, "size", 16)


def test_a_batch_equals_single_runs_of_zero123plus(folders, small_canvas):
    teacher = load(folders["zero123plus"])
    rgba, x = pictures(2, 16), noise(teacher, 2)
    batch = simulate(teacher, rgba, x, 2, 4.0)
    assert batch.outputs.shape == (2, 6, 3, 16, 16)
    for b in range(2):
        one = simulate(teacher, rgba[b : b + 1], x[b : b + 1], 2, 4.0)
        assert torch.allclose(one.outputs[0], batch.outputs[b], atol=2e-5)


def test_picture_caption_elevation_and_noise_decide(imagedream):
    rgba, x = pictures(1, 16), noise(imagedream, 1)
    rig = imagedream.rig
    base = simulate(imagedream, rgba, x, 2, 5.0, rig, ["a cat"]).outputs
    others = {
        "picture": simulate(imagedream, pictures(1, 16, 1), x, 2, 5.0, rig, ["a cat"]).outputs,
        "caption": simulate(imagedream, rgba, x, 2, 5.0, rig, ["chair"]).outputs,
        "elevation": simulate(imagedream, rgba, x, 2, 5.0, imagedream.rig_at(20), ["a cat"]).outputs,
        "noise": simulate(imagedream, rgba, noise(imagedream, 1, 1), 2, 5.0, rig, ["a cat"]).outputs,
    }
    for name, other in others.items():
        assert (other - base).abs().mean() > 1e-4, name
    assert torch.equal(simulate(imagedream, rgba, x, 2, 5.0, rig, ["a cat"]).outputs, base)


def test_frames_are_a_set(imagedream):
    """Permuted views and cameras give permuted predictions; the clean frame is told by its camera alone."""
    x, order = noise(imagedream, 1), torch.tensor([2, 0, 3, 1])
    t = torch.tensor([500])
    straight = imagedream(x, t, imagedream.condition(pictures(1, 16)))
    mixed = imagedream(x[:, order], t, imagedream.condition(pictures(1, 16), imagedream.rig[order]))
    assert torch.allclose(mixed, straight[:, order], atol=1e-5)


def test_the_unconditional_half_sees_nothing_of_the_picture(imagedream):
    first, second = (imagedream.condition(pictures(1, 16, s), None, [c]) for s, c in ((0, "a"), (1, "chair")))
    x, t = noise(imagedream, 1), torch.tensor([300])
    assert torch.equal(imagedream(x, t, first.null()), imagedream(x, t, second.null()))
    assert not torch.equal(imagedream(x, t, first), imagedream(x, t, second))
    guided = imagedream.denoiser(first, 5.0)(x, t, first)
    u, c = imagedream(x, t, first.null()), imagedream(x, t, first)
    assert torch.allclose(guided, u + 5 * (c - u), atol=1e-5)
    assert imagedream.denoiser(first, 1.0) is imagedream


def test_what_does_not_change_is_computed_once(folders, small_canvas):
    """A picture's part once a picture; the empty caption and the unconditional half once altogether."""

    def counted(modules, run):
        calls = []
        hooks = [m.register_forward_hook(lambda *_: calls.append(1)) for m in modules]
        run()
        for hook in hooks:
            hook.remove()
        return len(calls)

    imagedream = load(folders["imagedream"])
    cross = [b.attn2.to_k for t in imagedream.unet.transformers() for b in t.transformer_blocks]
    cross += [b.attn2.to_v_ip for t in imagedream.unet.transformers() for b in t.transformer_blocks]
    once = [imagedream.image, imagedream.text.encoder, imagedream.unet.image_embed]
    rgba, x = pictures(2, 16), noise(imagedream, 2)
    assert counted([*once, *cross], lambda: simulate(imagedream, rgba, x, 3)) == 4 + 2 * len(cross)
    assert counted([*once, *cross], lambda: simulate(imagedream, rgba, x, 3)) == 2 + len(cross)
    teacher = load(folders["zero123plus"])
    cross = [m.to_k for n, m in teacher.unet.named_modules() if n.endswith("attn2")]
    cross += [teacher.image, teacher.text.encoder]
    assert counted(cross, lambda: simulate(teacher, rgba, noise(teacher, 2), 3)) == 2 * len(cross) - 2
    assert counted(cross, lambda: simulate(teacher, rgba, noise(teacher, 2), 3)) == len(cross) - 1


def test_the_codec_takes_the_mode(imagedream, zero123plus, monkeypatch):
    rgba = pictures(5, 16)
    latent = imagedream.codec.encode(rgba[None])
    assert latent.shape == (1, 5, 4, 8, 8)
    over_white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    posterior = imagedream.codec.vae.encode(2 * over_white - 1).latent_dist
    assert posterior.std.min() > 0 and torch.allclose(latent[0], 0.18215 * posterior.mean, atol=1e-6)
    monkeypatch.setattr("distill.teachers.latents.AT_ONCE", 2)
    assert torch.allclose(imagedream.codec.encode(rgba[None]), latent, atol=1e-6)
    views = imagedream.codec.decode(latent)
    assert views.shape == (1, 5, 3, 16, 16) and 0 <= views.min() and views.max() <= 1
    expected = imagedream.codec.vae.decode(latent[0] / 0.18215).sample / 2 + 0.5
    assert torch.allclose(views[0], expected.clamp(0, 1), atol=1e-5)
    six = zero123plus.codec.encode(pictures(6, 16)[None])
    assert six.shape == (1, 6, 4, 8, 8)
    assert zero123plus.codec.decode(six).shape == (1, 6, 3, 16, 16)


def test_the_codec_sees_squares(imagedream):
    """Also of a picture that is as wide as they are, and higher: the authors resize both sides."""
    high = pictures(1, 16).repeat_interleave(2, 2)
    assert torch.allclose(
        imagedream.codec.encode(high), imagedream.codec.encode(high[..., ::2, :]), atol=1e-6
    )


def test_a_canvas_is_three_rows_of_two():
    from distill.teachers.zero123plus import joined, parted

    views = torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(1, 6, 2, 2, 3)
    canvas = joined(views)
    assert canvas.shape == (1, 2, 6, 6)
    assert canvas[0, 1, ::2, ::3].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(parted(canvas), views)


def test_another_number_format(folders, imagedream):
    half = load(folders["imagedream"], precision="bfloat16")
    assert half.unet.dtype == torch.bfloat16 and half.fingerprint != imagedream.fingerprint
    rgba, x = pictures(1, 16), noise(half, 1)
    a, b = (simulate(t, rgba, x, 2, 1.0).outputs for t in (imagedream, half))
    assert b.dtype == torch.float32 and 0 < (a - b).abs().mean() < 0.05
    with pytest.raises(UserError, match="float16 needs a GPU"):
        load(folders["imagedream"], precision="float16")
    with pytest.raises(UserError, match="'int8' is unknown"):
        load(folders["imagedream"], precision="int8")


def test_xformers_where_it_is_asked_for(folders, small_canvas, monkeypatch, capsys):
    """A stand-in with xformers' own order of dimensions, and plain softmax inside."""
    calls = []

    def attention(q, k, v):
        calls.append(q.shape)
        weights = torch.einsum("blhd,bmhd->bhlm", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhlm,bmhd->blhd", weights.softmax(-1), v)

    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(
        sys.modules, "xformers.ops", types.SimpleNamespace(memory_efficient_attention=attention)
    )
    for kind in ("imagedream", "zero123plus"):
        plain, other = load(folders[kind]), load(folders[kind], attention="xformers")
        calls.clear()
        rgba, t = pictures(1, plain.picture_size), torch.tensor([500])
        x = noise(plain, 1)
        wanted = plain(x, t, plain.condition(rgba))
        assert not calls
        assert torch.allclose(other(x, t, other.condition(rgba)), wanted, atol=1e-5) and len(calls) > 4


def test_xformers_that_cannot_be_used(folders, teacher, tmp_path, monkeypatch, capsys):
    from distill.simulate import main

    monkeypatch.setitem(sys.modules, "xformers", None)  # not installed
    words = [str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu", "--attention"]
    pictures_ = tmp_path / "a.png"
    Image.new("RGBA", (16, 16), (200, 0, 0, 90)).save(pictures_)
    for name, kind, message in (
        ("xformers", folders["imagedream"], "attention xformers cannot be used here ("),
        ("flash", folders["imagedream"], "attention 'flash' is unknown: give sdpa or xformers"),
        ("xformers", teacher, "attends by torch's own kernels: leave the attention out"),
    ):
        assert main([*words, name, "--teacher", str(kind)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_captions(imagedream, mvdream, folders):
    with pytest.raises(UserError, match="give each picture a caption"):
        mvdream.condition(pictures(2, 16), None, ["a", ""])
    with pytest.raises(UserError, match="no tokenizer"):
        load(folders["imagedream"]).condition(pictures(1, 16), None, ["a chair"])
    asked = []
    mvdream.text.tokenizer, kept = lambda text: asked.append(text) or [START, 5, END], mvdream.text.tokenizer
    mvdream.condition(pictures(2, 16), None, ["a cat", "a dog, 3d asset"])
    mvdream.text.tokenizer = kept
    assert asked == ["a cat, 3d asset", "a dog, 3d asset"]
    ids = TextEncoder(torch.nn.Identity(), lambda text: [START, *range(100), END]).ids(["long", ""])
    assert ids.shape == (2, 77) and ids[0, -1] == END and ids[0, 75] == 74
    assert ids[1].tolist() == [START, END] + [0] * 75
    drawn = simulate(mvdream, torch.zeros(1, 4, 16, 16), noise(mvdream, 1), 2, captions=["cat"])
    assert torch.equal(drawn.input[:, :3], drawn.outputs[:, 0]) and drawn.input[:, 3].min() == 1
