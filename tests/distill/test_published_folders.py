"""Folders of published teachers: what they are, whose licence they carry, and every kind of fault."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins.published_teachers import pictures, with_tokenizer

from dd3g.errors import UserError
from dd3g.fingerprint import folder_fingerprint
from distill.teachers import load
from distill.teachers.latents import END, START
from distill.teachers.published import find_source

UNET = "unet/diffusion_pytorch_model.safetensors"
LEVELS = "scheduler/scheduler_config.json"


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
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_code_in_a_pickle_is_never_run(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no weights of this network"):
        white_teacher(folders, tmp_path, monkeypatch, {"conv_in.weight": Evil(tmp_path / "ran")})
    assert not (tmp_path / "ran").exists()


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


def split(path, variant=""):
    """A file of weights as two with an index, as the libraries write large ones; returns the two."""
    state, stem = load_file(path), path.stem + variant
    place = {name: f"{stem}-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    path.unlink()
    files = [path.with_name(name) for name in sorted(set(place.values()))]
    for file in files:
        save_file({n: t for n, t in state.items() if place[n] == file.name}, file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": place}
    path.with_name(f"{path.name}.index{variant}.json").write_text(json.dumps(index))
    return files


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
        "pickles, which are not read: fetch a revision with safetensors, or convert it",
    ),
    "piece missing": ("imagedream", lambda f: split(f / UNET)[1].unlink(), "00002-of-00002.* cannot be read"),
    "piece torn": (
        "zero123plus",
        lambda f: split(f / UNET)[0].write_bytes(b"123"),
        "00001-of-00002.* is not a complete safetensors file",
    ),
    "pieces alone": (
        "imagedream",
        lambda f: (split(f / UNET), (f / f"{UNET}.index.json").unlink()),
        "an index, and has 2 without",
    ),
    "index of nothing": (
        "imagedream",
        lambda f: (
            split(f / UNET),
            edited(f / f"{UNET}.index.json", weight_map={"a": "../../x.safetensors"}),
        ),
        "index.json names no files of weights",
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
    "no schedule of levels": (
        "mvdream",
        lambda f: edited(f / LEVELS, beta_schedule=None, trained_betas=None),
        "has no beta_schedule",
    ),
    "no first level": ("imagedream", lambda f: edited(f / LEVELS, beta_start=None), "has no beta_start"),
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


def test_levels_that_a_file_lists(folders, imagedream, tmp_path):
    """They need no name of a schedule."""
    copy = shutil.copytree(folders["imagedream"], tmp_path / "imagedream")
    betas = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).tolist()
    edited(copy / LEVELS, trained_betas=betas, beta_schedule=None, beta_start=None, beta_end=None)
    found, wanted = load(copy).schedule.alpha_bar, imagedream.schedule.alpha_bar
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_the_folder_of_a_model_in_the_cache_of_the_hub(folders, imagedream, tmp_path):
    """As it is copied to a machine without the hub: files are links, and refs say which commit is meant."""
    cache, commit = tmp_path / "models--ashawkey--imagedream-ipmv-diffusers", "ab" * 20
    for path in [p for p in folders["imagedream"].rglob("*") if p.is_file()]:
        name = path.relative_to(folders["imagedream"])
        link = cache / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (cache / "snapshots" / ("cd" * 20)).mkdir()  # of another commit, half fetched
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    teacher = load(cache)
    assert teacher.fingerprint == imagedream.fingerprint
    assert teacher.about["revision"] == commit and teacher.about["licence"] == "OpenRAIL"


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("kind", ["imagedream", "zero123plus"])
def test_weights_in_several_files(kind, variant, folders, tmp_path, request):
    copy = shutil.copytree(folders[kind], tmp_path / folders[kind].name)
    for file in list(copy.rglob("*.safetensors")):
        split(file, variant)
    found, wanted = load(copy).state_dict(), request.getfixturevalue(kind).state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def in_variants(part, *variants, pieces=()):
    """A part's file of weights under other variants; values tell which is which."""
    for file in list(part.glob("*.safetensors")):
        state = load_file(file)
        file.unlink()
        for i, variant in reversed(list(enumerate(variants))):
            path = file.with_name(f"{file.stem}{variant and '.' + variant}.safetensors")
            save_file({k: v + i for k, v in state.items()}, path, {"format": "pt"})
            if variant in pieces:
                path.rename(file)
                split(file, variant and "." + variant)


