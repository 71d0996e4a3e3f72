from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from stand_ins.published_teachers import IMAGE, write_imagedream
from stand_ins.tiny_objects import write_quadruples, write_renders
from stand_ins.training_runs import fresh, metrics, torchrun

from dd3g.cameras import Cameras
from dd3g.command.configuration import launch
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.nn.clip_vision import ClipVision, ClipVisionConfig
from dd3g.nn.low_rank import LowRankLinear
from dd3g.nn.multiview_unet import MultiViewUNet, MultiViewUNetConfig, TopLevelUNet
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.training.config import LoopConfig
from dd3g.training.optimizer import LearningRate, make_optimizer
from distill.objective import ObjectiveConfig
from distill.student import StartConfig, check_weights, share_frozen, start_from_teacher
from distill.teachers import load
from distill.train import DistillConfig, losses, run, training_samples

UNET = "unet/diffusion_pytorch_model.safetensors"
CONFIG = GeneratorConfig(
    size=64, latent_shape=(4, 4, 8, 8), width=32, heads=2, residual_hidden=16, fine=8, mid=16
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_imagedream(tmp_path_factory.mktemp("teacher") / "imagedream", levels=4)


@pytest.fixture(scope="module")
def teacher(folder):
    return load(folder)


def student(folder, **options):
    torch.manual_seed(0)
    return start_from_teacher(CONFIG, StartConfig(teacher=str(folder), **options))


def inputs(batch=2):
    g = torch.Generator().manual_seed(0)
    rgba = torch.rand(batch, 4, 64, 64, generator=g)
    rgba[:, :, :20] = 0
    rig = Cameras.stack([Cameras.orbit([0.0, 90, 180, 270], e, 64) for e in (0.0, 15.0)[:batch]])
    return torch.randn(batch, 4, 4, 8, 8, generator=g), rig, rgba


def test_sizes_of_the_published_networks():
    with torch.device("meta"):
        imagedream = MultiViewUNet(MultiViewUNetConfig(ip_dim=16))
        mvdream = MultiViewUNet(MultiViewUNetConfig())
        top = TopLevelUNet(MultiViewUNetConfig(ip_dim=16))
    sizes = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("imagedream", imagedream), ("mvdream", mvdream), ("top", top))
    }
    assert sizes["imagedream"] == 941_672_900 and len(imagedream.state_dict()) == 773
    assert sizes["mvdream"] == 867_572_164 and len(mvdream.state_dict()) == 690
    lower = sum(p.numel() for stage in imagedream.lower_levels() for p in stage.parameters())
    assert lower == pytest.approx(857e6, rel=0.002)
    embeddings = sum(p.numel() for n, p in top.named_parameters() if n.split(".")[0].endswith("_embed"))
    assert embeddings == pytest.approx(52.3e6, rel=0.002)
    assert sizes["top"] - embeddings == pytest.approx(32.5e6, rel=0.02)
    published = set(imagedream.state_dict())
    assert set(top.state_dict()) - published == {"bridge.weight", "bridge.bias"}
    kept = {name: t.shape for name, t in top.state_dict().items() if name in published}
    assert kept == {name: imagedream.state_dict()[name].shape for name in kept}


def test_clip_is_that_of_transformers(teacher):
    shape = {k: v for k, v in IMAGE.items() if k in ClipVisionConfig.__dataclass_fields__}
    own = ClipVision(ClipVisionConfig(**shape))
    missing = own.load_state_dict(teacher.image.state_dict(), strict=False)
    assert not missing.missing_keys
    rgb = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    pixels = (rgb - own.mean) / own.std
    wanted = teacher.image(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(own(rgb), wanted, atol=1e-5)


@torch.no_grad()
def test_phase_1_predicts_what_the_teacher_does(folder, teacher, monkeypatch):
    generator = student(folder)
    extraction = generator.extraction
    assert extraction.phase.level == 981
    assert extraction.phase.alpha_bar == pytest.approx(float(teacher.schedule.ab(981)))
    noise, rig, rgba = inputs()
    wanted = teacher(noise, torch.tensor([981, 981]), teacher.condition(rgba, rig))
    _, eps = extraction.predict(noise, rig, rgba)
    # Its pictures are not rounded to eight bits on the way to CLIP.
    assert (eps - wanted).square().mean().sqrt() < 2e-3 * wanted.square().mean().sqrt()
    monkeypatch.setattr(extraction.image, "forward", lambda _: teacher.image_tokens(rgba))
    _, eps = extraction.predict(noise, rig, rgba)
    assert torch.allclose(eps, wanted, atol=1e-5)
    # The tokens hold the one-step picture of the noise, DMD's start.
    alpha, sigma = teacher.schedule.alpha_sigma(981, noise)
    x0 = (noise - sigma * eps) / alpha
    extraction.tokens.weight.zero_(), extraction.tokens.bias.zero_()
    tokens = extraction(noise, rig, rgba)
    assert torch.allclose(tokens.flatten(0, 1), extraction.picture(x0.flatten(0, 1)), atol=1e-3, rtol=1e-4)


def test_the_level_follows_the_steps(folder):
    assert student(folder, steps=30).extraction.phase.level == 958


def test_keys_are_one_to_one(folder):
    own = student(folder).state_dict()
    published = load_file(folder / UNET)
    names = {k.removeprefix("extraction.unet.") for k in own if k.startswith("extraction.unet.")}
    assert names == set(published)
    assert all(torch.equal(own[f"extraction.unet.{k}"], v) for k, v in published.items())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"lower": "low_rank", "rank": 2}, {"top_only": True}])
