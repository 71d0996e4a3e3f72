"""The processes of a run: what each of them runs on, and what they do together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from dd3g.errors import UserError, first_line
from dd3g.io.atomic import only_user
from dd3g.nn.checkpoint import find_device
from dd3g.processes import from_launcher
from dd3g.training.config import LoopConfig, changes
from dd3g.training.stopping import ACCELERATE

T = TypeVar("T")
# Options that a resumed run may change, but not one process: at these steps all wait for each other.
MEETINGS = ("max_train_steps", "checkpointing_steps", "validation_steps")


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on the main process, on all of them; the others only wait for it.

    Raises:
        UserError: on all, when `work` raises it; on the others also when it fails in another way, since they
            would wait for ever.
    """
    state = PartialState()
    found: list[Any] = [None, None]
    defect: Exception | None = None
    if state.is_main_process:
        try:
            found[0] = work()
        except UserError as error:
            found[1] = str(error)
        except Exception as error:  # not ours to explain: the main process shows it
            found[1], defect = f"the main process failed ({first_line(error)})", error
    if state.num_processes > 1:
        found = broadcast_object_list(found)
    if defect is not None:
        raise defect
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


def from_all(value: T) -> list[T]:
    """The value of each process, by rank, on all of them."""
    return gather_object([value]) if PartialState().num_processes > 1 else [value]


@contextmanager
def held_by_main(folder: Path) -> Iterator[None]:
    """`only_user` of a folder for all processes of a run."""
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(only_user(folder)))
        yield


def make_accelerator(config: LoopConfig, output: Path) -> Accelerator:
    """This process's part in the run: device, precision, process group, tracker.

    Raises:
        UserError: what was asked for does not work on this machine, or the folder cannot be made.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda":
        find_device("cuda")  # raises
    if config.mixed_precision == "fp16" and not cuda:
        raise UserError("mixed_precision 'fp16' needs a CUDA device and there is none: take bf16 or no")
    processes = from_launcher("WORLD_SIZE")
    from_launcher("RANK")  # asked for when all is done: what is no number is refused now
    # torchrun may well be meant for CPUs; accelerate launch says so of those that it starts for CPUs.
    unsaid = "false" if ACCELERATE in os.environ else "true"
    for_gpus = os.environ.get("ACCELERATE_USE_CPU", unsaid).lower() == "false"
    if for_gpus and processes > 1 and not cuda and not config.use_cpu:
        raise UserError(
            f"{processes} processes were started for GPUs, but this machine shows no CUDA device: check its "
            "driver and CUDA_VISIBLE_DEVICES, or train on CPUs with --device cpu"
        )
    if config.allow_tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    # accelerate keeps one precision a process; here each run has its own. The process group stays.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            # Without CUDA, cpu=True lets torchrun start several processes.
            cpu=config.use_cpu or not cuda,
            # Given as steps alone, a variable of the environment would replace them.
            gradient_accumulation_plugin=GradientAccumulationPlugin(config.gradient_accumulation_steps),
            mixed_precision=config.precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(
                project_dir=str(output), logging_dir=config.logging_dir or str(output / "logs")
            ),
            dynamo_backend="inductor" if config.torch_compile else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.ddp_timeout))],
        )
    except ValueError as error:
        if "logging capability" in str(error):
            raise UserError(
                f"report_to {config.report_to!r} does not work here: give tensorboard, wandb or none"
            ) from error
        raise UserError(f"mixed_precision {config.mixed_precision!r} does not work here: {error}") from error
    if config.report_to != "none" and not accelerator.log_with:  # accelerate only warns
        raise UserError(
            f"report_to {config.report_to!r} needs the package of that name: pip install "
            f"{config.report_to}, or take report_to=none"
        )
    on_main(lambda: _make_folder(output))
    if accelerator.is_fsdp2:
        # Its policy would round what enters and leaves the network, cameras and Gaussians among it. Under
        # autocast the network multiplies in the same precision on one GPU and on many.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write output_dir {output}: {error.strerror}; choose another folder"
        ) from error


def split_present_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Of the kinds of blocks that FSDP is to split, name accelerate those that the model has."""
    if not accelerator.is_fsdp2:
        return
    # Each process would warn of writing into what the network returns, which no loss does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    plugin = accelerator.state.fsdp_plugin
    there = {type(module).__name__ for module in model.modules()}
    named = plugin.transformer_cls_names_to_wrap or []
    plugin.transformer_cls_names_to_wrap = [name for name in named if name in there]


def check_options(accelerator: Accelerator, config: LoopConfig) -> None:
    """Refuse what this loop does not do, and processes with different options."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError(
            "DeepSpeed takes its own steps, which this loop cannot check or resume: use "
            "configs/accelerate/fsdp.yaml, which splits the same tensors"
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError(
            "FSDP of version 1 joins parameters under other names: set fsdp_version: 2 in your file, "
            "or use configs/accelerate/fsdp.yaml"
        )
    shown = from_all(asdict(config) | {"precision": config.precision})
    here = shown[0]
    for rank, other in enumerate(shown):
        named, _ = changes(here, other)
        named += [f"{key} {here[key]} (now {other[key]})" for key in MEETINGS if here[key] != other[key]]
        if named:
            raise UserError(
                f"process {rank} has other options than process 0: {', '.join(named)}; give all the same"
            )
