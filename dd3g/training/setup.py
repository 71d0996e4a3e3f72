"""How a run stands on its machine: processes, device, precision, optimiser."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from dd3g.errors import UserError
from dd3g.training.config import LoopConfig
from dd3g.training.muon import Muon
from dd3g.training.processes import from_all
from dd3g.training.settings import changes


def make_optimizer(model: nn.Module, config: LoopConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW or Muon with the options of `config`, over all parameters of a model.

    A parameter with an attribute `rate_share` learns at that share of the rate.

    Raises:
        UserError: Muon for a model with such parameters.
    """
    by_share: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        by_share.setdefault(getattr(parameter, "rate_share", 1.0), []).append(parameter)
    if len(by_share) > 1 and config.optimizer == "muon":
        raise UserError("optimizer muon has one rate for all parameters: take adamw, or start.lower=frozen")
    groups: Any = [{"params": found, "rate_share": share} for share, found in by_share.items()]
    return (Muon if config.optimizer == "muon" else torch.optim.AdamW)(
        groups if len(groups) > 1 else model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        amsgrad=config.adam_amsgrad,
        fused=fused or None,  # None: what suits the device
    )


def make_accelerator(config: LoopConfig, output: Path) -> Accelerator:
    """This process's part in the run: device, precision, process group, tracker.

    Raises:
        UserError: what was asked for does not work on this machine, or the folder cannot be made.
    """
    cuda = torch.cuda.is_available()
    if config.mixed_precision == "fp16" and not cuda:
        raise UserError("mixed_precision 'fp16' needs a CUDA device and there is none: take bf16 or no")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # Only accelerate launch sets it; torchrun may well be meant for CPUs.
    for_gpus = os.environ.get("ACCELERATE_USE_CPU", "true").lower() == "false"
    if for_gpus and processes > 1 and not cuda and not config.use_cpu:
        raise UserError(
            f"{processes} processes were started for GPUs, and this machine shows no CUDA device: check its "
            "driver and CUDA_VISIBLE_DEVICES, or train on CPUs with use_cpu=true"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write output_dir {output}: {error.strerror}; choose another folder"
        ) from error
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
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(
                project_dir=str(output), logging_dir=config.logging_dir or str(output / "logs")
            ),
            dynamo_backend="inductor" if config.torch_compile else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.ddp_timeout))],
        )
    except ValueError as error:
        raise UserError(
            f"mixed_precision {config.mixed_precision!r} or report_to {config.report_to!r} does not work "
            f"here: {error}"
        ) from error
    if config.report_to != "none" and not accelerator.log_with:  # accelerate only warns
        raise UserError(
            f"report_to {config.report_to!r} needs a package that is not installed: install it, or take "
            "report_to=tensorboard or none"
        )
    if accelerator.is_fsdp2:
        # Its policy would round what enters and leaves the network, cameras and Gaussians among it. Under
        # autocast the network multiplies in the same precision on one GPU and on many.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def split_present_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Of the kinds of blocks that FSDP is to split, name accelerate those that the model has."""
    if not accelerator.is_fsdp2:
        return
    plugin = accelerator.state.fsdp_plugin
    there = {type(module).__name__ for module in model.modules()}
    named = plugin.transformer_cls_names_to_wrap or []
    plugin.transformer_cls_names_to_wrap = [name for name in named if name in there]


def check_options(accelerator: Accelerator, config: LoopConfig) -> None:
    """Refuse what this loop does not do, and processes with different options."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError(
            "DeepSpeed makes steps of its own, which this loop cannot check or resume: take "
            "configs/accelerate/fsdp.yaml, which splits the same tensors"
        )
    shown = from_all(asdict(config))
    for rank, other in enumerate(shown):
        named, _ = changes(shown[0], other)
        if named:
            raise UserError(
                f"process {rank} has other options than process 0: {', '.join(named)}; give all the same"
            )
