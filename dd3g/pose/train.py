"""Train the networks of the pose methods: `dd3g train-pose prior --motion cmu_mocap_30fps.npz`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.run import Json, command_line
from dd3g.command.setting import flattened, setting
from dd3g.errors import UserError

Network = StrEnum("Network", ["prior", "lifter", "difficulty", "recovery"])
"""What can be trained, each by `dd3g.pose.training.train_NAME`."""
Optimizer = StrEnum("Optimizer", ["adamw", "muon"])
"""See `dd3g.training.config.LoopConfig.optimizer`."""
# Options that only one network has.
OWNERS = {
    "blocks": Network.prior,
    "init_from": Network.prior,
    "lifter": Network.difficulty,
    "graph": Network.difficulty,
    "features": Network.recovery,
    "annotations": Network.recovery,
}


@dataclass(frozen=True)
class Options:
    """How a network is trained, and on what."""

    motion: Path | None = setting(
        None, "cmu_mocap_30fps.npz, of which the train clips are used; .bvh, .amc, AMASS .npz; a folder."
    )
    output: Path | None = setting(
        None, "Folder of the run. [default: runs/pose-NETWORK]", option="--output -o"
    )
    minutes: float | None = setting(None, "End after these, all sessions together.")
    steps: int | None = setting(None, "[default: the network's own]", 1)
    learning_rate: float | None = setting(None, "The highest. [default: the network's own]")
    optimizer: Optimizer = setting(
        Optimizer.adamw, "muon: orthogonal steps for matrices, AdamW for the rest."
    )
    seed: int = setting(0, "Seed of all random numbers.")
    resume: bool = setting(False, "Resume from the run's last checkpoint.")
    blocks: int | None = setting(None, "prior: its depth. [default: 2, or as --init-from]", 1)
    init_from: Path | None = setting(
        None, "prior: folder of a prior to start from, with at most as many blocks."
    )
    lifter: Path | None = setting(None, "difficulty: folder of the frozen lifter. [default: the shipped one]")
    graph: bool = setting(False, "difficulty: the larger published network.")
    features: Path | None = setting(
        None, "recovery: PARE's features of people in pictures, instead of --motion."
    )
    annotations: Path | None = setting(None, "recovery: ScoreHMR's .npz of the same people, with body_pose.")
    device: str = setting("cpu", "cpu, cuda, or auto: CUDA where there is one. Batches are drawn on the CPU.")

    def check(self, network: Network) -> None:
        """Hold the options against each other.

        Raises:
            UserError: those of another network, nothing to learn from, or a number that cannot be.
        """
        for name in ("learning_rate", "minutes"):
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {number:g}")
        for name, owner in OWNERS.items():
            if getattr(self, name) and network != owner:
                raise UserError(
                    f"--{name.replace('_', '-')} is for the {owner} only: leave it out to train the {network}"
                )
        features = self.features is not None
        if features != (self.annotations is not None) or features == (self.motion is not None):
            raise UserError("give --motion, or for recovery both --features and --annotations")


@flattened
def train_command(
    network: Annotated[
        Network, typer.Argument(metavar="NETWORK", help="Poses alone; 2D to 3D; its errors; body rotations.")
    ],
    options: Options,
    as_json: Json = False,
) -> None:
    """Train one network of the pose methods; kill it at any time and go on with `--resume`."""
    from dd3g.nn.checkpoint import find_device
    from dd3g.pose import training
    from dd3g.pose.data.motion_files import load_motion
    from dd3g.pose.data.scorehmr import load_conditioned

    o = options
    o.check(network)
    folder = o.output or Path("runs") / f"pose-{network}"
    where = find_device(o.device)
    if where.type not in ("cpu", "cuda") or where.index is not None:
        raise UserError(
            f"--device {o.device} cannot train: give auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses the GPU"
        )
    own = {name: getattr(o, name) for name in ("steps", "learning_rate", "minutes", "seed", "resume")}
    run = {name: value for name, value in own.items() if value is not None} | _shape(network, o)
    run |= {"use_cpu": where.type == "cpu", "optimizer": o.optimizer.value}
    if o.features is not None and o.annotations is not None:
        training.train_recovery_on_features(*load_conditioned(o.annotations, o.features), folder, **run)
    elif o.motion is not None:
        getattr(training, f"train_{network}")(load_motion(o.motion, "train"), folder, **run)
    print(json.dumps({"output": str(folder)}) if as_json else f"trained: {folder}")


def _shape(network: Network, options: Options) -> dict[str, Any]:
    """What only one network is made with."""
    from dd3g.pose.networks.difficulty import DifficultyConfig
    from dd3g.pose.networks.lifter import GraphLifter
    from dd3g.pose.networks.prior import Prior, PriorConfig

    if network == Network.difficulty:
        config = DifficultyConfig("graph" if options.graph else "mlp")
        return {"lifter": GraphLifter.from_pretrained(options.lifter), "config": config}
    if network != Network.prior:
        return {}
    if options.blocks is None:
        return {"init_from": options.init_from}
    known = Prior.from_pretrained(options.init_from).config if options.init_from else PriorConfig()
    return {"init_from": options.init_from, "config": replace(known, blocks=options.blocks)}


main = command_line(train_command, "dd3g train-pose")

if __name__ == "__main__":
    sys.exit(main())
