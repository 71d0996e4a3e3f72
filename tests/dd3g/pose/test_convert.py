"""Published weights: files made by rule with the authors' names, and networks written down as they are."""

import json
import math

import numpy as np
import pytest
import torch
from stand_ins.made_up_people import SIZE, K

from dd3g.errors import UserError
from dd3g.pose.__main__ import main
from dd3g.pose.body.bodies import default_body
from dd3g.pose.body.geometry import FLIP, axis_angle_to_matrix, project
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.convert import convert, feature_statistics
from dd3g.pose.metrics import mpjpe
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import adjacency
from dd3g.pose.networks.rotation_denoiser import Condition, RotationDenoiser

G = torch.Generator().manual_seed(5)


def random(*shape, scale=0.1):
    return scale * torch.randn(*shape, generator=G)


def linear(name, inputs, outputs):
    return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}


def norm(name, width, running=True):
    state = {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}
    if running:
        state |= {f"{name}.running_mean": random(width), f"{name}.running_var": 1 + random(width).abs()}
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


def scorehmr(features=8, hidden=16, blocks=2):
    """The state of FC(cfg), poses only."""
    state = linear("time_mlp.1", 144, 576) | linear("time_mlp.3", 576, 576)
    state |= linear("init_mlp", 144, 144) | linear("final_mlp", 144, 144)
    for i in range(blocks):
        state |= linear(f"blocks.{i}.mlp.1", 576, 288)
        state |= norm(f"blocks.{i}.block.layer_norm1", 144 + features, False)
        state |= linear(f"blocks.{i}.block.linear_layer1", 144 + features, hidden)
        state |= norm(f"blocks.{i}.block.layer_norm2", hidden, False)
        state |= linear(f"blocks.{i}.block.linear_layer2", hidden, 144)
    return state


def checkpoint(path, state):
    ema = {f"ema_model.model.{name}": value for name, value in state.items()}
    ema |= {f"online_model.model.{name}": torch.zeros_like(value) for name, value in state.items()}
    ema |= {
        "initted": torch.tensor([True]),
        "step": torch.tensor([1000]),
        "ema_model.betas": torch.zeros(1000),
    }
    torch.save({"step": 1000, "model": {}, "opt": {"state": {}}, "ema": ema, "scaler": None}, path)
    return path


