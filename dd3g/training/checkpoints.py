"""Checkpoints of a training run: complete folders, pruned, read without running their pickles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from dd3g.errors import UserError, first_line
from dd3g.training.config import LoopConfig


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in output.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step_of)


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, config: LoopConfig) -> None:
    """Write `output`/checkpoint-STEP, whole or not at all; then keep the last few only.

    Raises:
        UserError: when the disk is full; earlier checkpoints stay.
    """
    scratch = output / "checkpoint-saving"
    if accelerator.is_main_process:
        shutil.rmtree(scratch, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(scratch))
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise UserError(
            f"cannot write a checkpoint into {output} at step {step} ({first_line(error)}); free "
            f"some space and resume from the last one with {config.resume_flag}"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.rename(scratch, output / f"checkpoint-{step}")
        limit = config.checkpoints_total_limit
        for old in checkpoints(output)[:-limit] if limit else []:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, output: Path, config: LoopConfig) -> int:
    """Load what `resume_from_checkpoint` says: "latest", a checkpoint folder, or "" for a fresh start.

    Returns:
        The step of the checkpoint, 0 without one.

    Raises:
        UserError: no such checkpoint, a broken one, or a run into a folder that holds later ones.
    """
    if (output / "checkpoint.safetensors").exists():
        raise UserError(
            f"{output} holds a run of an earlier version, which cannot go on: choose another folder"
        )
    step, wanted = 0, config.resume_from_checkpoint
    found = checkpoints(output)
    if wanted == "latest" and not found:
        accelerator.print(f"no checkpoint in {output} yet: starting from step 0")
    elif wanted:
        path = found[-1] if wanted == "latest" else Path(wanted)
        if not path.is_dir() or not path.name.removeprefix("checkpoint-").isdigit():
            raise UserError(
                f"{path}: not a checkpoint folder; give 'latest' or a folder named checkpoint-STEP"
            )
        _load(accelerator, path)
        accelerator.print(f"resumed from {path}")
        step = _step_of(path)
    if found and _step_of(found[-1]) > step:
        raise UserError(
            f"{output} holds {found[-1].name} of another run, which this one would mix with: go on from it "
            f"with {config.resume_flag}, or choose another output folder"
        )
    return step


def _load(accelerator: Accelerator, path: Path) -> None:
    try:
        for state in path.glob("custom_checkpoint_*.pkl"):
            # accelerate would run any code that a pickle asks for: these are read by the safe reader before.
            torch.load(state, map_location="cpu", weights_only=True)
        accelerator.load_state(str(path))
    except Exception as error:  # a torn file and a foreign one raise a dozen kinds between them
        raise UserError(
            f"{path}: broken, or of another model or setting ({first_line(error)}); move this folder away "
            "and resume from the one before it, or choose another output folder"
        ) from error
    accelerator.step = 0  # checkpoints lie between optimiser steps, whatever the accumulation was
