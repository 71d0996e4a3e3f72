from __future__ import annotations

import json
import math
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_ins.published_teachers import write_imagedream, write_zero123plus

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from distill.ode import simulate
from distill.teachers import load
from distill.teachers.encoders import END, START, TextEncoder
from distill.teachers.published import find_source

UNET = "unet/diffusion_pytorch_model.safetensors"
IMAGE = "image_encoder/model.safetensors"
LEVELS = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {
        "imagedream": write_imagedream(root / "imagedream"),
        "mvdream": write_imagedream(root / "mvdream", ip_dim=0),
        "zero123plus": write_zero123plus(root / "zero123plus-v1.1"),
    }


@pytest.fixture(scope="module")
def imagedream(folders):
    return with_words(load(folders["imagedream"]))


@pytest.fixture(scope="module")
def mvdream(folders):
    return with_words(load(folders["mvdream"]))


@pytest.fixture(scope="module")
def zero123plus(folders):
    return load(folders["zero123plus"])


def with_words(teacher):
    """Words are numbers in these tests."""
    teacher.text.tokenizer = lambda text: [START, *(1000 + len(w) for w in text.split()), END]
    return teacher


def pictures(count, size, seed=0):
    rgba = torch.rand(count, 4, size, size, generator=torch.Generator().manual_seed(seed))
    return (rgba * 255).round() / 255


def noise(teacher, batch, seed=0):
    return torch.randn(batch, *teacher.latent_shape, generator=torch.Generator().manual_seed(seed))


def test_what_a_folder_is(imagedream, mvdream, zero123plus):
    assert [t.about["teacher"] for t in (imagedream, mvdream, zero123plus)] == [
        "imagedream",
        "mvdream",
        "zero123plus",
    ]
    assert imagedream.latent_shape == mvdream.latent_shape == (4, 4, 8, 8)
    assert zero123plus.latent_shape == (6, 4, 160, 160)  # views of 320 pixels, halved by this VAE
    assert imagedream.about["licence"] == "openrail" and zero123plus.about["licence"] == "unknown"
    assert imagedream.picture_size == imagedream.rig.width == 16
    assert imagedream.schedule.plan(50)[0][0] == 981 and imagedream.schedule.plan(30)[0][0] == 958
    assert zero123plus.schedule.plan(50)[0][0] == 999 and zero123plus.schedule.ab(-1) == 1
    assert not any(p.requires_grad for p in imagedream.parameters())
    assert not imagedream.train().training


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
        batch = simulate(teacher, rgba, x, 3, 4.0, cameras, captions)
        assert batch.outputs.shape == (3, 4, 3, 16, 16)
        for b in range(3):
            one = simulate(
                teacher, rgba[b : b + 1], x[b : b + 1], 3, 4.0, cameras[b : b + 1], captions[b : b + 1]
            )
            assert torch.allclose(one.outputs[0], batch.outputs[b], atol=2e-5)
        again = simulate(teacher, rgba, x, 3, 4.0, cameras, captions)
        assert torch.equal(again.outputs, batch.outputs)


def small(zero123plus):
    zero123plus.size = 16
    return zero123plus


def test_a_batch_equals_single_runs_of_zero123plus(zero123plus):
    teacher = small(zero123plus)
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


def test_what_does_not_change_is_computed_once(imagedream, zero123plus):
    def counted(modules, run):
        calls = []
        hooks = [m.register_forward_hook(lambda *_: calls.append(1)) for m in modules]
        run()
        for hook in hooks:
            hook.remove()
        return len(calls)

    cross = [b.attn2.to_k for t in imagedream.unet.transformers() for b in t.transformer_blocks]
    cross += [b.attn2.to_v_ip for t in imagedream.unet.transformers() for b in t.transformer_blocks]
    once = [imagedream.image, imagedream.text.encoder]
    rgba, x = pictures(2, 16), noise(imagedream, 2)
    assert counted(once, lambda: simulate(imagedream, rgba, x, 3)) == len(once)
    # Of the condition and of the unconditional half.
    assert counted(cross, lambda: simulate(imagedream, rgba, x, 3)) == 2 * len(cross)
    assert counted([imagedream.unet.image_embed], lambda: simulate(imagedream, rgba, x, 3)) == 2
    teacher = small(zero123plus)
    cross = [m.to_k for n, m in teacher.unet.named_modules() if n.endswith("attn2")]
    assert counted(cross, lambda: simulate(teacher, rgba, noise(teacher, 2), 3)) == 2 * len(cross)


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


def test_a_canvas_is_three_rows_of_two():
    from distill.teachers.zero123plus import joined, parted

    views = torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(1, 6, 2, 2, 3)
    canvas = joined(views)
    assert canvas.shape == (1, 2, 6, 6)
    assert canvas[0, 1, ::2, ::3].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(parted(canvas), views)


