"""How a training runs: the part of its configuration that every trainer shares."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from dd3g.command.setting import check_ranges, setting
from dd3g.processes import from_launcher

# YAML reads no as False.
PRECISIONS = {"no": "no", "False": "no", "fp32": "no", "fp16": "fp16", "bf16": "bf16", "auto": "auto"}
SCHEDULERS = ("warmup_stable_decay", "linear", "cosine", "timed_cosine", "constant", "constant_with_warmup")


@dataclass
class LoopConfig:
    """How a training runs; the names are those of the diffusers examples where one exists."""

    aliases: ClassVar[dict[str, str]] = {"resume": "resume_from_checkpoint"}
    resume_flag: ClassVar[str] = "--resume latest"  # what messages advise
    changed_flag: ClassVar[str] = "--allow-changed"

    output_dir: str = setting("runs/train", "folder for checkpoints, the model, and curves")
    seed: int = setting(0, "of the weights, the samples and their noise")
    train_batch_size: int = setting(8, "per process and micro-step", 1, 100_000)
    gradient_accumulation_steps: int = setting(1, "micro-steps per optimiser step", 1, 100_000)
    max_train_steps: int = setting(10_000, "optimiser steps", 1)
    num_train_epochs: float = setting(0.0, "in place of max_train_steps: samples by items to draw from", 0)
    max_minutes: float = setting(0.0, "stop with a checkpoint after this long; 0: never", 0)
    learning_rate: float = setting(1e-3, "at the end of the warm-up", 0)
    lr_scheduler: str = setting("warmup_stable_decay", "or linear, cosine, timed_cosine, constant")
    lr_warmup_steps: int = setting(100, "first steps, over which the learning rate rises", 0)
    lr_decay_steps: int = setting(1_000, "last steps, warmup_stable_decay only", 0)
    optimizer: str = setting("adamw", "or muon: orthogonal steps for matrices, AdamW for the rest")
    adam_beta1: float = setting(0.9, "decay of the mean of the gradient; 0.95 for muon's matrices")
    adam_beta2: float = setting(0.95, "decay of the mean of its square")
    adam_weight_decay: float = setting(0.05, "of both optimisers; 0 is Adam", 0)
    adam_epsilon: float = setting(1e-8, "added to the root of the mean square", 0)
    adam_amsgrad: bool = setting(False, "the variant that keeps the largest mean square")
    adam_fused: bool = setting(False, "one kernel on CPUs too; it rounds in another order")
    max_grad_norm: float = setting(1.0, "0: no clipping", 0)
    mixed_precision: str = setting("auto", "no (or fp32), fp16, bf16; auto: bf16 where it is faster")
    ema_decay: float = setting(0.998, "of the average of the weights that is the result", 0, 1)
    ema_warmup: str = setting("power", "at most 1 - k^-0.75 at step k; or ratio, (1 + k) / (10 + k)")
    checkpointing_steps: int = setting(500, "a checkpoint this often; a kill loses at most these", 1)
    checkpoints_total_limit: int = setting(2, "0: all", 0)
    resume_from_checkpoint: str = setting("", '"latest" or a checkpoint folder')
    allow_changed: bool = setting(False, "resume with other options than the checkpoint was written with")
    validation_steps: int = setting(500, "the model and a contact sheet this often", 1)
    logging_steps: int = setting(1, "steps over which a line of metrics.jsonl is averaged", 1)
    report_to: str = setting("tensorboard", "wandb, or none")
    tracker_project_name: str = setting("dd3g", "under which the tracker shows the run")
    logging_dir: str = setting("", "of the tracker's files; empty: logs in output_dir")
    dataloader_num_workers: int = setting(0, "0: samples are decoded once, at the start", 0)
    dataloader_prefetch_factor: int = setting(2, "batches that a worker makes ahead", 1)
    max_bad_samples: int = setting(100, "damaged samples that a process replaces before it gives up", 0)
    device: str = setting("auto", "auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses the GPU")
    use_cpu: bool = setting(False, "accelerate's word for device=cpu")
    gradient_checkpointing: bool = setting(False, "half the memory or less for a third more time")
    allow_tf32: bool = setting(False, "19 bits for float32 products on CUDA")
    torch_compile: bool = setting(False, "compile the network; the first steps take minutes")
    ddp_timeout: int = setting(1800, "seconds that processes wait for each other", 1)

    def __post_init__(self) -> None:
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"mixed_precision {self.mixed_precision!r} is not one of auto, no, fp32, fp16, bf16"
            )
        self.mixed_precision = PRECISIONS[self.mixed_precision]
        choices = {
            "optimizer": ("adamw", "muon"),
            "lr_scheduler": SCHEDULERS,
            "ema_warmup": ("power", "ratio"),
            "device": ("auto", "cpu", "cuda"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.device != "auto":
            self.use_cpu = self.device == "cpu"
        check_ranges(self)
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be below 2^63, got {self.seed}")

    def count_epochs(self, items: int, step: int = 0, consumed: int = 0) -> None:
        """Where `num_train_epochs` is given, set `max_train_steps` by it and the number of items.

        A run that goes on from a step has consumed samples, perhaps with another number of processes.
        """
        if self.num_train_epochs:
            batch = self.train_batch_size * self.gradient_accumulation_steps * from_launcher("WORLD_SIZE")
            left = max(0.0, self.num_train_epochs * items - consumed)
            self.max_train_steps = max(1, step + math.ceil(left / batch))

    def count_opening(self, start: float) -> None:
        """Take off `max_minutes` what opening the data took, since `start` of `time.monotonic`."""
        if self.max_minutes:
            self.max_minutes = max(self.max_minutes - (time.monotonic() - start) / 60, 1e-3)

    @property
    def precision(self) -> str:
        """no, fp16 or bf16: what `mixed_precision` means on this machine.

        With AMX a CPU core trains the networks of nano 1.35 times faster in bfloat16 than in float32. Without
        it bfloat16 is slower: 1.4 times with AVX-512 BF16, ten times with AVX2 alone.
        """
        if self.mixed_precision != "auto":
            return self.mixed_precision
        import torch

        if torch.cuda.is_available() and not self.use_cpu:
            faster = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            faster = torch.cpu._is_amx_tile_supported()
        return "bf16" if faster else "no"


@dataclass
class SmallNetworkConfig(LoopConfig):
    """Defaults for a network that learns in minutes on one device and draws its own batches.

    The learning rate falls to zero at the last step or minute, whichever comes first.
    """

    resume_flag: ClassVar[str] = "--resume"
    changed_flag: ClassVar[str] = ""

    lr_scheduler: str = "timed_cosine"
    lr_warmup_steps: int = 200
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.0
    adam_fused: bool = True
    mixed_precision: str = "no"
    ema_decay: float = 0.999
    ema_warmup: str = "ratio"
    checkpointing_steps: int = 1000
    validation_steps: int = 1000
    logging_steps: int = 100
    report_to: str = "none"
    use_cpu: bool = True

    @classmethod
    def of(
        cls,
        output: str | Path,
        steps: int,
        learning_rate: float,
        minutes: float | None = None,
        seed: int = 0,
        resume: bool = False,
        **options: Any,
    ) -> Self:
        """The configuration of a run in the folder `output`, as functions that train one network take it."""
        return cls(
            output_dir=str(output),
            max_train_steps=steps,
            learning_rate=learning_rate,
            max_minutes=minutes or 0.0,
            seed=seed,
            resume_from_checkpoint="latest" if resume else "",
            **options,
        )


# Where a run lies, how long it is, how it is watched and how fast: these change no step that is made.
FREE = {
    *("output_dir", "resume_from_checkpoint", "allow_changed"),
    *("max_train_steps", "num_train_epochs", "max_minutes"),
    *("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "logging_steps", "report_to"),
    *("tracker_project_name", "logging_dir", "dataloader_num_workers", "dataloader_prefetch_factor"),
    *("device", "use_cpu", "max_bad_samples", "gradient_checkpointing", "torch_compile", "ddp_timeout"),
    *("push_to_hub", "hub_model_id", "validation_renders", "unpacked_dir"),
}
LENGTH = ("max_train_steps", "max_minutes")  # these change the rates of what is still to come


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration with dotted keys; sequences are lists, as in JSON."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def _place(value: Any, folder: str = "") -> Any:
    """A path, or each of a list, from the root and without links; other words stay apart by it too."""
    if isinstance(value, list):
        return [_place(part, folder) for part in value]
    return os.path.realpath(os.path.join(folder, value)) if isinstance(value, str) and value else value


def changes(before: dict[str, Any], now: dict[str, Any], started_in: str = "") -> tuple[list[str], list[str]]:
    """Options that differ, each as `name old (now new)`; what only one version of the code has is left out.

    A folder may be spelt in another way, as long as it is the same one.

    Args:
        before: a nested configuration.
        now: another one.
        started_in: the current folder of the earlier run, from which its relative paths count.

    Returns:
        Those that make other steps, and the length of the run where that differs.
    """
    old, new = flat(before), flat(now)
    other = [k for k in new if k in old and old[k] != new[k] and _place(old[k], started_in) != _place(new[k])]
    found = {k: f"{k} {old[k]} (now {new[k]})" for k in other}
    return [v for k, v in found.items() if k not in FREE], [found[k] for k in LENGTH if k in found]
