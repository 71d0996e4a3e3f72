"""Published weights as folders of ours: `dd3g pose convert model-100.pt --features pare_feat_stats.npz`.

The files are read as tensors alone; code in them is not run. What each becomes is told by its keys.

| file | keys | becomes |
|---|---|---|
| ScoreHMR `model-N.pt` | `ema`, with `ema_model.model.blocks.0.block.linear_layer1.weight` | pose-recovery |
| PRPose `avg_model_mgcn_lw.pth` | `w1.weight`, `linear_stages.0.w1.weight` | pose-difficulty, mlp |
| PRPose `avg_model_htnet.pth` | `gconv_input.0.gconv.W`, `gconv_output.W` | pose-difficulty, graph |
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from dd3g.command.run import Json, command_line
from dd3g.errors import UserError, first_line
from dd3g.pose.data.arrays import read_npz, tensor
from dd3g.pose.networks.difficulty import Difficulty, DifficultyConfig
from dd3g.pose.networks.pretrained import PoseNetwork
from dd3g.pose.networks.rotation_denoiser import RotationConfig, RotationDenoiser

Tensors = dict[str, Tensor]
# Published name -> ours, as patterns over whole names.
SCOREHMR = {
    r"time_mlp\.1\.(\w+)": r"time.0.\1",
    r"time_mlp\.3\.(\w+)": r"time.2.\1",
    r"init_mlp\.(\w+)": r"enter.\1",
    r"final_mlp\.(\w+)": r"leave.\1",
    r"blocks\.(\d+)\.mlp\.1\.(\w+)": r"blocks.\1.modulation.\2",
    r"blocks\.(\d+)\.block\.layer_norm1\.(\w+)": r"blocks.\1.mix.0.\2",
    r"blocks\.(\d+)\.block\.linear_layer1\.(\w+)": r"blocks.\1.mix.1.\2",
    r"blocks\.(\d+)\.block\.layer_norm2\.(\w+)": r"blocks.\1.mix.3.\2",
    r"blocks\.(\d+)\.block\.linear_layer2\.(\w+)": r"blocks.\1.mix.4.\2",
}
PERCEPTRON = {
    r"w1\.(\w+)": r"network.enter.0.\1",
    r"batch_norm1\.(\w+)": r"network.enter.1.\1",
    r"linear_stages\.0\.w1\.(\w+)": r"network.stage.0.\1",
    r"linear_stages\.0\.batch_norm1\.(\w+)": r"network.stage.1.\1",
    r"linear_stages\.0\.w2\.(\w+)": r"network.stage.4.\1",
    r"linear_stages\.0\.batch_norm2\.(\w+)": r"network.stage.5.\1",
    r"w2\.(\w+)": r"network.leave.\1",
}
PARTS = {"W": "weight", "M": "modulation", "adj2": "learned", "bias": "bias"}
GRAPH = {
    **{rf"gconv_input\.0\.gconv\.{a}": f"network.enter.convolution.{b}" for a, b in PARTS.items()},
    r"gconv_input\.0\.bn\.(\w+)": r"network.enter.norm.\1",
    **{
        rf"gconv_layers\.(\d+)\.gconv{k + 1}\.gconv\.{a}": rf"network.blocks.\1.{k}.convolution.{b}"
        for k in (0, 1)
        for a, b in PARTS.items()
    },
    r"gconv_layers\.(\d+)\.gconv1\.bn\.(\w+)": r"network.blocks.\1.0.norm.\2",
    r"gconv_layers\.(\d+)\.gconv2\.bn\.(\w+)": r"network.blocks.\1.1.norm.\2",
    **{rf"gconv_output\.{a}": f"network.leave.{b}" for a, b in PARTS.items()},
}


def convert(path: str | Path, features: str | Path | None = None) -> PoseNetwork:
    """Read a published file of weights.

    Args:
        path: .pt or .pth, see the table above.
        features: ScoreHMR's pare_feat_stats.npz or prohmr_feat_stats.npz, by which its features are
            standardised; without it they have to be standardised already.

    Returns:
        The network; `save_pretrained` writes the folder that `from_pretrained` reads.

    Raises:
        UserError: damaged, code in it, of no known network, or with tensors that are missing or of another
            shape.
    """
    found = _read(path)
    if isinstance(found.get("ema"), dict):
        return _scorehmr(found["ema"], features, path)
    if features is not None:
        raise UserError(f"--features is for weights of ScoreHMR, and {path} holds others: leave it out")
    state = {name.removeprefix("module."): value for name, value in found.items()}
    if "linear_stages.0.w1.weight" in state:
        return _loaded(Difficulty(DifficultyConfig("mlp")), _renamed(state, PERCEPTRON, path), path)
    if "gconv_output.W" in state:
        return _loaded(Difficulty(DifficultyConfig("graph")), _renamed(state, GRAPH, path), path)
    names = ", ".join(list(state)[:4])
    raise UserError(
        f"{path} holds {names} …, which no known network has: ScoreHMR's model-N.pt, PRPose's avg_model_*.pth"
    )


def feature_statistics(path: str | Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation (F,) of the features of pose, from pare_feat_stats.npz or prohmr_feat_stats.npz.

    Raises:
        UserError: damaged, code in it, or without them.
    """
    found = read_npz(path)
    names = ("pose_feats_mean", "pose_feats_std") if "pose_feats_mean" in found else ("mean", "std")
    for name in names:
        if name not in found:
            raise UserError(
                f"{path} has neither pose_feats_mean and pose_feats_std nor mean and std, but "
                f"{', '.join(found)}"
            )
    mean, deviation = (tensor(found[name].reshape(-1), (None,), f"{path}, {name}") for name in names)
    if mean.shape != deviation.shape or not (deviation > 0).all():
        raise UserError(f"{path}: {names[1]} must be positive and as many as {names[0]}")
    return mean, deviation