def test_the_ground_under_a_condition_picture(zero123plus, folders, tmp_path, monkeypatch):
    clear = torch.zeros(1, 4, 16, 16)
    grey = torch.cat([torch.full((1, 3, 16, 16), 127 / 255), torch.ones(1, 1, 16, 16)], 1)
    a, b = zero123plus.condition(clear), zero123plus.condition(grey)
    assert torch.equal(a.latent, b.latent)
    assert zero123plus.background == pytest.approx(127 / 255)
    white = white_teacher(folders, tmp_path, monkeypatch)
    a = white.condition(clear)
    b = white.condition(torch.ones_like(clear))
    assert torch.equal(a.latent, b.latent) and white.background == 1


def white_teacher(folders, tmp_path, monkeypatch, state=None):
    """Zero123++ with another U-Net, which lies in a pickle of tensors."""
    network = tmp_path / "instantmesh"
    network.mkdir(exist_ok=True)
    state = (
        {k: 1.5 * v for k, v in load_file(folders["zero123plus"] / UNET).items()} if state is None else state
    )
    torch.save(state, network / "diffusion_pytorch_model.bin")
    homes = {"zero123plus": folders["zero123plus"], "zero123plus-white": network}
    for name, folder in homes.items():
        from dd3g.hub_models import HUB_MODELS

        monkeypatch.setitem(HUB_MODELS, name, pinned(HUB_MODELS[name], folder))
    return load("zero123plus-white")


def pinned(model, folder):
    class Here(type(model)):
        def fetch(self):
            return folder

    return Here(**vars(model))


def test_the_unet_of_the_white_ground(folders, tmp_path, monkeypatch, zero123plus):
    white = white_teacher(folders, tmp_path, monkeypatch)
    name = "conv_in.weight"
    assert torch.equal(white.unet.get_parameter(name), 1.5 * zero123plus.unet.get_parameter(name))
    assert white.about["licence"] == "CC-BY-NC-4.0" and white.about["unet_licence"] == "Apache-2.0"
    assert "commercial" in white.about["notice"] and white.fingerprint != zero123plus.fingerprint


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never-made-by-a-pickle"),))


