"""The learning rate as a function of the configuration, the step, and the minutes spent."""

from __future__ import annotations

import math
from typing import Any

import torch

from dd3g.training.config import LoopConfig


class LearningRate:
    """Sets the learning rate of an optimiser.

    Unlike torch's schedulers it keeps nothing of an earlier run but the count and the time: a run that is
    resumed with another learning rate or length follows them from its first step.

    Args:
        optimizer: whose rate is set.
        config: gives peak and shape.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: LoopConfig) -> None:
        self.optimizer, self.config = optimizer, config
        self.count, self.minutes = 0, 0.0  # optimiser steps made, minutes of all sessions

    def set(self) -> float:
        """Set the rate of the coming step; returns it."""
        value = learning_rate(self.config, self.count, self.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = value * group.get("rate_share", 1.0)
        return value

    def state_dict(self) -> dict[str, Any]:
        """The count, under the name that torch's schedulers give it, and the minutes."""
        return {"last_epoch": self.count, "minutes": self.minutes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.count, self.minutes = int(state["last_epoch"]), float(state.get("minutes", 0.0))


def learning_rate(config: LoopConfig, step: int, minutes: float = 0.0) -> float:
    """The learning rate of optimiser step `step` after `minutes`: linear warm-up, then a shape.

    "warmup_stable_decay" ends in a linear tail; "linear" and "cosine" fall to zero from the end of the
    warm-up; "timed_cosine" falls from the first step on with the larger share of steps and minutes that is
    spent, so that it is zero at either end; "constant", which is also "constant_with_warmup", stays.
    """
    warmup, total = config.lr_warmup_steps, config.max_train_steps
    rise = config.learning_rate * min(1.0, (step + 1) / max(1, warmup))
    if config.lr_scheduler.startswith("constant"):
        return rise
    if config.lr_scheduler == "warmup_stable_decay":
        return rise * min(1.0, max(0.0, (total - step) / max(1, config.lr_decay_steps)))
    if config.lr_scheduler in ("linear", "cosine"):
        spent = max(0, step - warmup) / max(1, total - warmup)
    else:
        spent = max(step / total, minutes / config.max_minutes if config.max_minutes else 0.0)
    if config.lr_scheduler == "linear":
        return rise * max(0.0, 1 - spent)
    return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, spent)))
