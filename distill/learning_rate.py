"""The learning rate as a function of the configuration and the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dd3g.errors import UserError
from distill.config import LoopConfig


class LearningRate:
    """Sets the learning rate of an optimiser.

    Unlike torch's schedulers it keeps nothing of an earlier run but the count: a run that is resumed with
    another learning rate or length follows them from its first step.

    Args:
        optimizer: whose rate is set, from now on.
        config: gives peak and shape.

    Raises:
        UserError: for an unknown shape.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: LoopConfig) -> None:
        self.optimizer, self.peak, self.factor = optimizer, config.learning_rate, lr_factor(config)
        self._set(0)

    def step(self) -> None:
        """Go on to the next optimiser step."""
        self._set(self.count + 1)

    def state_dict(self) -> dict[str, Any]:
        """The count, under the name that torch's schedulers give it."""
        return {"last_epoch": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; call it after the optimiser's own."""
        self._set(int(state["last_epoch"]))

    def _set(self, count: int) -> None:
        self.count, self.value = count, self.peak * self.factor(count)
        for group in self.optimizer.param_groups:
            group["lr"] = self.value


def lr_factor(config: LoopConfig) -> Callable[[int], float]:
    """Learning-rate factor by optimiser step: linear warm-up, then constant, cosine, or a linear tail."""
    warmup, total, tail = config.lr_warmup_steps, config.max_train_steps, config.lr_decay_steps

    def cosine(k: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0, k - warmup) / max(1, total - warmup)))

    shapes: dict[str, Callable[[int], float]] = {
        "constant": lambda k: 1.0,
        "cosine": cosine,
        "warmup_stable_decay": lambda k: min(1.0, max(0.0, (total - k) / max(1, tail))),
    }
    if config.lr_scheduler not in shapes:
        raise UserError(f"lr_scheduler {config.lr_scheduler!r} is not one of {', '.join(shapes)}")
    shape = shapes[config.lr_scheduler]
    return lambda k: shape(k) * min(1.0, (k + 1) / max(1, warmup))
