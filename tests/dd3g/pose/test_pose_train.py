import copy

import pytest
import torch
from stand_ins.small_motion import small_archive
from typer.testing import CliRunner

from dd3g.command import make_app
from dd3g.pose import training
from dd3g.pose.data.motion import load_cmu
from dd3g.pose.networks.difficulty import Difficulty, DifficultyConfig
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.prior import Prior, PriorConfig
from dd3g.pose.train import train_command


def run(*arguments):
    return CliRunner().invoke(make_app(train_command), [str(a) for a in arguments])


@pytest.mark.slow
def test_lifter_then_difficulty_then_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "best_alpha", lambda *_, fixed=False: 0.01 if fixed else 0.02)
    motion = small_archive(tmp_path / "motion.npz")
    result = run(
        "lifter", "--motion", motion, "-o", tmp_path / "lifter", "--steps", 2, "--learning-rate", 1e-3
    )
    assert result.exit_code == 0, result.output
    assert GraphLifter.from_pretrained(tmp_path / "lifter")(torch.zeros(1, 17, 2)).shape == (1, 17, 3)
    options = ["--motion", motion, "--lifter", tmp_path / "lifter", "-o", tmp_path / "difficulty"]
    assert run("difficulty", *options, "--steps", 2).exit_code == 0
    again = run("difficulty", *options, "--steps", 2)
    assert again.exit_code == 2 and "--resume" in again.stderr and again.stderr.count("\n") == 1
    assert run("difficulty", *options, "--steps", 3, "--resume").exit_code == 0
    assert Difficulty.from_pretrained(tmp_path / "difficulty").config == DifficultyConfig("mlp", 0.02, 0.01)


def test_a_prior_grows_from_a_shallower_one(tmp_path):
    motion = small_archive(tmp_path / "motion.npz")
    shallow, deep = tmp_path / "shallow", tmp_path / "deep"
    Prior(PriorConfig(width=64, blocks=1, time_width=16, groups=8)).save_pretrained(shallow)
    grown = ["prior", "--motion", motion, "-o", deep, "--steps", 1, "--blocks", 2, "--init-from", shallow]
    assert run(*grown).exit_code == 0
    prior = Prior.from_pretrained(deep)
    assert (len(prior.blocks), prior.config.width) == (2, 64)
    assert torch.allclose(prior.mean, Prior.from_pretrained(shallow).mean)


@pytest.mark.parametrize("network", ["prior", "lifter", "difficulty", "recovery"])
def test_batches_follow_the_network_to_its_device(tmp_path, monkeypatch, network):
    settings = []

    def fit(model, loss, samples, config):
        # A device without numbers: whatever the loss leaves on the CPU is refused beside its weights.
        elsewhere = copy.deepcopy(model).to("meta")
        settings.append(config.use_cpu)
        assert loss(elsewhere, torch.Generator().manual_seed(0), 0).device.type == "meta"
        return model

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "best_alpha", lambda *_, fixed=False: 0.01)
    motion = load_cmu(small_archive(tmp_path / "motion.npz"), "train")
    options = {"lifter": GraphLifter.shipped()} if network == "difficulty" else {}
    getattr(training, f"train_{network}")(motion, tmp_path / network, use_cpu=False, **options)
    assert settings == [False]


def test_help_names_the_defaults():
    text = " ".join(run("--help").output.split())
    for default in ("runs/pose-NETWORK", "the network's own", "the shipped one"):
        assert f"[default: {default}]" in text


def test_bad_input_is_one_clear_line(tmp_path):
    motion = small_archive(tmp_path / "motion.npz")
    for arguments, word in (
        (["lifter", "--motion", tmp_path / "none.npz"], "none.npz"),
        (["lifter", "--motion", motion, "--minutes", -1], "minutes"),
        (["recovery", "--motion", motion, "--learning-rate", 0], "learning-rate"),
        (["difficulty", "--motion", motion, "--lifter", tmp_path / "nowhere"], "nowhere"),
        (["lifter", "--motion", motion, "--blocks", 3], "--blocks is for the prior only"),
        (["recovery", "--motion", motion, "--init-from", tmp_path], "--init-from is for the prior only"),
        (["prior", "--motion", motion, "--lifter", tmp_path], "--lifter is for the difficulty only"),
        (["prior", "--motion", motion, "--graph"], "--graph is for the difficulty only"),
        (["prior", "--motion", motion, "--device", "tpu"], "unknown device 'tpu'"),
        (["prior", "--motion", motion, "--device", "meta"], "unknown device 'meta'"),
    ):
        result = run(*arguments, "-o", tmp_path / "run")
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and word in result.stderr
        assert result.stderr.count("\n") == 1
    assert run("tree", "--motion", motion).exit_code == 2