def published_denoiser(state, x, t, c, blocks=2):
    """FC.forward of ScoreHMR, from its description."""
    F = torch.nn.functional

    def layer(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def normal(name, h):
        return F.layer_norm(h, h.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    frequency = torch.exp(torch.arange(72) * -(math.log(10000) / 71))
    angle = t[:, None].float() * frequency
    time = layer("time_mlp.3", F.gelu(layer("time_mlp.1", torch.cat([angle.sin(), angle.cos()], -1))))
    h = layer("init_mlp", x)
    for i in range(blocks):
        scale, shift = layer(f"blocks.{i}.mlp.1", F.silu(time)).chunk(2, 1)
        h = h * (scale + 1) + shift
        u = normal(f"blocks.{i}.block.layer_norm1", torch.cat([h, c], 1))
        u = F.gelu(layer(f"blocks.{i}.block.linear_layer1", u))
        u = F.gelu(layer(f"blocks.{i}.block.linear_layer2", normal(f"blocks.{i}.block.layer_norm2", u)))
        h = h + u
    return layer("final_mlp", h)


def test_scorehmr_with_its_features(tmp_path):
    state = scorehmr()
    path = checkpoint(tmp_path / "model-100.pt", state)
    mean, deviation = random(2, 4, scale=1.0), 1 + random(2, 4).abs()
    np.savez(
        tmp_path / "pare_feat_stats.npz", pose_feats_mean=mean.numpy(), pose_feats_std=deviation.numpy(),
        cam_shape_feats_mean=np.zeros((1, 4)), cam_shape_feats_std=np.ones((1, 4)),
    )  # fmt: skip
    code = main(
        [
            "convert",
            str(path),
            "--features",
            str(tmp_path / "pare_feat_stats.npz"),
            "-o",
            str(tmp_path / "out"),
        ]
    )
    assert code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["condition_kind"] == "features" and (config["condition"], config["hidden"]) == (8, 16)
    network = RotationDenoiser.from_pretrained(tmp_path / "out")
    x, t, features = random(3, 144, scale=1.0), torch.tensor([0, 50, 900]), random(3, 8, scale=1.0)
    standard = (features - mean.flatten()) / deviation.flatten()
    with torch.no_grad():
        found = network(x, t, Condition(features))
    torch.testing.assert_close(found, published_denoiser(state, x, t, standard), atol=1e-5, rtol=1e-5)


def test_statistics_of_either_backbone(tmp_path):
    np.savez(tmp_path / "prohmr_feat_stats.npz", mean=np.arange(4.0), std=np.full(4, 2.0))
    mean, deviation = feature_statistics(tmp_path / "prohmr_feat_stats.npz")
    assert mean.tolist() == [0, 1, 2, 3] and deviation.tolist() == [2, 2, 2, 2]
    np.savez(tmp_path / "other.npz", a=np.zeros(4))
    with pytest.raises(UserError, match="neither pose_feats_mean and pose_feats_std nor mean and std, but a"):
        feature_statistics(tmp_path / "other.npz")


def test_the_published_skeleton_has_ones_on_its_diagonal():
    A = adjacency(True)
    for joint in range(17):
        near = [b for a, b in H36M_17.bones if a == joint] + [a for a, b in H36M_17.bones if b == joint]
        row = [1.0 if k == joint else 1 / len(near) if k in near else 0.0 for k in range(17)]
        torch.testing.assert_close(A[joint], torch.tensor(row))


def graph(name, inputs, outputs):
    return {
        f"{name}.W": random(2, inputs, outputs), f"{name}.M": random(17, outputs),
        f"{name}.adj2": random(17, 17), f"{name}.bias": random(outputs),
    }  # fmt: skip


def published_graph(state, x):
    """ModulatedGCN.forward of PRPose, from its description, joint by joint where that is clearest."""

    def convolution(name, h):
        A = adjacency(True) + state[f"{name}.adj2"]
        A, eye = (A.T + A) / 2, torch.eye(17)
        W, M = state[f"{name}.W"], state[f"{name}.M"]
        return (A * eye) @ (M * (h @ W[0])) + (A * (1 - eye)) @ (M * (h @ W[1])) + state[f"{name}.bias"]

    def layer(name, h):
        h = convolution(f"{name}.gconv", h)
        n = {k: state[f"{name}.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        return ((h - n["running_mean"]) / (n["running_var"] + 1e-5).sqrt() * n["weight"] + n["bias"]).relu()

    h = layer("gconv_input.0", x)
    for i in range(4):
        h = h + layer(f"gconv_layers.{i}.gconv2", layer(f"gconv_layers.{i}.gconv1", h))
    return convolution("gconv_output", h)[..., 0]


def test_prposes_graph_network(tmp_path):
    state = graph("gconv_input.0.gconv", 2, 256) | norm("gconv_input.0.bn", 256)
    for i in range(4):
        for k in (1, 2):
            state |= graph(f"gconv_layers.{i}.gconv{k}.gconv", 256, 256)
            state |= norm(f"gconv_layers.{i}.gconv{k}.bn", 256)
    state |= graph("gconv_output", 256, 1)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "avg_model_htnet.pth")
    network = convert(tmp_path / "avg_model_htnet.pth")
    assert isinstance(network, Difficulty) and network.config.network == "graph"
    x = random(3, 17, 2, scale=1.0)
    with torch.no_grad():
        torch.testing.assert_close(network(x), published_graph(state, x), atol=1e-4, rtol=1e-3)


def perceptron():
    state = linear("w1", 34, 64) | norm("batch_norm1", 64) | linear("w2", 64, 17)
    for k in (1, 2):
        state |= linear(f"linear_stages.0.w{k}", 64, 64) | norm(f"linear_stages.0.batch_norm{k}", 64)
    return state


def test_prposes_perceptron(tmp_path):
    state = perceptron()
    torch.save(state, tmp_path / "avg_model_mgcn_lw.pth")
    network = convert(tmp_path / "avg_model_mgcn_lw.pth")

    def layer(prefix, k, h):
        h = h @ state[f"{prefix}w{k}.weight"].T + state[f"{prefix}w{k}.bias"]
        n = {
            key: state[f"{prefix}batch_norm{k}.{key}"]
            for key in ("weight", "bias", "running_mean", "running_var")
        }
        return ((h - n["running_mean"]) / (n["running_var"] + 1e-5).sqrt() * n["weight"] + n["bias"]).relu()

    x = random(3, 17, 2, scale=1.0)
    h = layer("", 1, x.flatten(1))
    h = h + layer("linear_stages.0.", 2, layer("linear_stages.0.", 1, h))
    wanted = h @ state["w2.weight"].T + state["w2.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(x), wanted, atol=1e-5, rtol=1e-4)


def run(*words):
    assert main([str(word) for word in words]) == 0


def poses(folder, name="one"):
    """Of all hypotheses, and the recommended one."""
    (person,) = json.loads((folder / f"{name}.pose.json").read_text())["people"]
    every = torch.tensor([h["pose"] for h in person["hypotheses"]])
    return every, torch.tensor(person["recommended"]["pose"])


@pytest.fixture
def someone(tmp_path):
    """A body, its file of keypoints, and one of a regressor that is wrong by 12 degrees at each joint."""
    turned = torch.eye(3).repeat(1, 24, 1, 1)
    turned[:, 0] = FLIP
    joints = default_body().points(turned, torch.zeros(1, 10), "h36m-17")
    seen = project(joints + torch.tensor([0, 0, 4.0]), K)
    np.savez(tmp_path / "one.npz", keypoints=seen, layout="h36m-17", K=K, size=SIZE)
    start = turned @ axis_angle_to_matrix(random(1, 24, 3, scale=0.12))
    np.savez(
        tmp_path / "hmr2.npz", pred_pose=start, pred_betas=np.zeros((1, 10)), pred_cam=np.ones((1, 3)),
        pose_feats=np.full((1, 2, 4), 3.0),
    )  # fmt: skip
    return joints[0], default_body().points(start, torch.zeros(1, 10), "h36m-17")[0]


@pytest.mark.slow
def test_the_chain_from_scorehmrs_file_to_a_pose(tmp_path, someone):
    """A denoiser that finds no noise anywhere leaves the start to the keypoints, 500 moves of them."""
    truth, start = someone
    state = scorehmr()
    state |= {name: torch.zeros_like(state[name]) for name in ("final_mlp.weight", "final_mlp.bias")}
    path = checkpoint(tmp_path / "model-100.pt", state)
    np.savez(tmp_path / "stats.npz", pose_feats_mean=np.full((2, 4), 3.0), pose_feats_std=np.ones((2, 4)))
    run("convert", path, "--features", tmp_path / "stats.npz", "-o", tmp_path / "weights")
    run(
        tmp_path / "one.npz", "--method", "recovery", "--hypotheses", 1, "-o", tmp_path / "out",
        "--weights", tmp_path / "weights", "--predictions", tmp_path / "hmr2.npz",
    )  # fmt: skip
    _, found = poses(tmp_path / "out")
    assert mpjpe(found, truth) < 60 < 120 < mpjpe(start, truth)


def test_the_chain_from_prposes_file_to_a_pose(tmp_path, someone):
    """A network that only doubts the left wrist gives hypotheses that differ there."""
    wrist, state = H36M_17.joints.index("l_wrist"), perceptron()
    state |= {"w2.weight": torch.zeros(17, 64), "w2.bias": torch.ones(17) + 60 * torch.eye(17)[wrist]}
    torch.save(state, tmp_path / "avg_model_mgcn_lw.pth")
    run("convert", tmp_path / "avg_model_mgcn_lw.pth", "-o", tmp_path / "weights")
    command = [tmp_path / "one.npz", "--method", "restoration"]
    run(*command, "-o", tmp_path / "shipped")
    run(*command, "-o", tmp_path / "out", "--weights", tmp_path / "weights")
    (before, _), (after, found) = (poses(tmp_path / name) for name in ("shipped", "out"))
    spread = after.std(0).norm(dim=-1)
    assert spread[wrist] > 2 * before.std(0).norm(dim=-1)[wrist]
    assert spread.argmax() == wrist
    assert mpjpe(found, someone[0]) < 100


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('RAN').touch()",))


def test_bad_weights_are_one_line_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    state = scorehmr()
    checkpoint(tmp_path / "model-1.pt", state | {"init_mlp_betas.weight": torch.zeros(10, 10)})
    del state["init_mlp.bias"]
    checkpoint(tmp_path / "model-2.pt", state)
    for name, message in (
        ("bomb.pt", "does not hold tensors alone .* code in it is not run"),
        ("cut.pt", "does not hold tensors alone"),
        ("absent.pt", "does not exist"),
        ("other.pth", "holds a …, which no known network has"),
        ("model-1.pt", "also denoises shapes"),
        ("model-2.pt", "does not fit: .*enter.bias"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            convert(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "RAN").exists()
