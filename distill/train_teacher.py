"""Train the compact teacher on rendered objects.

accelerate launch distill/train_teacher.py --config configs/teacher/nano.yaml
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dd3g.command.configuration import launch
from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.training.config import LoopConfig
from distill.config import CompactConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill.samples.render_samples import Sample
    from distill.teachers.compact import CompactTeacher


@dataclass
class TeacherConfig(LoopConfig):
    """Everything that a teacher run needs."""

    configs: ClassVar[str] = "teacher"

    output_dir: str = "runs/teacher"
    renders: list[str] = setting(["runs/renders/train"], "shards made by `dd3g data render`")
    unpacked_dir: str = setting("", "of this node's disk, into which renders are decoded once")
    validation_renders: str = setting("", "rendered objects for the contact sheet; never trained on")
    scan_fraction: float = setting(0.4, "share of scans and PBR objects", 0, 1)
    shape_fraction: float = setting(0.1, "share of untextured shapes with made-up textures", 0, 1)
    turned_fraction: float = setting(0.15, "share whose rig is turned from the input, for the verifier", 0, 1)
    condition_dropout: float = setting(0.1, "share without a picture, for classifier-free guidance", 0, 1)
    teacher: CompactConfig = field(default_factory=CompactConfig)


@dataclass
class TeacherLoss:
    """Denoising loss in x0, weighted by 1 / max(sigma, 0.3)^2."""

    teacher: CompactTeacher  # gives codec and schedule
    dropout: float  # share of samples whose picture is taken away, for classifier-free guidance

    def __call__(self, model: nn.Module, batch: Sample, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(model, batch, step) -> (loss, terms)."""
        from distill.teachers.compact import CompactCondition

        schedule = self.teacher.schedule
        x0 = self.teacher.codec.encode(batch.views)  # (B, V, 64, s, s)
        t = (batch.uniform[:, 0] * schedule.steps).long()  # (B,)
        x_t = schedule.add_noise(x0, batch.noise, t)
        keep = (batch.uniform[:, 1] >= self.dropout).float()[:, None, None, None]
        predicted = model(x_t, t, CompactCondition(batch.image * keep, batch.rig)).float()
        sigma2 = (1 - schedule.ab(t)).clamp(min=0.09).to(x0)  # (B,)
        error = (predicted - x0).square().mean((-1, -2, -3))  # (B, V)
        loss = (error / sigma2[:, None]).mean()
        terms = {"front": error[:, 0].mean(), "sides": error[:, 1::2].mean(), "back": error[:, 2].mean()}
        return loss, {k: v.detach() for k, v in terms.items()}


def draw_contact_sheet(teacher: CompactTeacher, batch: Sample, path: Path) -> None:
    """Draw input, truth and DDIM samples of fixed items into a picture."""
    import torch

    from dd3g.diffusion import sample
    from distill.pictures import save_contact_sheet

    batch = batch.to(next(teacher.parameters()).device)
    condition = teacher.condition(batch.image)
    plan = teacher.schedule.plan(teacher.default_steps)
    found = sample(teacher.denoiser(condition), teacher.schedule, batch.noise, plan, condition, clip=1.0)
    views = teacher.codec.decode(found.x0)
    save_contact_sheet(torch.cat([batch.image[:, None], batch.views, views], 1), path)


def run(config: TeacherConfig) -> Path:
    """Train; returns the folder of the averaged teacher."""
    start = time.monotonic()
    import torch

    from dd3g.training import fit
    from distill.samples.datasets import check_fit, validation_batch
    from distill.samples.render_samples import RenderDataset
    from distill.samples.unpacked import open_renders
    from distill.teachers.compact import CompactTeacher

    torch.manual_seed(config.seed)
    try:
        teacher = CompactTeacher(config.teacher)
    except ValueError as error:
        raise UserError(f"configuration: {error}") from error
    dataset = RenderDataset(
        open_renders(config.renders, config.unpacked_dir, config.dataloader_num_workers == 0),
        config.seed,
        teacher.latent_shape,
        scan_fraction=config.scan_fraction,
        shape_fraction=config.shape_fraction,
        turned_fraction=config.turned_fraction,
        targets=1,
    )
    check_fit(dataset, teacher.config.size, teacher.latent_shape)
    shape = teacher.latent_shape
    held = validation_batch(config.validation_renders, teacher.config.size, shape)
    output = Path(config.output_dir)

    def publish(average: CompactTeacher, step: int) -> None:
        average.save_pretrained(output / "model")
        if held is not None:
            draw_contact_sheet(average, held, output / f"sheet-{step:06d}.png")

    config.count_opening(start)
    fit(teacher, TeacherLoss(teacher, config.condition_dropout), dataset, config, publish)
    return output / "model"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return launch(run, TeacherConfig, argv, "dd3g train-teacher")


if __name__ == "__main__":
    sys.exit(main())
