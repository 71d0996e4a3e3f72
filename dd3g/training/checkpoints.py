"""Checkpoints of a training run: whole folders of tensors and one JSON file, for any number of processes.

checkpoint-STEP holds model.safetensors, average.safetensors and optimizer.safetensors, whole tensors by the
names of the model's parameters, and state.json: counts, configuration, and a checksum of each file. What is
frozen is in the first alone. One process, DDP and FSDP write the same, and each goes on from the other's.
Only the main process touches files.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dd3g.errors import UserError, first_line
from dd3g.fingerprint import file_sha256
from dd3g.training.averaging import Average, frozen
from dd3g.training.config import LoopConfig, changes
from dd3g.training.optimizer import LearningRate
from dd3g.training.processes import on_main

STATE = "state.json"
SCRATCH = "checkpoint-saving"
FILES = ("model", "average", "optimizer")


@dataclass
class State:
    """All that a run is besides its configuration, between two steps."""

    accelerator: Accelerator
    model: nn.Module  # as the user made it; wrappers share its parameters
    optimizer: torch.optim.Optimizer
    average: Average
    rate: LearningRate
    consumed: int = 0  # samples of all processes so far; batches where the loss draws them
    items: int = 0  # that samples are drawn from, 0 where that is not known
    folder: str = field(default_factory=os.getcwd)  # at the start: it may be gone when a checkpoint is due

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Named tensors of one file; parts of them where FSDP splits the model."""
        if name == "model":
            return dict(self.model.state_dict())
        if name == "average":
            sources = self.average.sources
            return {name: value for name, value in self.average.values.items() if not frozen(sources[name])}
        return {
            f"{parameter}.{key}": value
            for parameter, p in self.model.named_parameters()
            for key, value in self.optimizer.state.get(p, {}).items()
        }


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in output.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step_of)


def save_checkpoint(state: State, output: Path, step: int, config: LoopConfig) -> None:
    """Write `output`/checkpoint-STEP, whole or not at all; then keep the last few only.

    Raises:
        UserError: when the disk is full; earlier checkpoints stay.
    """
    scratch = output / SCRATCH
    main = state.accelerator.is_main_process
    if main:
        shutil.rmtree(scratch, ignore_errors=True)
    for name in FILES:
        # All processes put split tensors together; only the main one keeps them.
        whole = {n: _whole(t, main) for n, t in state.tensors(name).items()}
        on_main(lambda name=name, whole=whole: _write(scratch, f"{name}.safetensors", whole, config))  # type: ignore[misc]
    scaler = state.accelerator.scaler
    about = {
        "step": step,
        "consumed": state.consumed,
        "processes": state.accelerator.num_processes,
        "precision": config.precision,
        "items": state.items,
        "average_updates": state.average.updates,
        "rate": state.rate.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "config": asdict(config),
        "folder": state.folder,  # from which relative paths in it count
    }
    on_main(lambda: _finish(scratch, output / f"checkpoint-{step}", about, config))