def test_code_in_a_pickle_is_never_run(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no weights of this network"):
        white_teacher(folders, tmp_path, monkeypatch, {"conv_in.weight": Evil()})
    assert not Path("/tmp/never-made-by-a-pickle").exists()


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


def test_xformers_where_it_is_asked_for(folders, monkeypatch, capsys):
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
        if kind == "zero123plus":
            for teacher in (plain, other):
                teacher.size = 16
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


def test_a_fingerprint_is_of_the_weights(folders, imagedream, tmp_path):
    copy = shutil.copytree(folders["imagedream"], tmp_path / "copy")
    assert load(copy).fingerprint == imagedream.fingerprint == load(copy, elevation=30).fingerprint
    state = load_file(copy / UNET)
    state["out.2.bias"] += 1
    save_file(state, copy / UNET)
    assert load(copy).fingerprint != imagedream.fingerprint


def broken(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "broken")
    change(copy)
    return copy


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def less(path):
    state = load_file(path)
    state.pop(sorted(state)[3])
    save_file(state, path)


def with_side(folder, size):
    part = folder / "feature_extractor_vae"
    part.mkdir(exist_ok=True)
    (part / "preprocessor_config.json").write_text(json.dumps({"crop_size": size}))


FAULTS = {
    "part missing": ("imagedream", lambda f: shutil.rmtree(f / "vae"), "vae must hold its weights"),
    "config missing": ("imagedream", lambda f: (f / "unet/config.json").unlink(), "config.json is missing"),
    "pickle": (
        "imagedream",
        lambda f: (f / UNET).rename(f / "unet/model.bin"),
        "pickles, which are not read",
    ),
    "pointer": (
        "imagedream",
        lambda f: (f / UNET).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run `git lfs pull`",
    ),
    "torn": ("imagedream", lambda f: (f / UNET).write_bytes(b"123"), "not a complete safetensors file"),
    "other shape": (
        "imagedream",
        lambda f: edited(f / "unet/config.json", model_channels=64),
        "does not fit its config",
    ),
    "unknown option": ("imagedream", lambda f: edited(f / "unet/config.json", ip_weight=0.5), "ip_weight"),
    "tensor missing": ("imagedream", lambda f: less(f / UNET), "1 tensors differ"),
    "encoder's tensor": (
        "imagedream",
        lambda f: less(f / "image_encoder/model.safetensors"),
        "lacks 1 tensors",
    ),
    "no ramp": ("zero123plus", lambda f: (f / "model_index.json").write_text("{}"), "ramping_coefficients"),
    "words in the ramp": (
        "zero123plus",
        lambda f: edited(f / "model_index.json", ramping_coefficients=["a"] * 77),
        "ramping_coefficients",
    ),
    "weights are a folder": (
        "mvdream",
        lambda f: ((f / UNET).unlink(), (f / UNET).mkdir()),
        "cannot be read",
    ),
    "width in words": (
        "mvdream",
        lambda f: edited(f / "unet/config.json", model_channels="32"),
        "unet/config.json describes no network",
    ),
    "odd width": ("mvdream", lambda f: edited(f / "unet/config.json", model_channels=33), "describes no net"),
    "no levels": ("mvdream", lambda f: (f / LEVELS).write_text("{}"), "has no beta_schedule"),
    "odd levels": ("mvdream", lambda f: edited(f / LEVELS, beta_schedule="odd"), "describes no noise levels"),
    "levels in words": ("mvdream", lambda f: edited(f / LEVELS, beta_start="x"), "describes no noise levels"),
    "levels of Zero123++": (
        "imagedream",
        lambda f: edited(f / LEVELS, prediction_type="v_prediction"),
        "says prediction_type 'v_prediction', this teacher's is 'epsilon'",
    ),
    "levels of ImageDream": (
        "zero123plus",
        lambda f: edited(f / LEVELS, prediction_type="epsilon"),
        "says prediction_type 'epsilon', this teacher's is 'v_prediction'",
    ),
    "side in words": ("zero123plus", lambda f: with_side(f, "x"), "crop_size 'x' is not a side in pixels"),
    "no side": ("zero123plus", lambda f: with_side(f, {"width": 224}), "is not a side in pixels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder(fault, folders, tmp_path):
    kind, change, message = FAULTS[fault]
    with pytest.raises(UserError, match=message):
        load(broken(folders[kind], tmp_path, change))


def test_names(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("imagedream", "someone/something", "someone/something@v2"):
        with pytest.raises(UserError, match=f"{name}: no such folder, and the hub did not give"):
            load(name)
    assert find_source("nonsense") is None and find_source(tmp_path) is None
    with pytest.raises(UserError, match="a published one \\(imagedream, mvdream, zero123plus"):
        load("nonsense")
    with pytest.raises(UserError, match="leave the elevation out"):
        load("analytic", elevation=3.0)
    with pytest.raises(UserError, match="leave the elevation out"):
        load(folders["zero123plus"], elevation=3.0)
    assert load(folders["imagedream"], elevation=30.0).rig.positions[0, 1] == pytest.approx(
        1.5 * math.sin(math.radians(30))
    )


def test_licences_of_known_folders(folders, tmp_path):
    commit = "a" * 40
    place = tmp_path / "models--sudo-ai--zero123plus-v1.2" / "snapshots" / commit
    shutil.copytree(folders["zero123plus"], place)
    source = find_source(place)
    assert source.licence == "CC-BY-NC-4.0" and source.revision == commit and "commercial" in source.notice
    assert load(place).about["revision"] == commit


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["imagedream"])
def test_the_command_makes_quadruples_and_tells_the_licence(kind, folders, tmp_path, capsys, monkeypatch):
    from dd3g.io.shards import write_shard
    from distill import simulate as command
    from distill.quadruples import Quadruples

    monkeypatch.setattr(
        "distill.teachers.mvdream.load_tokenizer", lambda _: lambda text: [START, 7 + len(text), END]
    )
    samples = []
    for i, caption in enumerate(("a cat", "a chair")):
        from dd3g.picture import Picture

        picture = pictures(1, 16, i)[0]
        Picture(picture).save(tmp_path / "p.png")
        png = (tmp_path / "p.png").read_bytes()
        samples.append({"__key__": str(i), "png": png, "json": json.dumps({"prompt": caption})})
    (tmp_path / "p.png").unlink()
    (tmp_path / "pictures").mkdir()
    write_shard(tmp_path / "pictures" / "pictures-00000.tar", samples)
    words = [str(tmp_path / "pictures"), "--teacher", str(folders[kind]), "-o", str(tmp_path / "out")]
    words += ["--steps", "2", "--seeds", "1", "--device", "cpu"]
    assert command.main(words) == 0
    index = json.loads((tmp_path / "out" / "simulate.json").read_text())
    assert index["made_by"] == {"teacher": kind, "source": kind, "revision": None, "licence": "openrail"}
    made = Quadruples(tmp_path / "out")
    assert {q.meta["caption"] for q in made} == {"a cat", "a chair"} and made[0].outputs.shape == (
        4,
        3,
        16,
        16,
    )
    assert made[0].noise.shape == (4, 4, 8, 8)
    if kind == "mvdream":
        assert torch.equal(made[0].input[:3], made[0].outputs[0])
    verify = ["verify", str(tmp_path / "out"), "--teacher", str(folders[kind]), "--device", "cpu"]
    assert command.main(verify) == 0 and capsys.readouterr().out.splitlines()[-1].startswith("agree: 2 of 2")
    assert command.main([*words, "--elevation", "20"]) == 2
    assert "elevation 0.0 (now 20.0)" in capsys.readouterr().err or kind == "mvdream"
