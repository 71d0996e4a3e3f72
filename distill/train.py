"""Distil a teacher into the PEPD generator.

accelerate launch distill/train.py --config configs/distill/nano.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.rasterize import rasterize
from distill.config import LoopConfig, parse
from distill.draws import MixedDraws, QuadrupleDraws, RenderDraws
from distill.loop import Draws, fit
from distill.objective import Objective, ObjectiveConfig, Verifier
from distill.quadruples import Quadruples
from distill.renders import RenderedObjects
from distill.sheet import save_sheet


@dataclass
class DistillConfig(LoopConfig):
    """Everything that a generator run needs. Give `quadruples`, `renders`, or both."""

    output_dir: str = "runs/distill"
    quadruples: list[str] = field(default_factory=list)  # shards made by distill.simulate
    renders: list[str] = field(default_factory=list)  # shards made by tools/render_objects.py
    quadruples_start: float = 0.5  # with both: share of the steps before the first quadruple
    quadruples_share: float = 0.5  # with both: share of quadruples from then on
    scan_fraction: float = 0.4
    shape_fraction: float = 0.1
    validation_renders: str = ""  # rendered objects for the sheet; never trained on
    pretrained_teacher_model: str = ""  # verifier; needed when objective.implicit is not 0
    init_from: str = ""  # start from the weights of this generator
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


def training_draws(config: DistillConfig) -> Draws:
    """The samples that the configuration asks for."""
    shape = config.generator.latent_shape
    renders = quadruples = None
    if config.renders:
        renders = RenderDraws(
            RenderedObjects(config.renders, cached=True),
            config.seed,
            shape,
            scan_fraction=config.scan_fraction,
            shape_fraction=config.shape_fraction,
        )
    if config.quadruples:
        quadruples = QuadrupleDraws(Quadruples(config.quadruples, cache=True), config.seed)
    if renders and quadruples:
        samples = config.max_train_steps * config.gradient_accumulation_steps * config.train_batch_size
        start = int(config.quadruples_start * samples)
        return MixedDraws(renders, quadruples, start, config.quadruples_share, config.seed)
    draws = renders or quadruples
    if draws is None:
        raise UserError("nothing to train on: set quadruples=[FOLDER], renders=[FOLDER], or both")
    return draws


def generator_sheet(samples: list[dict[str, Tensor]]) -> Callable[[nn.Module, Path], Any]:
    """A function that draws input, truth and renders of fixed items into a picture."""

    def sheet(model: nn.Module, path: Path) -> None:
        batch = {k: torch.stack([s[k] for s in samples]) for k in samples[0]}
        device = next(model.parameters()).device
        batch = {k: v.to(device) for k, v in batch.items()}
        size = batch["image"].shape[-1]
        rig = Cameras(batch["rig_viewmats"], batch["rig_Ks"], size, size)
        oblique = Cameras.orbit([45.0, 135.0, 315.0], 25.0, size).to(device)
        render = rasterize(model(batch["noise"], rig, batch["image"]), rig, background=1.0)
        extra = rasterize(model(batch["noise"], rig, batch["image"]), oblique, background=1.0)
        truth = batch["views"]
        truth = truth[:, :, :3] * truth[:, :, 3:] + 1 - truth[:, :, 3:]
        save_sheet(torch.cat([truth, render.rgb, extra.rgb], 1), path)

    return sheet


def run(config: DistillConfig) -> Path:
    """Train; returns the folder of the averaged generator."""
    torch.manual_seed(config.seed)
    generator = Generator(config.generator)
    if config.init_from:
        generator.load_state_dict(Generator.from_pretrained(config.init_from).state_dict())
    draws = training_draws(config)
    verifier = perceptual = None
    if config.objective.implicit:
        if not config.pretrained_teacher_model:
            raise UserError("objective.implicit needs pretrained_teacher_model=FOLDER, the teacher that verifies")
        from distill.teachers import load

        verifier = Verifier(load(config.pretrained_teacher_model), config.objective.implicit_form, config.seed)
    if config.objective.perceptual:
        from distill.perceptual import VggDistance

        perceptual = VggDistance()
    objective = Objective(
        config.objective, config.generator, config.max_train_steps, verifier, perceptual
    )
    sheet = None
    if config.validation_renders:
        shape = config.generator.latent_shape
        held = RenderDraws(RenderedObjects([config.validation_renders]), 0, shape, free_fraction=0, recolour=0)
        sheet = generator_sheet([held.draw(i) for i in range(8)])
    return fit(generator, objective, draws, config, lambda m, p: m.save_pretrained(p), sheet)  # type: ignore[operator]


def main(argv: list[str] | None = None) -> int:
    """Command line; exit code 2 with one line when something is wrong."""
    try:
        print(f"generator written to {run(parse(sys.argv[1:] if argv is None else argv, DistillConfig))}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
