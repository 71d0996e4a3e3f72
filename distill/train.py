"""Distil a teacher into the PEPD generator.

accelerate launch distill/train.py --config configs/distill/nano.yaml
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dd3g.command.configuration import launch
from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.pepd.config import GeneratorConfig
from dd3g.processes import from_launcher
from dd3g.training.config import LoopConfig
from distill.config import BELIEVED, ObjectiveConfig, StartConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dd3g.pepd import Generator
    from dd3g.training import Samples
    from distill.objective import Verifier
    from distill.samples.render_samples import Sample


@dataclass
class DistillConfig(LoopConfig):
    """Everything that a generator run needs. Give `quadruples`, `renders`, or both."""

    configs: ClassVar[str] = "distill"

    output_dir: str = "runs/distill"
    quadruples: list[str] = setting([], "shards made by `dd3g simulate`")
    renders: list[str] = setting([], "shards made by `dd3g data render`")
    unpacked_dir: str = setting("", "of this node's disk, into which renders are decoded once")
    quadruples_start: float = setting(0.5, "with both: share of the steps before the first quadruple", 0, 1)
    quadruples_share: float = setting(0.5, "with both: share of quadruples from then on", 0, 1)
    scan_fraction: float = setting(0.4, "share of renders of scans and PBR objects", 0, 1)
    shape_fraction: float = setting(0.1, "share of renders of untextured shapes with made-up textures", 0, 1)
    max_train_samples: int = setting(0, "the first so many renders, and quadruples, alone; 0: all", 0)
    targets: int = setting(4, "views a sample is compared in, the input among them", 1)
    matte_confidence: float = setting(BELIEVED, "least, of views without alpha; below it only colour counts")
    validation_renders: str = setting("", "for the contact sheet, never trained on; empty: some quadruples")
    pretrained_teacher_model: str = setting("", "verifier; needed when objective.implicit is not 0")
    init_from: str = setting("", "start from the weights of this generator")
    push_to_hub: bool = setting(False, "upload the model at the end, to hub_model_id")
    hub_model_id: str = setting("", "owner/name on the hub")
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    start: StartConfig = field(default_factory=StartConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub and self.hub_model_id.count("/") != 1:
            raise ValueError(f"push_to_hub needs hub_model_id=OWNER/NAME, got {self.hub_model_id!r}")


def training_samples(config: DistillConfig) -> Samples:
    """The samples that the configuration asks for."""
    from distill.quadruples import Quadruples
    from distill.samples.datasets import MixedDataset, QuadrupleDataset, check_fit, check_rig, first_whole
    from distill.samples.render_samples import RenderDataset
    from distill.samples.unpacked import open_renders
    from distill.simulation.generate_shards import teacher_of
    from distill.student import check_steps, check_weights

    shape, size = config.generator.latent_shape, config.generator.size
    renders = quadruples = None
    if config.renders:
        renders = RenderDataset(
            open_renders(config.renders, config.unpacked_dir, config.dataloader_num_workers == 0),
            config.seed,
            shape,
            scan_fraction=config.scan_fraction,
            shape_fraction=config.shape_fraction,
            targets=config.targets,
            most=config.max_train_samples,
        )
        check_fit(renders, size, shape)
    if config.quadruples:
        for source in config.quadruples:  # each of another teacher, perhaps
            part = QuadrupleDataset(Quadruples(source, tolerant=True), config.seed, size=size)
            check_fit(part, size, shape, source)
            check_rig(part, config.generator, source)
            steps = first_whole(part.quadruples, len(part)).meta.get("steps")
            made_by = teacher_of(Path(source))
            check_steps(config.start, made_by, steps, source)
            verifier = config.pretrained_teacher_model if config.objective.implicit else ""
            teachers = {"start.teacher": config.start.teacher, "pretrained_teacher_model": verifier}
            check_weights(teachers, made_by, source)
        quadruples = QuadrupleDataset(
            Quadruples(config.quadruples, cache=config.dataloader_num_workers == 0, tolerant=True),
            config.seed,
            targets=config.targets,
            size=size,
            believed=config.matte_confidence,
            noise_shape=shape,
            most=config.max_train_samples,
        )
    if renders is not None and quadruples is not None:
        config.count_epochs(len(renders) + len(quadruples))
        batch = config.train_batch_size * config.gradient_accumulation_steps * from_launcher("WORLD_SIZE")
        start = int(config.quadruples_start * config.max_train_steps * batch)
        return MixedDataset(renders, quadruples, start, config.quadruples_share, config.seed)
    samples = renders if renders is not None else quadruples
    if samples is None:
        raise UserError("nothing to train on: set quadruples=[FOLDER], renders=[FOLDER], or both")
    config.count_epochs(len(samples))
    return samples


def first_quadruples(samples: Samples) -> Sample | None:
    """Eight quadruples to be shown where no renders are held out; None where there are none."""
    from distill.samples.datasets import MixedDataset, QuadrupleDataset, shown_batch

    dataset = samples.quadruples if isinstance(samples, MixedDataset) else samples
    if not isinstance(dataset, QuadrupleDataset):
        return None
    return shown_batch(dataset)[0]


def draw_contact_sheet(generator: Generator, batch: Sample, path: Path) -> None:
    """Draw fixed items into a picture: truth, renders at the rig, oblique renders."""
    import torch

    from dd3g.cameras import Cameras
    from dd3g.rasterizer import rasterize
    from distill.pictures import on_white, save_contact_sheet

    device = next(generator.parameters()).device
    batch = batch.to(device)
    oblique = Cameras.orbit([45.0, 135.0, 315.0], 25.0, batch.rig.width).to(device)
    gaussians = generator(batch.noise, batch.rig, batch.image, front=batch.target_cameras[:, 0])
    shown = [rasterize(gaussians, cameras, antialiased=True).rgb for cameras in (batch.rig, oblique)]
    save_contact_sheet(torch.cat([on_white(batch.views), *shown], 1), path)


def run(config: DistillConfig) -> Path:
    """Train; returns the folder of the averaged generator."""
    start = time.monotonic()
    import torch

    from dd3g.nn.checkpoint import find_weights, load_weights
    from dd3g.pepd import Generator
    from dd3g.rasterizer import get_ready
    from dd3g.training import fit
    from distill.model_card import write_card
    from distill.objective import Objective
    from distill.samples.datasets import validation_batch
    from distill.student import share_frozen, start_from_teacher

    torch.manual_seed(config.seed)
    if config.generator.shape is not None:
        raise UserError("generator.shape: its network is trained by `dd3g train-shape`; leave it out here")
    try:
        generator = (
            start_from_teacher(config.generator, config.start)
            if config.start.teacher
            else Generator(config.generator)
        )
    except ValueError as error:
        raise UserError(f"configuration: {error}") from error
    if config.init_from:
        load_weights(find_weights(config.init_from), generator, without="shape.")
    shape = config.generator.latent_shape
    if torch.cuda.is_available() and not config.use_cpu:
        # Renders are first looked at after the bootstrap, hours into a long run. A scheduler may show each
        # process its own GPU alone.
        get_ready(torch.device("cuda", from_launcher("LOCAL_RANK") % torch.cuda.device_count()))
    held = validation_batch(config.validation_renders, config.generator.size, shape)
    verifier, perceptual = losses(config)
    samples = training_samples(config)
    if held is None:
        held = first_quadruples(samples)
    if verifier is not None and config.objective.implicit_shared:
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise UserError("objective.implicit_shared needs whole weights, which FSDP splits: leave it out")
        share_frozen(generator, verifier.teacher)
    objective = Objective(config.objective, config.max_train_steps, verifier, perceptual)
    output = Path(config.output_dir)

    def loss(model: nn.Module, batch: Sample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        # With num_train_epochs, `fit` counts the steps.
        objective.total = config.max_train_steps
        return objective(model, batch, step)

    def publish(average: Generator, step: int) -> None:
        average.save_pretrained(output / "model")
        write_card(output / "model", config, step)
        if held is not None:
            draw_contact_sheet(average, held, output / f"sheet-{step:06d}.png")

    config.count_opening(start)
    average = fit(generator, loss, samples, config, publish)
    if config.push_to_hub and from_launcher("RANK") == 0:
        print(f"uploaded to {average.push_to_hub(config.hub_model_id)}")
    return output / "model"


def losses(config: DistillConfig) -> tuple[Verifier | None, nn.Module | None]:
    """The verifier and the perceptual distance, where their weights are not 0."""
    import torch

    from distill.objective import Verifier

    c, verifier, perceptual = config.objective, None, None
    if c.implicit:
        if not config.pretrained_teacher_model:
            raise UserError("objective.implicit needs a verifier: set pretrained_teacher_model=FOLDER")
        from distill.teachers import load
        from distill.teachers.zero123plus import Zero123PlusTeacher

        # What is frozen needs no more digits than it computes with; float16 comes with the autocast.
        numbers = "bfloat16" if config.precision == "bf16" and not c.implicit_shared else "float32"
        teacher = load(config.pretrained_teacher_model, precision=numbers)
        name = config.pretrained_teacher_model
        if not teacher.sees_picture or isinstance(teacher, Zero123PlusTeacher):
            raise UserError(
                f"pretrained_teacher_model {name} cannot verify: it does not show a picture's object from "
                "any side; give ImageDream, or a teacher of dd3g train-teacher"
            )
        size = config.generator.size
        if teacher.rig.width != size:
            raise UserError(
                f"pretrained_teacher_model {name} sees pictures of {teacher.rig.width} pixels, the generator "
                f"of {size}: give a verifier of that size"
            )
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
        verifier = Verifier(teacher, c.implicit_form, config.seed, c.implicit_guidance, precision)
    if c.perceptual:
        from distill.perceptual import VggDistance

        perceptual = VggDistance()
    return verifier, perceptual


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run, DistillConfig, argv, "dd3g train")


if __name__ == "__main__":
    sys.exit(main())
