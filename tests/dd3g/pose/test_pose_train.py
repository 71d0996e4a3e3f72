import copy

import numpy as np
import pytest
import torch
from stand_ins.small_motion import small_archive
from typer.testing import CliRunner

from dd3g.command.run import make_app
from dd3g.errors import UserError
from dd3g.pose import training
from dd3g.pose.body.geometry import axis_angle_to_matrix, matrix_to_rotation_6d
from dd3g.pose.data.motion import load_cmu
from dd3g.pose.networks.difficulty import Difficulty, DifficultyConfig
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.pretrained import WEIGHTS
from dd3g.pose.networks.prior import Prior, PriorConfig, schedule
from dd3g.pose.networks.rotation_denoiser import RotationConfig, RotationDenoiser
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
    other = small_archive(tmp_path / "other.npz", 32)
    for changed in (["--motion", other], ["--lifter", WEIGHTS / "pose-lifter"]):
        asked = run("difficulty", *options, *changed, "--steps", 3, "--resume")
        assert asked.exit_code == 2 and "data " in asked.stderr
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


@pytest.mark.slow
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
    options = {
        "difficulty": {"lifter": GraphLifter.shipped()},
        "prior": {"config": PriorConfig(width=64, blocks=1, time_width=16, groups=8)},
    }.get(network, {})
    getattr(training, f"train_{network}")(motion, tmp_path / network, use_cpu=False, **options)
    assert settings == [False]


@pytest.mark.parametrize("words", [[], ["--optimizer", "muon"]])
def test_the_optimizer_is_the_one_named(tmp_path, monkeypatch, words):
    configs = []

    def fit(model, loss, samples, config):
        configs.append(config)
        return model

    monkeypatch.setattr(training, "fit", fit)
    motion = small_archive(tmp_path / "motion.npz")
    assert run("lifter", "--motion", motion, "-o", tmp_path / "run", *words).exit_code == 0
    assert [config.optimizer for config in configs] == [words[1] if words else "adamw"]


def scorehmr_files(folder, people=6):
    """Annotations and PARE's features; the last person has no rotations."""
    rng = np.random.default_rng(0)
    table = {"imgname": ["a.jpg"] * people, "center": np.zeros((people, 2)), "scale": np.full(people, 200.0)}
    has = np.arange(people) < people - 1
    np.savez(folder / "a.npz", **table, body_pose=0.3 * rng.normal(size=(people, 72)), has_body_pose=has)
    features = rng.normal(3, 2, (people, 128, 24))
    features[:, 0, 0] = 7  # never changes
    np.savez(folder / "f.npz", pose_feats=features)
    return folder / "a.npz", folder / "f.npz", features.reshape(people, -1)[has]


def test_recovery_learns_from_features_of_pictures(tmp_path):
    annotations, features, values = scorehmr_files(tmp_path)
    options = ["--annotations", annotations, "--features", features, "-o", tmp_path / "run", "--steps", 2]
    result = run("recovery", *options)
    assert result.exit_code == 0, result.output
    model = RotationDenoiser.from_pretrained(tmp_path / "run")
    assert model.config == RotationConfig("features", 3072, 1024)
    standard = model.encoder(torch.from_numpy(values).float())
    torch.testing.assert_close(standard.mean(0), torch.zeros(3072), atol=1e-2, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0)[1:], torch.ones(3071), atol=1e-2, rtol=0)
    np.savez(tmp_path / "few.npz", pose_feats=np.zeros((2, 128, 24)))
    result = run("recovery", "--annotations", annotations, "--features", tmp_path / "few.npz", "--steps", 1)
    assert result.exit_code == 2 and "has 2 people" in result.stderr
    result = run("recovery", "--features", features)
    assert result.exit_code == 2 and "both --features and --annotations" in result.stderr


class Oracle(torch.nn.Module):
    """Knows the noise from the features, which are one-hot: whose rotations these are."""

    def __init__(self, states):
        super().__init__()
        self.states = torch.nn.Parameter(states)

    def forward(self, x_t, t, condition):
        alpha, sigma = schedule().alpha_sigma(t, x_t)
        return (x_t - alpha * (condition.features @ self.states)) / sigma


def test_features_belong_to_the_rotations(tmp_path, monkeypatch):
    rotations = axis_angle_to_matrix(torch.randn(4, 24, 3, generator=torch.Generator().manual_seed(0)))
    states, losses = matrix_to_rotation_6d(rotations).flatten(1), []

    def fit(model, loss, samples, config):
        for whose in (states, states.roll(1, 0)):
            losses.append(loss(Oracle(whose), torch.Generator().manual_seed(0), 0).item())
        return model

    monkeypatch.setattr(training, "fit", fit)
    training.train_recovery_on_features(rotations, torch.eye(4), tmp_path)
    assert losses[0] < 1e-6 < 1 < losses[1]
    with pytest.raises(UserError, match="of 4 people, features of 3"):
        training.train_recovery_on_features(rotations, torch.eye(3), tmp_path)


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
