"""The smallest distillation: what its command line says."""

from __future__ import annotations

from stand_ins.training_runs import fresh

from dd3g.command.configuration import launch
from distill.train import DistillConfig, run

GENERATOR = {
    "size": 32, "latent_shape": "[4,64,8,8]", "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8,
    "fine": 8, "mid": 16, "head_hidden": 8,
}  # fmt: skip
TEACHER = {"size": 32, "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8, "fine": 8, "mid": 16}


def words(renders, output, section="generator", shape=GENERATOR, **options):
    """Command line of a small run."""
    settings = {
        "renders": f"[{renders}]", "output_dir": output, "train_batch_size": 2, "max_train_steps": 4,
        "checkpointing_steps": 2, "validation_steps": 100, "lr_warmup_steps": 2, "lr_decay_steps": 2,
        "report_to": "none", "mixed_precision": "no",
    }  # fmt: skip
    settings |= {f"{section}.{k}": v for k, v in shape.items()} | options
    return [f"{k}={v}" for k, v in settings.items()]


def distil(renders, output, **options):
    fresh()
    return launch(run, DistillConfig, words(renders, output, **options))