def test_a_student_comes_back_from_disk(folder, tmp_path, options):
    generator = student(folder, **options).eval()
    again = Generator.from_pretrained(generator.save_pretrained(tmp_path / "model"))
    assert again.config.teacher == generator.config.teacher
    noise, rig, rgba = inputs(1)
    assert torch.equal(again(noise, rig, rgba).means, generator(noise, rig, rgba).means)


def learning(generator):
    noise, rig, rgba = inputs(1)
    loss = sum(getattr(generator(noise, rig, rgba), n).square().sum() for n in ("means", "colors", "scales"))
    loss.backward()
    return {n for n, p in generator.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def lower(names):
    parts = ("input_blocks.2", "input_blocks.3", "middle", "output_blocks.0", "output_blocks.1")
    return {n for n in names if n.startswith(tuple(f"extraction.unet.{p}" for p in parts))}


def test_what_learns(folder):
    frozen = learning(student(folder))
    assert not lower(frozen) and any("output_blocks.3" in n for n in frozen)
    assert not any(n.startswith(("extraction.image.", "extraction.vae.")) for n in frozen)
    generator = student(folder, lower="low_rank", rank=2)
    layers = [m for m in generator.modules() if isinstance(m, LowRankLinear)]
    assert layers and all(m.weight.requires_grad is False for m in layers)
    assert {n.rsplit(".", 1)[1] for n in lower(learning(generator))} == {"high"}  # `low` once `high` is not 0
    trained = lower(learning(student(folder, lower="trained")))
    assert len(trained) > 40


@torch.no_grad()
def test_low_rank_begins_as_the_teacher(folder):
    noise, rig, rgba = inputs(1)
    a, b = student(folder), student(folder, lower="low_rank")
    assert torch.equal(a.extraction.predict(noise, rig, rgba)[1], b.extraction.predict(noise, rig, rgba)[1])
    layer = next(m for m in b.modules() if isinstance(m, LowRankLinear))
    layer.high.fill_(0.5)
    x = torch.randn(3, layer.in_features)
    matrix = layer.weight + layer.high @ layer.low
    wanted = torch.nn.functional.linear(x, matrix, layer.bias)
    assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_lower_levels_learn_at_a_tenth_of_the_rate(folder):
    generator = student(folder, lower="trained", lower_rate=0.1)
    config = LoopConfig(learning_rate=0.01, lr_warmup_steps=0, lr_scheduler="constant")
    optimizer = make_optimizer(generator, config, False)
    LearningRate(optimizer, config).set()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    slow = {n for n, p in generator.named_parameters() if rates[id(p)] == pytest.approx(0.001)}
    assert slow == lower(dict(generator.named_parameters()))
    assert {round(r, 6) for r in rates.values()} == {0.01, 0.001}
    with pytest.raises(UserError, match="one rate for all"):
        make_optimizer(generator, LoopConfig(optimizer="muon"), False)


def test_teachers_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match="set generator.size=64 and generator.latent_shape=\\[4, 4, 8, 8\\]"):
        start_from_teacher(GeneratorConfig(), StartConfig(teacher=str(folder)))
    with pytest.raises(UserError, match="is not an ImageDream teacher"):
        start_from_teacher(CONFIG, StartConfig(teacher="analytic"))


