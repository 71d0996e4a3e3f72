"""Command lines of training scripts: a structured config, a YAML file, and `key=value` or `--key value` overrides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dd3g.errors import UserError

T = TypeVar("T")
ALIASES = {"resume": "resume_from_checkpoint"}


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
    lr_scheduler: str = "warmup_stable_decay"  # or any name transformers knows: cosine, linear, constant...
    lr_warmup_steps: int = 100
    lr_decay_steps: int = 1_000  # last steps, warmup_stable_decay only
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_weight_decay: float = 0.05
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: str = "bf16"  # no, fp16, bf16
    ema_decay: float = 0.998
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str = ""  # "latest" or a checkpoint folder
    validation_steps: int = 500  # a sheet of pictures this often
    report_to: str = "tensorboard"  # or none
    dataloader_num_workers: int = 0

    def __post_init__(self) -> None:
        if self.mixed_precision == "False":  # YAML reads a bare `no` as false
            self.mixed_precision = "no"


def parse(argv: Sequence[str], schema: type[T]) -> T:
    """Build `schema` from its defaults, `--config FILE` and overrides, later ones winning.

    Args:
        argv: words after the script's name: `--config file.yaml`, `key=value`, `--key value`, `--key=value`;
            dots reach into sections, dashes count as underscores.
        schema: a dataclass.

    Raises:
        UserError: for an unknown key, a value of the wrong type, or an unreadable file.
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
    except (OmegaConfBaseException, OSError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"configuration: {message}; --help lists every key with its default") from error