@pytest.mark.parametrize(
    ("variants", "pieces"),
    [
        (("", "fp16"), ()),
        (("", "fp16"), ("",)),
        (("", "fp16"), ("fp16",)),
        (("", "fp16"), ("", "fp16")),
        (("bf16", "fp16"), ()),
        (("fp16", "non_ema"), ("fp16",)),
        (("", "non_ema"), ()),
    ],
)
@pytest.mark.parametrize("kind", ["imagedream", "zero123plus"])
def test_weights_in_several_variants(kind, variants, pieces, folders, tmp_path, request):
    """The first is taken, which is the full one where it is there, whichever lies in several files."""
    copy = shutil.copytree(folders[kind], tmp_path / folders[kind].name)
    for part in ("unet", "vae"):
        in_variants(copy / part, *variants, pieces=pieces)
    found, wanted = load(copy).state_dict(), request.getfixturevalue(kind).state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_what_a_mac_leaves_beside_a_copy_is_not_looked_at(folders, tmp_path):
    copy = shutil.copytree(folders["imagedream"], tmp_path / "imagedream")
    in_variants(copy / "unet", "fp16")  # which has as many dots as the other
    before = load(copy).fingerprint
    for file in [*copy.rglob("*.safetensors"), *copy.rglob("*.json")]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert load(copy).fingerprint == before


@pytest.mark.parametrize("kind", ["imagedream", "zero123plus"])
def test_weights_of_another_name_are_one_line(kind, folders, tmp_path):
    """The libraries would say it as well, before the command does."""
    copy = shutil.copytree(folders[kind], tmp_path / folders[kind].name)
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("vae.safetensors"))
    logger, said = logging.getLogger("diffusers"), []
    handler = logging.Handler()
    handler.emit = said.append
    logger.addHandler(handler)
    with pytest.raises(UserError, match="no file named diffusion_pytorch_model.safetensors found in"):
        load(copy)
    logger.removeHandler(handler)
    assert said == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder(fault, folders, tmp_path):
    kind, change, message = FAULTS[fault]
    with pytest.raises(UserError, match=message):
        load(broken(folders[kind], tmp_path, change))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
@pytest.mark.parametrize("kind", ["imagedream", "mvdream", "zero123plus"])
def test_each_file_that_is_missing_or_damaged_is_named(kind, damage, folders, tmp_path):
    """Also where a library has defaults for what it does not find: other numbers, and no word of them."""
    whole = with_tokenizer(folders[kind], tmp_path) if kind != "zero123plus" else folders[kind]
    optional = ("README.md", "tokenizer_config.json")
    names = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and p.name not in optional]
    assert len(names) > 8
    for name in names:
        if damage == "cut" and name.suffix == ".txt":
            continue  # nothing says how many words there were
        if damage == "gone" and name.name == "preprocessor_config.json":
            continue  # then it is as published
        copy = shutil.copytree(whole, tmp_path / "copy" / whole.name)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: 2 * len(content) // 3] if damage == "cut" else b"")
        if damage == "gone":
            (copy / name).unlink()
        with pytest.raises(UserError) as refused:
            load(copy)
        named = name.parent if damage == "gone" and name.suffix == ".safetensors" else name
        assert str(copy / named) in str(refused.value) and "\n" not in str(refused.value), name
        shutil.rmtree(copy)


@pytest.mark.parametrize("in_one_file", [False, True])
def test_the_words_of_a_tokenizer(folders, tmp_path, in_one_file, monkeypatch):
    teacher = load(with_tokenizer(folders["imagedream"], tmp_path, in_one_file))
    ids = [teacher.text.tokenizer(words) for words in ("ab", "ac")]
    assert ids[0] != ids[1] and len(ids[0]) == 4
    # A caption that is cut is no news; transformers foresees indexing errors.
    said = []
    logger = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "handle", said.append)
    assert teacher.text.ids(["a" * 200]).shape == (1, 77) and not said


def test_names(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("imagedream", "someone/something", "someone/something@v2"):
        with pytest.raises(UserError, match=f"{name}: no such folder, and .* HF_HUB_OFFLINE forbids"):
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
    assert source.name == "sudo-ai/zero123plus-v1.2"
    assert load(place).about["revision"] == commit


@pytest.mark.parametrize("place", ["zero123plus-v1.2", "models--sudo-ai--zero123plus-v1.2/snapshots/main"])
def test_no_commercial_use_wherever_v12_lies(folders, tmp_path, place, capsys):
    shutil.copytree(folders["zero123plus"], tmp_path / place)
    about = load(tmp_path / place).about
    assert about["licence"] == "CC-BY-NC-4.0" and "forbids commercial use" in about["notice"]
    assert capsys.readouterr().err.count("forbids commercial use") == 1
    assert "notice" not in load(folders["zero123plus"]).about  # v1.1


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
    assert index["made_by"] == {
        "teacher": kind,
        "source": kind,
        "revision": None,
        "licence": "openrail",
        "weights": folder_fingerprint(folders[kind]),
    }
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
