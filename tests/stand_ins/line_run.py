"""A line that learns in no time, as a script for several processes.

torchrun --nproc_per_node 2 tests/stand_ins/line_run.py OUTPUT [fsdp] [key=value …]
"""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group
from torch.nn.parallel import DistributedDataParallel

from dd3g.command.configuration import launch
from dd3g.training import Batch, LoopConfig, fit, generator_for

LINE = {
    "max_train_steps": 8, "checkpointing_steps": 3, "validation_steps": 100, "train_batch_size": 4,
    "learning_rate": 0.05, "lr_warmup_steps": 2, "lr_decay_steps": 2, "report_to": "none",
    "mixed_precision": "no",
}  # fmt: skip


class ResidualBlock(nn.Module):
    """Of a kind that FSDP splits by itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.layer(x)


class MultiViewTransformer(ResidualBlock):
    """Likewise."""


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([ResidualBlock(), MultiViewTransformer()])
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.out(x)


@dataclass(frozen=True)
class Point(Batch):
    x: Tensor
    y: Tensor
    index: Tensor


class Points:
    def __getitem__(self, index):
        x = torch.randn(3, generator=generator_for(0, index))
        return Point(x, x.sum()[None], torch.tensor(index))


def leave_group(*args):
    """As torch does; a wrapper that outlived the group could wait for gloo's threads for ever."""
    alive = [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
    assert not alive, "the group of processes ends before the model that is wrapped for it"
    destroy_process_group(*args)


def run(config: LoopConfig) -> Path:
    """Train; each process writes down which samples it saw."""
    torch.manual_seed(config.seed)
    output, rank = Path(config.output_dir), os.environ.get("RANK", "0")
    output.mkdir(parents=True, exist_ok=True)

    def loss(model, batch, step):
        with (output / f"seen-{rank}.txt").open("a") as stream:
            stream.write("".join(f"{step} {i}\n" for i in batch.index.tolist()))
        return (model(batch.x) - batch.y).square().mean()

    def publish(average, step):
        torch.save(average.state_dict(), output / "line.pt")

    fit(Line(), loss, Points(), config, publish)
    return output


def main():
    output, *rest = sys.argv[1:]
    if rest[:1] == ["fsdp"]:
        from stand_ins.fsdp_on_cpu import pretend

        pretend()
        rest = rest[1:]
    torch.distributed.destroy_process_group = leave_group
    words = [f"{k}={v}" for k, v in LINE.items()]
    return launch(run, LoopConfig, [*words, f"output_dir={output}", *rest])


if __name__ == "__main__":
    sys.exit(main())
