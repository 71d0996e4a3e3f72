"""Distil a teacher into the PEPD generator.

accelerate launch distill/train.py --config configs/distill/nano.yaml
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dd3g.cameras import Cameras
from dd3g.configuration import launch
from dd3g.errors import UserError
from dd3g.nn.checkpoint import load_weights
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.pepd.generator import find_weights
from dd3g.rasterize import rasterize
from dd3g.setting import setting
from distill.config import LoopConfig
from distill.draws import MixedDraws, QuadrupleDraws, RenderDraws, check_fit
from distill.loop import Draws, fit
from distill.objective import Objective, ObjectiveConfig, Verifier
from distill.quadruples import Quadruples
from distill.renders import RenderedObjects
from distill.sheet import save_sheet


@dataclass
class DistillConfig(LoopConfig):
    """Everything that a generator run needs. Give `quadruples`, `renders`, or both."""

    configs: ClassVar[str] = "distill"

    output_dir: str = "runs/distill"
    quadruples: list[str] = setting([], "shards made by distill.simulate")
    renders: list[str] = setting([], "shards made by tools/render_objects.py")
    quadruples_start: float = setting(0.5, "with both: share of the steps before the first quadruple")
    quadruples_share: float = setting(0.5, "with both: share of quadruples from then on")
    scan_fraction: float = setting(0.4, "share of renders of scans and PBR objects")
    shape_fraction: float = setting(0.1, "share of renders of untextured shapes with made-up textures")
    targets: int = setting(4, "views a sample is compared in, the input among them")
    validation_renders: str = setting("", "rendered objects for the sheet; never trained on")
    pretrained_teacher_model: str = setting("", "verifier; needed when objective.implicit is not 0")
    init_from: str = setting("", "start from the weights of this generator")
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("quadruples_start", "quadruples_share", "scan_fraction", "shape_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share: give 0 to 1, got {getattr(self, name)}")
        if self.targets < 1:
            raise ValueError(f"targets must be at least 1, got {self.targets}")


def training_draws(config: DistillConfig) -> Draws:
    """The samples that the configuration asks for."""
    shape, size = config.generator.latent_shape, config.generator.size
    renders = quadruples = None
    if config.renders:
        renders = RenderDraws(
            RenderedObjects(config.renders, cached=config.dataloader_num_workers == 0),
            config.seed,
            shape,
            scan_fraction=config.scan_fraction,
            shape_fraction=config.shape_fraction,
            targets=config.targets,
        )
        check_fit(renders, size, shape)
    if config.quadruples:
        quadruples = QuadrupleDraws(
            Quadruples(config.quadruples, cache=config.dataloader_num_workers == 0),
            config.seed,
            targets=config.targets,
        )
        check_fit(quadruples, size, shape)
    if renders and quadruples:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        batch = config.train_batch_size * config.gradient_accumulation_steps * processes
        start = int(config.quadruples_start * config.max_train_steps * batch)
        return MixedDraws(renders, quadruples, start, config.quadruples_share, config.seed)
    draws = renders or quadruples
    if draws is None:
        raise UserError("nothing to train on: set quadruples=[FOLDER], renders=[FOLDER], or both")
    return draws


def generator_sheet(samples: list[dict[str, Tensor]]) -> Callable[[nn.Module, Path], Any]:
    """A function that draws fixed items into a picture: truth, renders at the rig, oblique renders."""

    def sheet(model: nn.Module, path: Path) -> None:
        device = next(model.parameters()).device
        batch = {k: torch.stack([s[k] for s in samples]).to(device) for k in samples[0]}
        size = batch["image"].shape[-1]
        rig = Cameras(batch["rig_viewmats"], batch["rig_Ks"], size, size)
        oblique = Cameras.orbit([45.0, 135.0, 315.0], 25.0, size).to(device)
        gaussians = model(batch["noise"], rig, batch["image"])
        shown = [rasterize(gaussians, cameras, antialiased=True).rgb for cameras in (rig, oblique)]
        alpha = batch["views"][:, :, 3:]
        save_sheet(torch.cat([batch["views"][:, :, :3] * alpha + 1 - alpha, *shown], 1), path)

    return sheet


def run(config: DistillConfig) -> Path:
    """Train; returns the folder of the averaged generator."""
    torch.manual_seed(config.seed)
    try:
        generator = Generator(config.generator)
    except ValueError as error:
        raise UserError(f"configuration: {error}") from error
    if config.init_from:
        load_weights(find_weights(config.init_from), generator)
    sheet = None
    if config.validation_renders:
        held = RenderDraws(
            RenderedObjects([config.validation_renders]),
            0,
            config.generator.latent_shape,
            free_fraction=0,
            recolour=0,
        )
        check_fit(held, config.generator.size, config.generator.latent_shape, "validation_renders")
        sheet = generator_sheet([held.draw(i) for i in range(8)])
    objective = Objective(config.objective, config.generator, config.max_train_steps, *judges(config))
    return fit(
        generator,
        objective,
        training_draws(config),
        config,
        lambda model, folder: model.save_pretrained(folder),  # type: ignore[operator]
        sheet,
    )


def judges(config: DistillConfig) -> tuple[Verifier | None, nn.Module | None]:
    """The verifier and the perceptual distance, where their weights are not 0."""
    c, verifier, perceptual = config.objective, None, None
    if c.implicit:
        if not config.pretrained_teacher_model:
            raise UserError("objective.implicit needs a verifier: set pretrained_teacher_model=FOLDER")
        if c.implicit_every < 1:
            raise UserError(f"objective.implicit_every must be at least 1, got {c.implicit_every}")
        from distill.teachers import load

        teacher, size = load(config.pretrained_teacher_model), config.generator.size
        if teacher.rig.width != size:
            raise UserError(
                f"pretrained_teacher_model {config.pretrained_teacher_model} sees pictures of "
                f"{teacher.rig.width} pixels, the generator of {size}: give a verifier of that size"
            )
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
        verifier = Verifier(
            teacher,
            c.implicit_form,
            config.seed,
            c.implicit_guidance,
            precision,
        )
    if c.perceptual:
        from distill.perceptual import VggDistance

        perceptual = VggDistance()
    return verifier, perceptual


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run, DistillConfig, argv, "dd3g train")


if __name__ == "__main__":
    sys.exit(main())
