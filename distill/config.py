"""Command lines of training scripts: a structured config, a YAML file, and overrides."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dd3g.errors import UserError

T = TypeVar("T")
ALIASES = {"resume": "resume_from_checkpoint"}
PRECISIONS = {
    "no": "no",
    "fp32": "no",
    "fp16": "fp16",
    "bf16": "bf16",
    "False": "no",
}  # YAML reads no as False


@dataclass
class LoopConfig:
    """How a training runs; the names are those of the diffusers examples where one exists."""

    output_dir: str = "runs/train"
    seed: int = 0
    train_batch_size: int = 8  # per process and micro-step
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 10_000  # optimiser steps
    max_minutes: float = 0.0  # stop with a checkpoint after this long; 0 never
    learning_rate: float = 1e-3
    lr_scheduler: str = "warmup_stable_decay"  # or cosine, constant
    lr_warmup_steps: int = 100
    lr_decay_steps: int = 1_000  # last steps, warmup_stable_decay only
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_weight_decay: float = 0.05
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # 0 does not clip
    mixed_precision: str = "bf16"  # no (or fp32), fp16, bf16
    ema_decay: float = 0.998
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2  # 0 keeps all
    resume_from_checkpoint: str = ""  # "latest" or a checkpoint folder
    validation_steps: int = 500  # a sheet of pictures this often
    report_to: str = "tensorboard"  # or none
    dataloader_num_workers: int = 0  # with some, samples are decoded by them instead of once at the start

    def __post_init__(self) -> None:
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision {self.mixed_precision!r} is not one of no, fp32, fp16, bf16")
        self.mixed_precision = PRECISIONS[self.mixed_precision]
        ones = ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps")
        zeros = ("max_minutes", "learning_rate", "lr_warmup_steps", "lr_decay_steps", "adam_weight_decay")
        zeros += ("adam_epsilon", "max_grad_norm", "checkpoints_total_limit", "dataloader_num_workers")
        lowest = dict.fromkeys((*ones, "validation_steps"), 1) | dict.fromkeys(zeros, 0)
        for name, low in lowest.items():
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must be between 0 and 1, got {self.ema_decay}")


def parse(argv: Sequence[str], schema: type[T]) -> T:
    """Build `schema` from its defaults, `--config FILE` and overrides, later ones winning.

    Args:
        argv: words after the script's name: `--config file.yaml`, `key=value`, `--key value`, `--key=value`;
            dots reach into sections, dashes count as underscores.
        schema: a dataclass.

    Raises:
        UserError: for an unknown key, a value of the wrong type or range, or an unreadable file.
    """
    files, overrides, words = [], [], list(argv)
    if "-h" in words or "--help" in words:
        print(f"usage: {Path(sys.argv[0]).name} [--config FILE] [--key value | key=value]...\n")
        print(OmegaConf.to_yaml(OmegaConf.structured(schema)))
        raise SystemExit(0)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not words:
                raise UserError(f"{word!r}: expected --key value or key=value")
            value = words.pop(0)
        key = key.replace("-", "_")
        if key == "config":
            files.append(value)
        else:
            overrides.append(f"{ALIASES.get(key, key)}={value}")
    try:
        parts = [OmegaConf.load(f) for f in files]
        merged = OmegaConf.merge(OmegaConf.structured(schema), *parts, OmegaConf.from_dotlist(overrides))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, ArithmeticError) as error:
        key = getattr(error, "full_key", None)  # of OmegaConf's errors
        message = f"{key}: {error}".splitlines()[0] if key else str(error).splitlines()[0]
        raise UserError(f"configuration: {message}; --help lists every key with its default") from error


def launch(run: Callable[[Any], Path], schema: type, argv: Sequence[str] | None = None) -> int:
    """Main function of a training script: exit code 0, or 2 with one line when something is wrong.

    Args:
        run: trains from a `schema` object and returns the folder it wrote.
        schema: a dataclass.
        argv: words after the script's name; None takes the command line's.
    """
    try:
        folder = run(parse(sys.argv[1:] if argv is None else argv, schema))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(f"wrote {folder}")
    return 0