@contextmanager
def _explained(scratch: Path, config: LoopConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise UserError(
            f"cannot write a checkpoint into {scratch.parent} ({first_line(error)}); free some space and "
            f"resume from the last one with {config.resume_flag}"
        ) from error


def _write(scratch: Path, name: str, tensors: dict[str, Tensor], config: LoopConfig) -> None:
    with _explained(scratch, config):
        scratch.mkdir(parents=True, exist_ok=True)
        save_file(tensors, scratch / name, metadata={"format": "pt"})


def _finish(scratch: Path, path: Path, about: dict[str, Any], config: LoopConfig) -> None:
    with _explained(scratch, config):
        files = sorted(scratch.iterdir())
        sums = {file.name: file_sha256(file) for file in files}
        (scratch / STATE).write_text(json.dumps(about | {"sha256": sums}, indent=1) + "\n")
        for file in files:  # safetensors writes for the eyes of the owner alone
            file.chmod((scratch / STATE).stat().st_mode)
        for file in (*scratch.iterdir(), scratch):
            _sync(file)
        if path.exists():  # of the same step, written before by a run that went on from an earlier one
            shutil.rmtree(path)
        os.rename(scratch, path)
        _sync(path.parent)
    limit = config.checkpoints_total_limit
    for old in checkpoints(path.parent)[:-limit] if limit else []:
        try:
            shutil.rmtree(old)
        except OSError as error:  # a colleague reads it over NFS: no reason to end a run
            print(f"warning: {old} cannot be deleted ({error.strerror})", file=sys.stderr)


def _sync(path: Path) -> None:
    """On the disk before the name says so: a node that loses power leaves no empty checkpoint."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def resume(state: State, output: Path, config: LoopConfig) -> int:
    """Load what `resume_from_checkpoint` says: "latest", a checkpoint's folder or name, "" for a fresh start.

    The main process decides and reads; the others get what it read, so that none can start elsewhere. Of the
    latest checkpoints the newest that is whole is taken, and damaged ones are renamed.

    Returns:
        The step of the checkpoint, 0 without one.

    Raises:
        UserError: no such checkpoint, a broken one, one of a run with another configuration, or a run into a
            folder that holds later ones.
    """
    path, about = on_main(lambda: _chosen(output, config))
    if path is None:
        return 0
    _check_changes(path, about, config, state)
    try:
        for name in FILES:
            _load(state, path, name)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is of another model ({first_line(error)}): repeat the options of that run, which are in "
            f"{path / STATE}, or choose another output folder"
        ) from error
    state.consumed = about["consumed"]
    state.average.updates = about["average_updates"]
    state.rate.load_state_dict(about["rate"])
    if state.accelerator.scaler is not None and about["scaler"]:
        state.accelerator.scaler.load_state_dict(about["scaler"])
    state.accelerator.step = 0  # checkpoints lie between optimiser steps, whatever the accumulation was
    state.accelerator.print(f"resumed from {path}")
    return about["step"]


def _chosen(output: Path, config: LoopConfig) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from, and its state.json; None for a fresh start."""
    if (output / "checkpoint.safetensors").exists():
        raise UserError(
            f"{output} holds a run of an earlier version, which cannot be resumed: choose another folder"
        )
    wanted, found = config.resume_from_checkpoint, checkpoints(output)
    path, about = None, {}
    if wanted == "latest":
        if not found:
            print(f"no checkpoint in {output} yet: starting from step 0", file=sys.stderr)
        path, about = _newest_whole(found) if found else (None, {})
    elif wanted:
        own = output / wanted
        path = own if own.is_dir() else Path(wanted)
        if not path.is_dir() or not path.name.removeprefix("checkpoint-").isdigit():
            raise UserError(
                f"{wanted}: not a checkpoint folder; give 'latest' or a folder named checkpoint-STEP"
            )
        about = _verified(path)
    found = checkpoints(output)
    if found and _step_of(found[-1]) > about.get("step", 0):
        raise UserError(
            f"{output} holds {found[-1].name} of another run, with which this one would mix: resume it "
            f"with {config.resume_flag}, or choose another output folder"
        )
    return path, about


def _newest_whole(found: list[Path]) -> tuple[Path, dict[str, Any]]:
    damaged: dict[Path, UserError] = {}
    for path in reversed(found):
        try:
            about = _verified(path)
        except UserError as error:
            damaged[path] = error
            continue
        for bad, reason in damaged.items():
            aside = bad.with_name(f"damaged-{bad.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(bad, aside)
            print(f"warning: {reason}; it is now {aside.name}, continuing from {path.name}", file=sys.stderr)
        return path, about
    raise damaged[found[-1]]


def _verified(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint whose files are as they were written."""
    if not (path / STATE).exists() and (path / "optimizer.bin").exists():
        raise UserError(
            f"{path} is of an earlier version, which cannot be resumed: use the version that wrote it, or "
            "start a run in another folder from its weights"
        )
    try:
        about = json.loads((path / STATE).read_text())
        for name, checksum in about["sha256"].items():
            if file_sha256(path / name) != checksum:
                raise ValueError(f"{name} is not what was written")
        lacking = sorted(
            {"consumed", "processes", "average_updates", "rate", "scaler", "config"} - set(about)
        )
        if lacking or about["step"] != _step_of(path):
            raise ValueError(f"{STATE} lacks {lacking[0]}" if lacking else f"{STATE} is of another step")
        return about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.filename} {error.strerror}" if isinstance(error, OSError) else first_line(error)
        raise UserError(
            f"{path}: damaged ({reason}); resume from the one before it, or choose another output folder"
        ) from error


def _check_changes(path: Path, about: dict[str, Any], config: LoopConfig, state: State) -> None:
    """Name what differs from the run that wrote the checkpoint; refuse it unless it is allowed."""
    named, free = changes(about["config"], asdict(config), about.get("folder", ""))
    # Of another machine, and of a folder that grew or shrank: what was asked for is the same.
    here = {
        "processes": state.accelerator.num_processes,
        "precision": config.precision,
        "items": state.items,
    }
    free += [f"{k} {about[k]} (now {v})" for k, v in here.items() if about.get(k, v) != v]
    if named and not config.allow_changed:
        advice = f", accept the change with {config.changed_flag}" if config.changed_flag else ""
        raise UserError(
            f"{path} was written with other options: {', '.join(named)}; repeat those{advice}, or choose "
            "another output folder"
        )
    if named or free:
        state.accelerator.print(f"changed since {path.name}: {', '.join(named + free)}", file=sys.stderr)


def _load(state: State, path: Path, name: str) -> None:
    """Fill the model, its average or the optimiser from one file that the main process reads."""
    accelerator, file = state.accelerator, path / f"{name}.safetensors"
    shapes = on_main(lambda: _shapes(file))
    own = state.tensors(name)
    if name == "optimizer":
        parameters = dict(state.model.named_parameters())
        own = {key: parameters[key.rpartition(".")[0]] for key in shapes}
    elif set(own) != set(shapes):
        differing = sorted(set(own) ^ set(shapes))
        raise ValueError(f"{len(differing)} tensors of the {name} differ, first {differing[0]!r}")
    for key, like in own.items():
        if shapes[key] and tuple(shapes[key]) != tuple(like.shape):
            raise ValueError(f"{key} has shape {tuple(shapes[key])} there, {tuple(like.shape)} here")
    received = _received(accelerator, file, own, shapes)
    if name != "optimizer":
        with torch.no_grad():
            for key, value in received:
                own[key].copy_(value)
        return
    order = [p for group in state.optimizer.param_groups for p in group["params"]]
    numbers = {id(p): i for i, p in enumerate(order)}
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in received:
        states.setdefault(numbers[id(own[key])], {})[key.rpartition(".")[2]] = value
    # Rates, decays and the like are those of the configuration, not of the checkpoint.
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": states})


def _shapes(file: Path) -> dict[str, list[int]]:
    try:
        with safe_open(file, "pt") as stream:
            return {key: stream.get_slice(key).get_shape() for key in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: damaged ({first_line(error)})") from error


def _received(
    accelerator: Accelerator, file: Path, own: dict[str, Tensor], shapes: dict[str, list[int]]
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a file on this process's device, split as the parameter is that it belongs to."""
    main, device = accelerator.is_main_process, accelerator.device
    stream: Any = safe_open(file, "pt") if main else None
    for key, like in own.items():
        dtype = torch.float32 if not shapes[key] and key.endswith(".step") else like.dtype
        value = torch.empty(shapes[key], dtype=dtype, device=device)
        if main:
            value = stream.get_tensor(key).to(device, dtype)
        if accelerator.num_processes > 1:
            torch.distributed.broadcast(value, 0)
        if isinstance(like, DTensor) and value.shape == like.shape:
            value = distribute_tensor(value, like.device_mesh, like.placements)
        yield key, value if shapes[key] or not key.endswith(".step") else value.cpu()


def _whole(tensor: Tensor, keep: bool) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True).contiguous() if keep else torch.empty(0)