def test_quadruples_that_were_made_in_another_number_of_steps(tmp_path):
    """Their noise enters the network at another level; a teacher of another kind has levels of its own."""
    folder = write_quadruples(tmp_path)  # in 10 steps
    shape = GeneratorConfig(size=32, latent_shape=(4, 64, 8, 8))

    def samples(kind, steps):
        (folder / "simulate.json").write_text(json.dumps({"made_by": {"teacher": kind}}))
        start = StartConfig(teacher="imagedream", steps=steps)
        config = DistillConfig(quadruples=[str(folder)], generator=shape, start=start, num_train_epochs=5)
        return training_samples(config), config

    with pytest.raises(UserError, match=r"made in 10 steps, and start.steps=50: .*; set start.steps=10"):
        samples("imagedream", 50)
    for kind, steps in (("imagedream", 10), ("zero123plus", 50)):
        found, config = samples(kind, steps)
        assert len(found) == 3 and config.max_train_steps == 2  # 5 times 3 samples in batches of 8


def test_quadruples_of_other_weights_are_told(folder, tmp_path, capsys):
    other = write_imagedream(tmp_path / "other", seed=7)
    made_by = load(folder).about
    check_weights({"start.teacher": str(folder), "pretrained_teacher_model": ""}, made_by, "set")
    check_weights({"pretrained_teacher_model": "nano-teacher"}, made_by, "set")
    check_weights({"start.teacher": str(other)}, {"teacher": "imagedream"}, "of an earlier version")
    assert capsys.readouterr().err == ""
    check_weights({"start.teacher": str(folder), "pretrained_teacher_model": str(other)}, made_by, "set")
    told = f"set was made by an ImageDream of other weights than pretrained_teacher_model {other}"
    assert capsys.readouterr().err.startswith(f"warning: {told}")


def training(folder, tmp_path, output="out"):
    """Two steps of a tiny student."""
    renders = write_renders(tmp_path / "renders", size=64)
    words = [f"renders=[{renders}]", f"output_dir={tmp_path / output}", "train_batch_size=2"]
    words += ["max_train_steps=2", "report_to=none", "mixed_precision=no", "checkpointing_steps=100"]
    words += [f"start.teacher={folder}", "generator.size=64", "generator.latent_shape=[4,4,8,8]"]
    return [*words, "generator.width=32", "generator.heads=2", "generator.residual_hidden=16"]


@pytest.mark.slow
@pytest.mark.parametrize("lever", ["start.lower=low_rank", "gradient_checkpointing=true"])
def test_a_student_is_split_over_processes(folder, tmp_path, monkeypatch, lever):
    """FSDP2 with gloo: what is frozen, what learns, and buffers, which no process splits."""
    assert launch(run, DistillConfig, [*training(folder, tmp_path, "whole"), "use_cpu=true", lever]) == 0
    words = [*training(folder, tmp_path, "split"), "train_batch_size=1", "use_cpu=true", lever]
    monkeypatch.setenv("SPLIT", str(tmp_path / "units"))
    code, said = torchrun("tests/stand_ins/fsdp_on_cpu.py", *words)
    assert code == 0, said
    # Every block by itself: a process never holds more than one of them whole, beside what is in none.
    kinds = Counter(row.split()[1] for row in (tmp_path / "units").read_text().splitlines())
    model = student(folder)
    wanted = ("UNetTransformerBlock", "UNetResidual", "ClipBlock", "MultiViewTransformer", "ResidualBlock")
    there = Counter(type(m).__name__ for m in model.modules())
    assert kinds == {"Generator": 1} | {name: there[name] for name in wanted if there[name]}
    assert min(kinds[name] for name in wanted[:3]) > 0
    assert all(float(row.split()[2]) == 1 for row in (tmp_path / "units").read_text().splitlines())
    whole, split = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "split"))
    assert whole.keys() == split.keys()
    assert all(torch.allclose(split[n], whole[n], atol=1e-4) for n in whole)


@pytest.mark.slow
def test_the_command_trains_a_student(folder, tmp_path):
    words = training(folder, tmp_path)
    assert launch(run, DistillConfig, words) == 0
    made = Generator.from_pretrained(tmp_path / "out" / "model")
    assert made.config.teacher is not None and made.config.teacher.level == 981
    own, published = made.state_dict(), load_file(folder / UNET)
    name = "middle_block.0.in_layers.2.weight"
    assert torch.equal(own[f"extraction.unet.{name}"], published[name])
    assert "phase 1" in (tmp_path / "out" / "model" / "README.md").read_text()