def _scorehmr(ema: dict[str, Any], features: str | Path | None, path: str | Path) -> PoseNetwork:
    prefix = "ema_model.model."
    own = {name.removeprefix(prefix): value for name, value in ema.items() if name.startswith(prefix)}
    if any("betas" in name for name in own):
        raise UserError(
            f"{path} also denoises shapes, which dd3g does not: use the model that was trained on poses"
        )
    state = _renamed(own, SCOREHMR, path)
    if "enter.weight" not in state:
        raise UserError(
            f"{path} holds no averaged denoiser under ema, {prefix}…: take model-N.pt as released"
        )
    condition = state["blocks.0.mix.0.weight"].numel() - state["enter.weight"].shape[0]
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    config = RotationConfig("features", condition, len(state["blocks.0.mix.1.weight"]), blocks)
    mean, deviation = torch.zeros(condition), torch.ones(condition)
    if features is not None:
        mean, deviation = feature_statistics(features)
        if len(mean) != condition:
            raise UserError(f"{features} is of {len(mean)} features, {path} takes {condition}: use its own")
    state |= {"encoder.mean": mean, "encoder.deviation": deviation}
    return _loaded(RotationDenoiser(config), state, path)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{path} does not hold tensors alone ({first_line(error)}): get it again; code in it is not run"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, not the named tensors of a network")
    return found


def _renamed(state: dict[str, Any], names: dict[str, str], path: str | Path) -> Tensors:
    result = {}
    for name, value in state.items():
        for pattern, ours in names.items():
            if match := re.fullmatch(pattern, name):
                result[match.expand(ours)] = value.float() if value.is_floating_point() else value
                break
        else:
            raise UserError(f"{path}: {name} belongs to no layer that is known: is it another version?")
    return result


def _loaded(network: PoseNetwork, state: Tensors, path: str | Path) -> PoseNetwork:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit: {' '.join(str(error).split())[:300]}") from error
    return network.eval()


def convert_command(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="ScoreHMR's model-N.pt or PRPose's avg_model_*.pth.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. [default: out/NETWORK]")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="ScoreHMR's pare_feat_stats.npz, which standardises features.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a folder of ours from published weights; nothing in them is run."""
    network = convert(weights, features)
    folder = output or Path("out") / network.kind
    network.save_pretrained(folder, dtype=None)
    print(json.dumps({"output": str(folder)}) if as_json else f"converted: {folder}")


main = command_line(convert_command, "dd3g pose convert")

if __name__ == "__main__":
    sys.exit(main())
