"""A run of the training loop that fits a line, in this process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dd3g.training import Batch, LoopConfig, fit, generator_for


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)


@dataclass(frozen=True)
class Point(Batch):
    x: Tensor
    y: Tensor


class Points:
    """Samples of a line; from `broken` on there are none."""

    def __init__(self, broken=1 << 60, error=None):
        self.broken, self.error = broken, error

    def __getitem__(self, index):
        if index >= self.broken:
            raise self.error
        x = torch.randn(3, generator=generator_for(0, index))
        return Point(x, x.sum()[None])


def squared(model, batch, step):
    error = (model(batch.x) - batch.y).square().mean()
    return error, {"root": error.detach().sqrt()}


def fit_line(folder, points=None, loss=squared, **options):
    torch.manual_seed(0)
    settings = {
        "max_train_steps": 8, "checkpointing_steps": 3, "validation_steps": 4, "train_batch_size": 4,
        "learning_rate": 0.05, "lr_warmup_steps": 2, "lr_decay_steps": 2, "report_to": "none",
        "mixed_precision": "no",
    }  # fmt: skip
    config = LoopConfig(output_dir=str(folder), **(settings | options))
    seen = []

    def publish(model, step):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        (folder / "model").mkdir(parents=True, exist_ok=True)
        torch.save(seen[-1], folder / "model/line.pt")

    model = Line()
    fit(model, loss, points or Points(), config, publish)
    return model, seen
