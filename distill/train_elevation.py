"""Train the network that tells from how far above a picture was taken, on rendered objects.

accelerate launch distill/train_elevation.py 'renders=[runs/renders/train]'
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd3g.command.configuration import launch
from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.training.config import LoopConfig

BACKBONE = "efficientnet_lite0"  # fetched for the start
SCALE = 10.0  # degrees from which an error counts by its size, and no longer by its square


@dataclass
class ElevationConfig(LoopConfig):
    """Everything that a run needs."""

    output_dir: str = "runs/elevation"
    train_batch_size: int = setting(32, "per process and micro-step", 1)
    learning_rate: float = setting(4e-4, "at the end of the warm-up", 0)
    lr_scheduler: str = "timed_cosine"
    adam_weight_decay: float = setting(0.02, "of both optimisers; 0 is Adam", 0)
    ema_decay: float = setting(0.995, "of the average of the weights that is the result", 0, 1)
    renders: list[str] = setting(["runs/renders/train"], "shards made by `dd3g data render`")
    unpacked_dir: str = setting("", "of this node's disk, into which renders are decoded once")
    scan_fraction: float = setting(0.5, "share of scans and PBR objects", 0, 1)
    shape_fraction: float = setting(0.0, "share of untextured shapes with made-up textures", 0, 1)
    held_out: float = setting(0.05, "share of clusters that are never trained on", 0, 1)
    held_objects: int = setting(256, "objects of these that are scored at each validation, at most", 1)
    init_from: str = setting("", "start from these weights; empty: from EfficientNet-Lite0 as published")


def run(config: ElevationConfig) -> Path:
    """Train; returns the folder of the averaged network."""
    start = time.monotonic()
    import torch

    from dd3g.models import obtain_model
    from dd3g.nn.checkpoint import load_weights
    from dd3g.pepd.elevation import ElevationNet, checked_folder
    from dd3g.training import fit
    from dd3g.training.checkpoints import checkpoints
    from distill.samples.elevation_samples import ElevationDataset
    from distill.samples.unpacked import open_renders
    from distill.train_shape import split

    torch.manual_seed(config.seed)
    network = ElevationNet()
    if config.init_from:
        load_weights(checked_folder(config.init_from), network)
    elif config.resume_from_checkpoint in ("", "latest") and not checkpoints(Path(config.output_dir)):
        network.features.load_published(torch.load(obtain_model(BACKBONE), weights_only=True))
    objects = open_renders(config.renders, config.unpacked_dir, config.dataloader_num_workers == 0)
    train, held = split(objects, config)
    samples = ElevationDataset(objects, config.seed, train, config.scan_fraction, config.shape_fraction)
    folder = Path(config.output_dir) / "model"

    def publish(average: ElevationNet, step: int) -> dict[str, float]:
        average.save_pretrained(folder)
        return held_out_error(average, objects, held)

    config.count_opening(start)
    fit(network, elevation_loss, samples, config, publish)
    return folder


def elevation_loss(model: Any, batch: Any, step: int) -> tuple[Any, dict[str, Any]]:
    """(model, batch, step) -> (loss, its one term, in units of `SCALE`)."""
    import torch.nn.functional as F

    loss = F.smooth_l1_loss(model(batch.seen) / SCALE, batch.elevation / SCALE)
    return loss, {"elevation": loss.detach()}


def held_out_error(model: Any, objects: Any, held: list[int]) -> dict[str, float]:
    """Mean absolute error in degrees on one view of each held-out object that is not damaged.

    Raises:
        UserError: when all of them are.
    """
    import torch

    from dd3g.training import generator_for
    from distill.samples.elevation_samples import ElevationSample, elevation_sample

    if not held:
        return {}
    samples = []
    for i in held:
        with contextlib.suppress(UserError):
            samples.append(elevation_sample(objects[i], generator_for(0, i), plain=True))
    if not samples:
        raise UserError(
            f"all {len(held)} objects to score by are damaged: render them again, or change held_out"
        )
    batch = ElevationSample.collate(samples).to(next(model.parameters()).device)
    with torch.no_grad():
        found = torch.cat([model(part) for part in batch.seen.split(64)])
    return {"held_out_degrees": float((found - batch.elevation).abs().mean())}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run, ElevationConfig, argv, "dd3g train-elevation")


if __name__ == "__main__":
    sys.exit(main())
