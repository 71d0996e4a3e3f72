"""Train a network that knows where the matter of a pictured object is, on rendered objects with volumes.

accelerate launch distill/train_shape.py --config configs/shape/nano.yaml
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dd3g.command.configuration import launch
from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.io.atomic import write_text
from dd3g.pepd.config import OccupancyConfig
from dd3g.training.config import LoopConfig
from distill.config import ShapeObjectiveConfig

if TYPE_CHECKING:
    from dd3g.pepd.occupancy import OccupancyNet
    from distill.samples.renders import Described
    from distill.shape.carving import Together
    from distill.shape.samples import ShapeSample

# The network that is kept is best at this score of held-out objects; at one half bodies stay thin for long.
KEPT_BY = "mask_iou_30"
SCORES = "scores.json"  # of the network that is kept
HELD_PIXELS = 2048  # of other views, for its score


@dataclass
class ShapeConfig(LoopConfig):
    """Everything that a shape run needs."""

    configs: ClassVar[str] = "shape"

    output_dir: str = "runs/shape"
    renders: list[str] = setting(["runs/renders/train"], "shards made by `dd3g data render --volumes`")
    unpacked_dir: str = setting("", "of this node's disk, into which renders are decoded once")
    quadruples: list[str] = setting([], "a teacher's, whose masks are carved")
    scan_fraction: float = setting(
        0.25, "share of scans and PBR objects; a few are soon known by heart", 0, 1
    )
    shape_fraction: float = setting(0.25, "share of untextured shapes with made-up textures", 0, 1)
    stretch: float = setting(0.3, "largest change of width, by its logarithm, in half of the samples")
    square_on: float = setting(0.6, "share of inputs chosen among views of front, back and sides", 0, 1)
    held_out: float = setting(
        0.05, "share of clusters that are never trained on; 0 keeps the last network", 0, 1
    )
    held_objects: int = setting(64, "objects of these that are scored at each validation, at most", 1)
    pixels: int = setting(1536, "of other views that a sample is compared in", 1)
    init_from: str = setting("", "weights of a shape network, or of a generator, whose first one it takes")
    network: OccupancyConfig = field(default_factory=OccupancyConfig)
    objective: ShapeObjectiveConfig = field(default_factory=ShapeObjectiveConfig)


def training_objects(config: ShapeConfig) -> Together:
    """What there is to train on.

    Raises:
        UserError: when nothing was named, or quadruples that carve nothing.
    """
    from distill.samples.datasets import first_whole
    from distill.samples.unpacked import open_renders
    from distill.shape.carving import CarvedQuadruples, Together

    parts: list[Any] = []
    if config.renders:
        parts.append(open_renders(config.renders, config.unpacked_dir, config.dataloader_num_workers == 0))
    if config.quadruples:
        parts.append(carved := CarvedQuadruples(config.quadruples))
        first_whole(carved, min(100, len(carved)))  # raises where none of them carves anything
    if not parts:
        raise UserError("nothing to train on: set renders=[FOLDER], quadruples=[FOLDER], or both")
    return Together(parts)


class HoldsOut(Protocol):
    """Configuration of a trainer that scores by objects it never trains on."""

    held_out: float
    held_objects: int


def split(objects: Described, config: HoldsOut) -> tuple[list[int], list[int]]:
    """Indices of the objects to train on, and of the plain variants of those to score by.

    Of several clusters one is always held out, where a share of them is asked for. Damaged objects, whose
    cluster is not known, are among the first, which do without them.
    """
    from distill.samples.renders import described
    from distill.shape.samples import rank

    found = [
        (i, None, 0) if meta is None else (i, rank(meta), meta.get("variant", 0))
        for i, meta in described(objects)
    ]
    places = sorted({place for _, place, _ in found if place is not None})
    share = config.held_out
    if share and len(places) > 1:
        share = max(share, places[0] + 1e-9)
    train, plain = [], []
    for i, place, variant in found:
        if place is None or place >= share:
            train.append(i)
        elif not variant:
            plain.append(i)
    if not train or (config.held_out and not plain):
        raise UserError(
            f"held_out={config.held_out:g} leaves {len(train)} of {len(objects)} rendered objects to train "
            f"on and {len(plain)} to score by: give another share, or 0 to keep none"
        )
    count = min(len(plain), config.held_objects)  # of all, since neighbours in a folder are of one kind
    return train, [plain[len(plain) * k // count] for k in range(count)]


def check_same_network(config: ShapeConfig, start: dict[str, Any] | None) -> None:
    """Name the options in which the network to start from is another one, where its config tells.

    Raises:
        UserError: when there are any.
    """
    before, asked = (json.loads(json.dumps(asdict(c))) for c in (OccupancyConfig(), config.network))
    before |= start or asked
    changed = [f"network.{k}={json.dumps(before[k])}" for k in asked if before[k] != asked[k]]
    if changed:
        raise UserError(f"{config.init_from} holds another network than asked for: set {' '.join(changed)}")


@dataclass
class Keeper:
    """Keeps the averaged network that scores best on held-out objects, over all sessions of a run."""

    config: ShapeConfig  # of the run
    objects: Together  # renders
    members: Sequence[int]  # indices of the held-out ones; without any, every network replaces the one before

    def __post_init__(self) -> None:
        from dd3g.training.checkpoints import checkpoints

        self.folder = Path(self.config.output_dir) / "model"
        path = self.folder / SCORES
        self.best: dict[str, float] = {}
        goes_on = self.config.resume_from_checkpoint and checkpoints(Path(self.config.output_dir))
        if goes_on and path.exists():
            with contextlib.suppress(ValueError):  # a node that lost power leaves an empty file
                self.best = json.loads(path.read_text())

    @cached_property  # a GPU waits for them
    def batches(self) -> list[ShapeSample]:
        """One fixed sample of each held-out object that is not damaged."""
        from dd3g.training import generator_for
        from distill.shape.samples import ShapeSample, shape_sample

        shape, size = self.config.network, self.config.train_batch_size
        sizes = shape.size, shape.bins, HELD_PIXELS
        made = []
        for start in range(0, len(self.members), size):
            samples = []
            for i in self.members[start : start + size]:
                with contextlib.suppress(UserError):  # as in training, they cost themselves
                    samples.append(shape_sample(self.objects[i], generator_for(0, i), *sizes))
            if samples:
                made.append(ShapeSample.collate(samples))
        return made

    def __call__(self, average: OccupancyNet, step: int) -> dict[str, float]:
        """Score, print, and save what is best so far; returns the scores."""
        from distill.shape.objective import shape_scores

        if not self.members:
            average.save_pretrained(self.folder)
            return {}
        device = average.rays.device
        scores = shape_scores(average, (batch.to(device) for batch in self.batches))
        if not scores:
            raise UserError(
                f"all {len(self.members)} objects to score by are damaged: render them again, or change "
                "held_out"
            )
        print(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()), file=sys.stderr)
        if not self.best or scores[KEPT_BY] > self.best[KEPT_BY]:
            self.best = {"step": step, **scores}
            average.save_pretrained(self.folder)
            write_text(self.folder / SCORES, json.dumps(self.best) + "\n")
        return scores


def run(config: ShapeConfig) -> Path:
    """Train; returns the folder of the averaged network that did best on held-out objects."""
    start = time.monotonic()
    import torch

    from dd3g.nn.checkpoint import find_weights, read_config
    from dd3g.pepd.occupancy import OccupancyNet
    from dd3g.training import fit
    from distill.shape.objective import ShapeObjective
    from distill.shape.samples import ShapeDataset, check_volumes

    torch.manual_seed(config.seed)
    network, shape = OccupancyNet(config.network), config.network
    if config.init_from:
        from dd3g.pepd import Generator  # which only this start needs

        folder = find_weights(config.init_from)
        found = read_config(folder, "shape", "generator")
        whole = found["kind"] == "generator"
        check_same_network(config, found.get("shape") if whole else found)
        own = Generator.from_pretrained(folder).shape if whole else [OccupancyNet.from_pretrained(folder)]
        if not own:
            raise UserError(f"{config.init_from} has no shape network to start from: give another init_from")
        network.load_state_dict(own[0].state_dict())
    objects = training_objects(config)
    check_volumes(objects, shape.size)
    train, held = split(objects, config)
    shares = config.scan_fraction, config.shape_fraction
    sizes = shape.size, shape.bins, train
    samples = ShapeDataset(
        objects,
        config.seed,
        *sizes,
        *shares,
        config.pixels,
        stretch=config.stretch,
        square_on=config.square_on,
    )
    keeper = Keeper(config, objects, held)
    config.count_opening(start)
    fit(network, ShapeObjective(config.objective), samples, config, keeper)
    return keeper.folder


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run, ShapeConfig, argv, "dd3g train-shape")


if __name__ == "__main__":
    sys.exit(main())
