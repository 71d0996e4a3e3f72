"""Train the networks of the pose methods: `dd3g train-pose prior --motion cmu_mocap_30fps.npz`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command import Json, run_command
from dd3g.errors import UserError


class Network(StrEnum):
    """What can be trained, each by `dd3g.pose.training.train_NAME`."""

    prior = "prior"
    lifter = "lifter"
    difficulty = "difficulty"
    recovery = "recovery"


class Optimizer(StrEnum):
    """See `dd3g.training.config.LoopConfig.optimizer`."""

    adamw = "adamw"
    muon = "muon"


def train_command(
    network: Annotated[Network, typer.Argument(help="Poses alone; 2D to 3D; its errors; body rotations.")],
    motion: Annotated[
        Path | None,
        typer.Option(
            help="cmu_mocap_30fps.npz, of which the train clips are used; .bvh, .amc, AMASS .npz; a folder."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run. [default: runs/pose-NETWORK]")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="End after these, all sessions together.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="[default: the network's own]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest. [default: the network's own]")
    ] = None,
    optimizer: Annotated[
        Optimizer, typer.Option(help="muon: orthogonal steps for matrices, AdamW for the rest.")
    ] = Optimizer.adamw,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    blocks: Annotated[
        int | None, typer.Option(min=1, help="prior: its depth. [default: 2, or as --init-from]")
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="prior: folder of a prior of at most as many blocks to begin with.")
    ] = None,
    lifter: Annotated[
        Path | None, typer.Option(help="difficulty: folder of the frozen lifter. [default: the shipped one]")
    ] = None,
    graph: Annotated[bool, typer.Option("--graph", help="difficulty: the larger published network.")] = False,
    features: Annotated[
        Path | None,
        typer.Option(help="recovery: PARE's features of people in pictures, instead of --motion."),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="recovery: ScoreHMR's .npz of the same people, with body_pose.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: CUDA where there is one. Batches are drawn on the CPU.")
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Train one network of the pose methods; kill it at any time and go on with `--resume`."""
    from dd3g.nn.checkpoint import find_device
    from dd3g.pose import training
    from dd3g.pose.data.motion_files import load_motion
    from dd3g.pose.data.scorehmr import load_conditioned
    from dd3g.pose.networks.difficulty import DifficultyConfig
    from dd3g.pose.networks.lifter import GraphLifter
    from dd3g.pose.networks.prior import Prior, PriorConfig

    folder = output or Path("runs") / f"pose-{network}"
    options: dict[str, Any] = {"minutes": minutes, "seed": seed, "resume": resume}
    options |= {k: v for k, v in {"steps": steps, "learning_rate": learning_rate}.items() if v is not None}
    for name, number in (("--learning-rate", learning_rate), ("--minutes", minutes)):
        if number is not None and not number > 0:
            raise UserError(f"{name} must be positive, got {number:g}")
    for name, value, owner in (
        ("--blocks", blocks, Network.prior),
        ("--init-from", init_from, Network.prior),
        ("--lifter", lifter, Network.difficulty),
        ("--graph", graph, Network.difficulty),
        ("--features", features, Network.recovery),
        ("--annotations", annotations, Network.recovery),
    ):
        if value and network != owner:
            raise UserError(f"{name} is for the {owner} only: leave it out to train the {network}")
    if (features is None) != (annotations is None) or (motion is None) == (features is None):
        raise UserError("give --motion; or for recovery instead of it both --features and --annotations")
    where = find_device(device)
    if where.type not in ("cpu", "cuda") or where.index is not None:
        raise UserError(
            f"--device {device} cannot train: give auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses the GPU"
        )
    options |= {"use_cpu": where.type == "cpu", "optimizer": optimizer.value}
    if network == Network.prior:
        options["init_from"] = init_from
        if blocks is not None:
            config = Prior.from_pretrained(init_from).config if init_from else PriorConfig()
            options["config"] = replace(config, blocks=blocks)
    if network == Network.difficulty:
        options["lifter"] = GraphLifter.from_pretrained(lifter)
        options["config"] = DifficultyConfig("graph" if graph else "mlp")
    if motion is not None:
        getattr(training, f"train_{network}")(load_motion(motion, "train"), folder, **options)
    else:
        assert features is not None and annotations is not None
        training.train_recovery_on_features(*load_conditioned(annotations, features), folder, **options)
    print(json.dumps({"output": str(folder)}) if as_json else f"trained: {folder}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(train_command, argv, "dd3g train-pose")


if __name__ == "__main__":
    sys.exit(main())
