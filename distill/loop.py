"""One training loop for teacher and generator: accelerate, EMA, checkpoints, exact resume.

Every sample is a pure function of (seed, index), and step k uses the indices k*B ... k*B + B - 1 of the global batch.
So a run that was killed continues bit for bit, and several processes see what one would have seen.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dd3g.errors import UserError
from distill.config import LoopConfig


class Draws(Protocol):
    """A stream of training samples that can be entered anywhere."""

    def draw(self, index: int) -> dict[str, Tensor]:
        """Sample number `index` of the run; the same index always gives the same sample."""


Loss = Callable[[nn.Module, dict[str, Tensor], int], tuple[Tensor, dict[str, Tensor]]]


class _Indexed(Dataset):
    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.draws.draw(index)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The CPU generator that belongs to sample `index` of a run with this `seed`."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) % (1 << 63))


def fit(
    model: nn.Module,
    loss: Loss,
    draws: Draws,
    config: LoopConfig,
    save: Callable[[nn.Module, Path], Any],
    sheet: Callable[[nn.Module, Path], Any] | None = None,
) -> Path:
    """Train until `max_train_steps` or `max_minutes`.

    Args:
        model: trained in place; its exponential moving average is what `save` and `sheet` see.
        loss: (model, batch, step) -> (scalar to minimise, terms to log, already detached).
        draws: the samples.
        config: how to run.
        save: writes the averaged model into a folder.
        sheet: writes a picture of what the averaged model does now.

    Returns:
        The folder of the averaged model, `output_dir/model`.

    Raises:
        UserError: when the loss is not finite, or the checkpoint to resume from is missing.
    """
    started = time.monotonic()
    output = Path(config.output_dir)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # lets torchrun start several CPU processes
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
    )
    output.mkdir(parents=True, exist_ok=True)
    raw = model
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer, lr_factor(config)
    )
    ema = EMAModel(
        raw.parameters(), decay=config.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4
    )
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(scheduler, ema)
    if config.report_to != "none":
        accelerator.init_trackers("dd3g")

    step = _resume(accelerator, config)
    metrics = _Metrics(output / "metrics.jsonl", step) if accelerator.is_main_process else None
    batches = _batches(accelerator, draws, config, step)
    deadline = started + 60 * config.max_minutes if config.max_minutes else math.inf
    with _progress(accelerator, step, config.max_train_steps) as advance:
        model.train()
        while step < config.max_train_steps:
            terms: dict[str, Tensor] = {}
            for _ in range(config.gradient_accumulation_steps):
                batch = next(batches)
                with accelerator.accumulate(model), accelerator.autocast():
                    value, parts = loss(model, batch, step)
                    accelerator.backward(value)
                    if accelerator.sync_gradients and config.max_grad_norm:
                        parts["grad_norm"] = accelerator.clip_grad_norm_(
                            model.parameters(), config.max_grad_norm
                        )
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                for name, part in {"loss": value.detach(), **parts}.items():
                    share = 1 if name == "grad_norm" else config.gradient_accumulation_steps
                    terms[name] = terms.get(name, 0) + torch.as_tensor(part).float() / share
            scheduler.step()
            ema.step(raw.parameters())
            step += 1
            names = sorted(terms)
            values = accelerator.reduce(torch.stack([terms[n].to(accelerator.device) for n in names]), "mean")
            numbers = dict(zip(names, values.tolist(), strict=True))
            if not math.isfinite(numbers["loss"]):
                raise UserError(
                    f"the loss is {numbers['loss']} at step {step}; the last good checkpoint in {output} is "
                    "untouched: resume from it with a lower learning_rate or mixed_precision=no"
                )
            numbers["lr"] = scheduler.get_last_lr()[0]
            if metrics is not None:
                metrics.write(step, numbers)
            if config.report_to != "none":
                accelerator.log(numbers, step=step)
            advance(step, numbers["loss"])

            over = _any(accelerator, time.monotonic() > deadline)
            last = over or step == config.max_train_steps
            if last or step % config.checkpointing_steps == 0:
                _checkpoint(accelerator, output, step, config.checkpoints_total_limit)
            if accelerator.is_main_process and (last or step % config.validation_steps == 0):
                ema.store(raw.parameters())
                ema.copy_to(raw.parameters())
                save(raw, output / "model")
                if sheet is not None:
                    raw.eval()
                    with torch.no_grad():
                        sheet(raw, output / f"sheet-{step:06d}.png")
                    raw.train()
                ema.restore(raw.parameters())
            accelerator.wait_for_everyone()
            if over:
                break
    accelerator.end_training()
    return output / "model"


def lr_factor(config: LoopConfig) -> Callable[[int], float]:
    """Learning-rate factor by optimiser step: linear warm-up, then constant, cosine, or a linear tail."""
    warmup, total, tail = config.lr_warmup_steps, config.max_train_steps, config.lr_decay_steps
    shapes: dict[str, Callable[[int], float]] = {
        "constant": lambda k: 1.0,
        "cosine": lambda k: 0.5 + 0.5 * math.cos(math.pi * min(1.0, (k - warmup) / max(1, total - warmup))),
        "warmup_stable_decay": lambda k: min(1.0, max(0.0, (total - k) / max(1, tail))),
    }
    if config.lr_scheduler not in shapes:
        raise UserError(f"lr_scheduler {config.lr_scheduler!r} is not one of {', '.join(shapes)}")
    shape = shapes[config.lr_scheduler]
    return lambda k: shape(k) * min(1.0, (k + 1) / max(1, warmup))


def _batches(
    accelerator: Accelerator, draws: Draws, config: LoopConfig, step: int
) -> Iterator[dict[str, Tensor]]:
    size, world = config.train_batch_size, accelerator.num_processes
    rank, micro = accelerator.process_index, step * config.gradient_accumulation_steps
    total = config.max_train_steps * config.gradient_accumulation_steps
    indices = [
        range((k * world + rank) * size, (k * world + rank + 1) * size) for k in range(micro, total)
    ]
    workers = config.dataloader_num_workers
    loader = DataLoader(
        _Indexed(draws),
        batch_sampler=indices,  # type: ignore[arg-type]
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    for batch in loader:
        yield {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}


def _any(accelerator: Accelerator, flag: bool) -> bool:
    # The clock differs between processes: all leave at the same step or none does.
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in output.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def _checkpoint(accelerator: Accelerator, output: Path, step: int, limit: int) -> None:
    scratch = output / "checkpoint-saving"
    if accelerator.is_main_process:
        shutil.rmtree(scratch, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(scratch))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        final = output / f"checkpoint-{step}"
        shutil.rmtree(final, ignore_errors=True)
        os.rename(scratch, final)
        for old in checkpoints(output)[:-limit] if limit else []:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, config: LoopConfig) -> int:
    wanted = config.resume_from_checkpoint
    if not wanted:
        return 0
    if wanted == "latest":
        found = checkpoints(Path(config.output_dir))
        if not found:
            accelerator.print(f"no checkpoint in {config.output_dir} yet: starting from step 0")
            return 0
        path = found[-1]
    else:
        path = Path(wanted)
    if not path.is_dir() or not path.name.removeprefix("checkpoint-").isdigit():
        raise UserError(f"{path}: not a checkpoint folder; give 'latest' or a folder named checkpoint-STEP")
    accelerator.load_state(str(path))
    accelerator.print(f"resumed from {path}")
    return int(path.name.removeprefix("checkpoint-"))


class _Metrics:
    """metrics.jsonl: one line a step; lines after the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists() and step:
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    break  # a line torn by a kill is the last one
        path.write_text("".join(kept))
        self.file = path.open("a", buffering=1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")


class _progress:
    """A progress bar on the main process; a line every 100 steps where no terminal is attached."""

    def __init__(self, accelerator: Accelerator, step: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.active = accelerator.is_main_process
        self.console = Console()
        self.started, self.first = time.monotonic(), step
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (self.active and self.console.is_terminal),
        )
        self.task = self.bar.add_task("train", total=total, completed=step, loss=float("nan"))

    def __enter__(self) -> Callable[[int, float], None]:
        self.bar.start()
        return self.advance

    def advance(self, step: int, loss: float) -> None:
        self.bar.update(self.task, completed=step, loss=loss)
        if self.active and not self.console.is_terminal and step % 100 == 0:
            seconds = time.monotonic() - self.started
            rate = (step - self.first) / seconds
            print(f"step {step}  loss {loss:.4f}  {rate:.2f} steps/s  {seconds / 60:.1f} min", flush=True)

    def __exit__(self, *exc: Any) -> None:
        self.bar.stop()
