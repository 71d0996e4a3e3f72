"""Batches of a training: a pure function of seed, step and process, so that a run can be entered anywhere."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from multiprocessing.resource_tracker import ensure_running
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from dd3g.errors import UserError, first_line
from dd3g.machine import cores_each
from dd3g.training.config import LoopConfig
from dd3g.training.stopping import SIGNALS

SPARES = 16  # tries to make one sample
# From one try to the next: behind the end of any run, and elsewhere in the 32 bits of a seed that torch uses.
SPARE = (1 << 40) + 0x1B873593
HALF = (1 << 32) - 1  # the lower half of 64 bits


def mixed_seed(seed: int, index: int) -> int:
    """The seed of step or sample `index` of a run with this `seed`."""
    return (seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) % (1 << 63)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The CPU generator that belongs to step or sample `index` of a run with this `seed`."""
    return torch.Generator().manual_seed(mixed_seed(seed, index))


def normal_for(seed: int, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal of each sample of a run, made where `index` is: a GPU does not wait for the host.

    Counted, not drawn, so that all devices give the same: SplitMix64 (Steele, Lea and Flood 2014) of sample
    and place gives 64 bits, the two halves of which Box and Muller's formula turns into a number.

    Args:
        seed: of the run.
        index: (B,) int64, of the samples.
        shape: of one sample's numbers.

    Returns:
        (B, *shape) float32.
    """
    place = torch.arange(math.prod(shape), device=index.device)
    bits = _scrambled(_scrambled(index + mixed_seed(seed, 0))[:, None] + place)
    radius = (((bits & HALF) + 1).double() / (HALF + 1)).log().mul(-2).sqrt()
    angle = (_shifted(bits, 32)).double() * (2 * math.pi / (HALF + 1))
    return (radius * angle.cos()).float().unflatten(1, tuple(shape))


def _scrambled(x: Tensor) -> Tensor:
    """SplitMix64's number `x`; products of int64 wrap round, as they have to."""
    x = x * -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # without the sign


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
    accelerator: Accelerator, samples: Samples | None, config: LoopConfig, step: int, consumed: int
) -> Iterator[Any]:
    """The batches of this process from optimiser step `step` on, one for each micro-step, on the host.

    Micro-step k takes samples `consumed` + k * B ... + B - 1, where B is the batch of all processes together:
    several of them see what one would see, and another number of them goes on where the ones before stopped.
    Without samples it gets the generator that belongs to (seed, `consumed` + k), from which the loss draws.
    In place of a batch that cannot be made comes the `UserError` that says why.
    """
    left = (config.max_train_steps - step) * config.gradient_accumulation_steps
    if samples is None:
        yield from (generator_for(config.seed, consumed + k) for k in range(left))
        return
    workers = min(config.dataloader_num_workers, cores_each())  # more would only wait for each other
    loader: DataLoader[Any] = DataLoader(
        range(sys.maxsize),  # type: ignore[arg-type]
        batch_sampler=_indices(
            config.train_batch_size, accelerator.num_processes, accelerator.process_index, consumed, left
        ),
        collate_fn=_Collate(samples),
        num_workers=workers,
        prefetch_factor=config.dataloader_prefetch_factor if workers else None,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    bad: set[str] = set()
    for found in _until_a_worker_dies(loader):
        if isinstance(found, UserError):
            yield found
            continue
        for message in found.bad:
            name = message.partition(" (")[0]  # decoders describe one damage in several ways
            if name not in bad:
                print(f"warning: skipped a sample: {message}", file=sys.stderr, flush=True)
            bad.add(name)
        if len(bad) > config.max_bad_samples:
            yield UserError(
                f"{found.bad[-1]} (more than max_bad_samples={config.max_bad_samples} samples are damaged)"
            )
        else:
            yield found.batch


@contextmanager
def _signals_left_to_the_main_process() -> Iterator[None]:
    """Processes that are started here see none of `SIGNALS`, from their first moment on.

    Schedulers and terminals send them to whole groups of processes; the last step needs its batch.
    """
    names = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    if not hasattr(signal, "pthread_sigmask"):  # not a Unix
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, names)
    try:
        ensure_running()  # of multiprocessing; started later, it would let some through again
        signal.pthread_sigmask(signal.SIG_BLOCK, names)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _until_a_worker_dies(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        with _signals_left_to_the_main_process():
            made = iter(loader)
        yield from made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        yield UserError(
            f"a data loader's process ended ({first_line(error)}): if the system killed it for lack of "
            "memory, lower dataloader_num_workers or dataloader_prefetch_factor; then resume"
        )


def _indices(size: int, processes: int, rank: int, consumed: int, count: int) -> Iterator[list[int]]:
    """Indices of each micro-step's samples for one of several processes, made when they are asked for."""
    for k in range(count):
        start = consumed + (k * processes + rank) * size
        yield list(range(start, start + size))


@dataclass
class _Found:
    """A batch, and what was wrong with samples that others stand for."""

    batch: Batch
    bad: list[str]

    def pin_memory(self) -> _Found:
        return _Found(self.batch.pin_memory(), self.bad)


class _Collate:
    """Makes batches of indices, without damaged samples: for each comes one from far behind any run's end.

    It hands a worker's `UserError` over as a value: raised there, torch would put a traceback before it.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __call__(self, indices: list[int]) -> _Found | UserError:
        bad: list[str] = []
        try:
            found = [self._sample(i, bad) for i in indices]
        except UserError as error:
            return error
        return _Found(type(found[0]).collate(found), bad)

    def _sample(self, index: int, bad: list[str]) -> Batch:
        for spare in range(SPARES):
            try:
                return _finite(self.samples[index + spare * SPARE], index)
            except UserError as error:
                bad.append(str(error))
        raise UserError(f"{bad[-1]} ({SPARES} samples in a row are damaged)")


def _finite(sample: Any, index: int, prefix: str = "") -> Any:
    """A sample whose tensors are finite, and those of what it is made of, such as cameras."""
    for f in fields(sample):
        value, name = getattr(sample, f.name), prefix + f.name
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise UserError(f"sample {index} of the run has {name} that is not finite")
        if is_dataclass(value):
            _finite(value, index, f"{name}.")
    return sample
