"""Batches of a training: a pure function of seed, step and process, so that a run can be entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dd3g.errors import UserError
from dd3g.training.config import LoopConfig


def mixed_seed(seed: int, index: int) -> int:
    """The seed of step or sample `index` of a run with this `seed`."""
    return (seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) % (1 << 63)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The CPU generator that belongs to step or sample `index` of a run with this `seed`."""
    return torch.Generator().manual_seed(mixed_seed(seed, index))


@dataclass(frozen=True)
class Batch:
    """Base of typed samples: a dataclass of tensors, or of what has `to`, `pin_memory` and `stack` like them.

    A batch has the type of its samples, with one more leading dimension in every field.
    """

    @classmethod
    def collate(cls, samples: Sequence[Self]) -> Self:
        """Stack samples field by field."""
        columns = ([getattr(s, f.name) for s in samples] for f in fields(cls))
        return cls(*(torch.stack(c) if isinstance(c[0], Tensor) else type(c[0]).stack(c) for c in columns))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Same meaning as `Tensor.to`."""
        return type(self)(*(getattr(self, f.name).to(*args, **kwargs) for f in fields(self)))

    def pin_memory(self) -> Self:
        """In page-locked memory, from which copies to a GPU overlap with its work."""
        return type(self)(*(getattr(self, f.name).pin_memory() for f in fields(self)))


class Samples(Protocol):
    """An endless data set."""

    def __getitem__(self, index: int) -> Batch:
        """Sample number `index` of the run; the same index always gives the same sample."""


def batches(
    accelerator: Accelerator, samples: Samples | None, config: LoopConfig, step: int
) -> Iterator[Any]:
    """The batches of this process from optimiser step `step` on, one for each micro-step.

    Micro-step k takes samples k * B ... k * B + B - 1, where B is the batch of all processes together:
    several of them see what one would see. Without samples it gets the generator that belongs to (seed, k),
    from which the loss draws.
    """
    first = step * config.gradient_accumulation_steps
    if samples is None:
        yield from (generator_for(config.seed, k) for k in count(first))
        return
    workers = config.dataloader_num_workers
    loader: DataLoader[Any] = DataLoader(
        _Collated(samples),
        batch_sampler=_Indices(config, accelerator.num_processes, accelerator.process_index, first),
        collate_fn=_unchanged,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch.to(accelerator.device, non_blocking=True)


@dataclass(frozen=True)
class _Indices:
    """Indices of each micro-step's samples for one of several processes, made when they are asked for."""

    config: LoopConfig
    processes: int
    rank: int
    first: int

    def __iter__(self) -> Iterator[list[int]]:
        size = self.config.train_batch_size
        for k in range(self.first, self.config.max_train_steps * self.config.gradient_accumulation_steps):
            start = (k * self.processes + self.rank) * size
            yield list(range(start, start + size))


class _Collated(Dataset):
    """Hands a worker's `UserError` over as a value: raised there, torch would put a traceback before it."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitems__(self, indices: list[int]) -> Batch | UserError:
        try:
            found = [self.samples[i] for i in indices]
        except UserError as error:
            return error
        return type(found[0]).collate(found)


def _unchanged(batch: Any) -> Any:
    return batch
