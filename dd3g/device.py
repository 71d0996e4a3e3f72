"""The device that a command was asked to run on, and its cores."""

from __future__ import annotations

import os

import torch

from dd3g.errors import UserError, first_line


def find_device(name: str) -> torch.device:
    """The device of that name, after it has answered.

    Args:
        name: auto (CUDA when there is one, else the CPU), cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: for another name, or a device that is not there or does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = {"cpu": torch.cpu, "cuda": torch.cuda, "mps": torch.backends.mps}
    try:
        device = torch.device(name)
        backend = known[device.type]
    except (RuntimeError, KeyError) as e:
        raise UserError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:1 or mps") from e
    advice = "give --device cpu, or leave it out"
    if not backend.is_available():
        raise UserError(f"torch finds no {device.type} device on this machine: {advice}")
    try:
        torch.zeros(1, device=device)
    except RuntimeError as e:
        raise UserError(f"the device {name!r} does not work ({first_line(e)}): {advice}") from e
    return device


def cores_each() -> int:
    """CPU cores for each of the processes that a launcher started on this machine, at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