@pytest.mark.parametrize("precision, kept", [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_the_verifier_is_the_frozen_teacher_in_the_precision_of_the_run(folder, precision, kept):
    config = DistillConfig(
        pretrained_teacher_model=str(folder), mixed_precision=precision, use_cpu=True,
        objective=ObjectiveConfig(implicit=0.1), generator=CONFIG,
    )  # fmt: skip
    verifier, _ = losses(config)
    assert not any(p.requires_grad for p in verifier.teacher.parameters())
    assert {p.dtype for p in verifier.teacher.unet.parameters()} == {kept}
    means = torch.zeros(1, 8, 3).uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(0))
    means.requires_grad_()
    quats = torch.tensor([1.0, 0, 0, 0]).expand(1, 8, 4)
    gaussians = Gaussians(
        means, quats, torch.full((1, 8, 3), 0.1), torch.full((1, 8), 0.9), torch.full((1, 8, 3), 0.4)
    )
    value = verifier(gaussians, inputs(1)[2], torch.zeros(1), torch.full((1,), 0.5), torch.zeros(1).long())
    value.backward()
    assert value.dtype == torch.float32 and means.grad.isfinite().all() and means.grad.abs().max() > 0


@pytest.mark.parametrize("lower", ["frozen", "low_rank"])
def test_a_verifier_shares_what_the_student_does_not_change(folder, lower):
    generator, verifier, apart = student(folder, lower=lower, rank=2), load(folder), load(folder)
    shared = share_frozen(generator, verifier)
    own = dict(generator.extraction.unet.named_parameters())
    once = {n for n, p in verifier.unet.named_parameters() if own[n] is p}
    assert once == {n for n, p in verifier.unet.named_parameters() if not own[n].requires_grad} != set(own)
    assert shared > sum(own[n].numel() for n in once)  # encoders come on top
    noise, rig, rgba = inputs(1)

    def answer(teacher):
        with torch.no_grad():
            return teacher(noise, torch.tensor([500]), teacher.condition(rgba, rig))

    wanted = answer(apart)
    assert torch.equal(answer(verifier), wanted)
    # What the student learns is nothing to the verifier.
    with torch.no_grad():
        for p in generator.parameters():
            if p.requires_grad:
                p.add_(0.1)
    assert torch.equal(answer(verifier), wanted)


def test_a_verifier_with_nothing_to_share(folder, tmp_path):
    other = write_imagedream(tmp_path / "other", seed=2, levels=4)
    for generator in (student(folder, lower="trained"), Generator(CONFIG)):
        with pytest.raises(UserError, match="holds no frozen weights of the verifier: set start.teacher"):
            share_frozen(generator, load(other))


@pytest.mark.slow
def test_the_command_shares_the_verifiers_weights(folder, tmp_path, monkeypatch, capsys):
    words = [*training(folder, tmp_path), "use_cpu=true", "start.lower=low_rank", "objective.implicit=0.05"]
    words += [f"pretrained_teacher_model={folder}", "objective.bootstrap=0", "objective.ramp=constant"]
    fresh()
    assert launch(run, DistillConfig, words) == 0
    fresh()
    again = [*words, "objective.implicit_shared=true", f"output_dir={tmp_path / 'shared'}"]
    assert launch(run, DistillConfig, again) == 0
    assert metrics(tmp_path / "out") == metrics(tmp_path / "shared")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launch(run, DistillConfig, [*again, f"output_dir={tmp_path / 'split'}"]) == 2
    assert "implicit_shared needs whole weights" in capsys.readouterr().err


def test_recomputed_blocks_learn_the_same(folder):
    from dd3g.nn.recompute import recompute_blocks

    def gradients(generator):
        noise, rig, rgba = inputs(1)
        generator(noise, rig, rgba).means.square().sum().backward()
        return {n: p.grad for n, p in generator.named_parameters() if p.grad is not None}

    plain, other = student(folder, lower="trained"), student(folder, lower="trained")
    # Stages of the U-Net, inside which nothing is wrapped twice, and the blocks of other people's encoders.
    assert recompute_blocks(other) > recompute_blocks(MultiViewUNet(other.extraction.unet.config)) >= 8
    wanted, found = gradients(plain), gradients(other)
    assert wanted.keys() == found.keys()
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-4, atol=1e-6) for n in wanted)
