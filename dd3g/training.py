"""The one small training loop for networks that learn on one device, with exact resume.

Step k draws its batch and its dropout from a generator that belongs to (seed, k), so a run that was killed
and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dd3g.errors import UserError, first_line
from dd3g.io.atomic import replacing

Loss = Callable[[nn.Module, int, torch.Generator], Tensor]
M = TypeVar("M", bound=nn.Module)
CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


def generator_for(seed: int, index: int) -> torch.Generator:
    """The CPU generator that belongs to step or sample `index` of a run with this `seed`."""
    return torch.Generator().manual_seed(_mixed(seed, index))


def fit(
    model: M,
    loss: Loss,
    output: str | Path,
    steps: int,
    *,
    learning_rate: float = 1e-3,
    warmup: int = 200,
    ema: float = 0.999,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    clip: float = 1.0,
    minutes: float | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 100,
    evaluate: Callable[[M], dict[str, float]] | None = None,
    seed: int = 0,
    resume: bool = False,
) -> M:
    """Train with AdamW, a linear warm-up and a cosine fall to zero; return the moving average of the model.

    Args:
        model: trained in place; its device is used.
        loss: (model, step, generator) -> scalar to minimise; it draws its own batch from the generator.
        output: folder for checkpoint.safetensors and metrics.jsonl.
        steps: length of the run.
        learning_rate: at the end of the warm-up.
        warmup: steps.
        ema: decay of the average of parameters and buffers; early in the run it is smaller.
        weight_decay: of AdamW; 0 is Adam.
        amsgrad: the variant of Adam.
        clip: greatest gradient norm.
        minutes: ends the run early, counted over all its sessions. The learning rate then falls with the
            larger share of steps and minutes spent, so that it is zero at either end; without it all depends
            on the step alone.
        checkpoint_every: steps between checkpoints; a kill loses at most these.
        log_every: steps over which a line of metrics.jsonl is averaged.
        evaluate: numbers of the averaged model for metrics.jsonl, at every checkpoint.
        seed: of all draws.
        resume: go on from the checkpoint in `output`, from step 0 when there is none.

    Returns:
        A copy of the model that holds the average, in evaluation mode.

    Raises:
        UserError: when the loss is not finite, the folder holds another run, its checkpoint does not fit or
            is broken, or the disk is full.
    """
    output = Path(output)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, learning_rate, weight_decay=weight_decay, amsgrad=amsgrad, fused=True
    )
    run = _Run(output / CHECKPOINT, model, average, optimizer)
    if run.path.exists():
        if not resume:
            raise UserError(f"{output} holds a run: give resume (--resume) to go on, or another folder")
        run.load()
    metrics = Metrics(output / METRICS, run.step)
    started, before = time.monotonic(), run.minutes

    def share() -> float:
        run.minutes = before + (time.monotonic() - started) / 60
        return max(run.step / steps, run.minutes / minutes if minutes else 0.0)

    model.train()
    total, since, first = torch.zeros(()), run.step, run.step
    with torch.random.fork_rng(), _Progress(run.step, steps) as show:
        while (spent := share()) < 1:
            torch.manual_seed(_mixed(seed, run.step))  # dropout
            rate = learning_rate * min(1.0, (run.step + 1) / warmup if warmup else 1.0)
            rate *= 0.5 + 0.5 * math.cos(math.pi * spent)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            value = loss(model, run.step, generator_for(seed, run.step))
            value.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            if not (value + norm).isfinite():
                raise UserError(
                    f"step {run.step + 1}: loss {value.item():g}, gradient {norm.item():g}; nothing of this "
                    f"step was kept: go on with resume and a learning rate below {learning_rate:g}"
                )
            optimizer.step()
            run.step += 1
            _follow(average, model, min(ema, (1 + run.step) / (10 + run.step)))
            total = total + value.detach().cpu()
            if run.step % log_every == 0:
                mean = float(total) / (run.step - since)
                metrics.write(run.step, {"loss": mean, "lr": rate})
                show(run.step, mean)
                total, since = torch.zeros(()), run.step
            if run.step % checkpoint_every == 0 and share() < 1:
                run.save()
                if evaluate is not None:
                    metrics.write(run.step, evaluate(average))
    if run.step > first:
        run.save()
        if evaluate is not None:
            metrics.write(run.step, evaluate(average))
    return average


def _mixed(seed: int, index: int) -> int:
    return (seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) % (1 << 63)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for held, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if held.is_floating_point():
            held.lerp_(new, 1 - decay)
        else:
            held.copy_(new)


class _Run:
    """What a checkpoint holds: model, average, the optimizer's moments, step and minutes."""

    def __init__(
        self, path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.path, self.model, self.average, self.optimizer = path, model, average, optimizer
        self.step, self.minutes = 0, 0.0

    def save(self) -> None:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{k}": v for k, v in moments.items()}
        state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
        try:
            with replacing(self.path) as partial:
                save_file(state, partial, metadata={"step": str(self.step), "minutes": repr(self.minutes)})
        except SafetensorError as error:
            raise UserError(f"cannot write {self.path}: {error}; free some space and resume") from error

    def load(self) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = file.metadata() or {}
            self.step, self.minutes = int(facts["step"]), float(facts["minutes"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{self.path}: not a whole checkpoint ({error}); remove it and start again"
            ) from error

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        try:
            self.model.load_state_dict(part("model."))
            self.average.load_state_dict(part("average."))
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.path}: belongs to another model ({first_line(error)}); give another folder"
            ) from error


class Metrics:
    """metrics.jsonl: a JSON object a line; lines after the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists() and step:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    break  # a line torn by a kill is the last one
        with replacing(path) as partial:
            partial.write_text("".join(kept))
        self.file = path.open("a", buffering=1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add a line."""
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, step: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.first, self.total = Console(), step, total
        self.started = self.told = time.monotonic()
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=step, loss=math.nan)

    def __enter__(self) -> Callable[[int, float], None]:
        self.bar.start()
        return self.show

    def show(self, step: int, loss: float) -> None:
        self.bar.update(self.task, completed=step, loss=loss)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.told > 15:
            self.told, rate = now, (step - self.first) / (now - self.started)
            print(f"step {step}/{self.total}  loss {loss:.5f}  {rate:.1f} steps/s", flush=True)

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()
