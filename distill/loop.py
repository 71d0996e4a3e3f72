"""One training loop for teacher and generator: accelerate, EMA, checkpoints, exact resume.

Every sample is a pure function of (seed, index), and step k takes samples k*B ... k*B + B - 1, where B is the
global batch. So a run that was killed continues bit for bit, and several processes see what one would see.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dd3g.errors import UserError
from dd3g.training import Metrics
from distill.average import Average
from distill.checkpoints import checkpoints, resume, save_checkpoint
from distill.config import LoopConfig
from distill.learning_rate import LearningRate
from distill.muon import Muon

MIN_LOSS_SCALE = 1e-4  # fp16: below this nothing but overflows happens


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
        model: trained in place; `save` and `sheet` see a copy that holds the exponential moving average.
        loss: (model, batch, step) -> (scalar to minimise, terms to log, already detached). Only the model
            runs in mixed precision; what is computed from its outputs stays in float32.
        draws: the samples.
        config: how to run.
        save: writes the averaged model into a folder.
        sheet: writes a picture of what the averaged model does now.

    Returns:
        The folder of the averaged model, `output_dir/model`.

    Raises:
        UserError: when loss or gradient are not finite (weights, average and checkpoints are then still those
            of the step before), the checkpoint to resume from is missing or broken, or the disk is full.
    """
    started = time.monotonic()
    output = Path(config.output_dir)
    accelerator = _accelerator(config, output)
    shown = copy.deepcopy(model).requires_grad_(False).eval()  # the averaged model
    optimizer = (Muon if config.optimizer == "muon" else torch.optim.AdamW)(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    rate = LearningRate(optimizer, config)
    average = Average(model.parameters(), config.ema_decay)
    accelerator.register_for_checkpointing(rate, average)
    step = resume(accelerator, output, config.resume_from_checkpoint)
    if config.report_to != "none":
        accelerator.init_trackers("dd3g")

    def publish() -> None:
        average.copy_to(shown.parameters())
        if accelerator.is_main_process:
            save(shown, output / "model")
            if sheet is not None:
                with torch.no_grad():
                    sheet(shown.to(accelerator.device), output / f"sheet-{step:06d}.png")
        accelerator.wait_for_everyone()

    metrics = Metrics(output / "metrics.jsonl", step) if accelerator.is_main_process else None
    batches = _batches(accelerator, draws, config, step)
    deadline = started + 60 * config.max_minutes if config.max_minutes else math.inf
    if step >= config.max_train_steps:
        publish()
    with _Progress(accelerator, step, config.max_train_steps) as advance:
        model.train()
        while step < config.max_train_steps:
            terms: dict[str, Tensor] = {}
            for _ in range(config.gradient_accumulation_steps):
                with accelerator.accumulate(model):
                    value, parts = loss(model, next(batches), step)
                    accelerator.backward(value)
                for name, part in {"loss": value.detach(), **parts}.items():
                    share = part.float() / config.gradient_accumulation_steps
                    terms[name] = terms[name] + share if name in terms else share
            numbers = _means(accelerator, terms)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
            numbers["grad_norm"] = float(norm)
            _check_finite(accelerator, numbers, step + 1, output)
            numbers["lr"] = rate.value
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not accelerator.optimizer_step_was_skipped:  # fp16 leaves a step out after an overflow
                rate.step()
                average.step()
            step += 1
            if metrics is not None:
                metrics.write(step, numbers)
            if config.report_to != "none":
                accelerator.log(numbers, step=step)
            advance(step, numbers["loss"])

            over = _any(accelerator, time.monotonic() > deadline)
            last = over or step == config.max_train_steps
            # The model goes first: a run that is killed between the two and resumed writes both again.
            if last or step % config.validation_steps == 0:
                publish()
            if last or step % config.checkpointing_steps == 0:
                save_checkpoint(accelerator, output, step, config.checkpoints_total_limit)
            if over:
                break
    accelerator.end_training()
    return output / "model"


def _accelerator(config: LoopConfig, output: Path) -> Accelerator:
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision 'fp16' needs a CUDA device and there is none: take bf16 or no")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write output_dir {output}: {error.strerror}; choose another folder"
        ) from error
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),  # lets torchrun start several CPU processes
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
        )
    except ValueError as error:
        raise UserError(
            f"mixed_precision {config.mixed_precision!r} or report_to {config.report_to!r} does not work "
            f"here: {error}"
        ) from error
    if config.report_to != "none" and not accelerator.log_with:  # accelerate only warns
        raise UserError(
            f"report_to {config.report_to!r} needs a package that is not installed: install it, or take "
            "report_to=tensorboard or none"
        )
    return accelerator


def _batches(
    accelerator: Accelerator, draws: Draws, config: LoopConfig, step: int
) -> Iterator[dict[str, Tensor]]:
    size, world = config.train_batch_size, accelerator.num_processes
    rank, micro = accelerator.process_index, step * config.gradient_accumulation_steps
    total = config.max_train_steps * config.gradient_accumulation_steps
    indices = [range((k * world + rank) * size, (k * world + rank + 1) * size) for k in range(micro, total)]
    workers = config.dataloader_num_workers
    loader = DataLoader(
        _Indexed(draws),
        batch_sampler=indices,  # type: ignore[arg-type]
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    try:
        for batch in loader:
            yield {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
    except UserError as error:
        # From a worker it comes with the worker's traceback in front.
        raise UserError(str(error).rsplit("dd3g.errors.UserError: ")[-1].strip()) from error


def _means(accelerator: Accelerator, terms: dict[str, Tensor]) -> dict[str, float]:
    """Mean over processes, with one transfer for all terms."""
    names = sorted(terms)
    values = accelerator.reduce(torch.stack([terms[n].to(accelerator.device) for n in names]), "mean")
    return dict(zip(names, values.tolist(), strict=True))


def _check_finite(accelerator: Accelerator, numbers: dict[str, float], step: int, output: Path) -> None:
    """Stop before anything is touched; the numbers are the same on all processes, so all stop."""
    scaler = accelerator.scaler  # present with fp16, where single overflows are expected and skipped
    if scaler is not None and math.isfinite(numbers["loss"]):
        broken = "the gradient overflows at every loss scale" if scaler.get_scale() < MIN_LOSS_SCALE else ""
    else:
        wrong = [f"the {n} is {numbers[n]}" for n in ("loss", "grad_norm") if not math.isfinite(numbers[n])]
        broken = wrong[0] if wrong else ""
    if broken:
        kept = checkpoints(output)
        raise UserError(
            f"{broken} at step {step}; nothing of this step was kept, "
            + (f"the last good checkpoint is {kept[-1]}: resume from it " if kept else "start again ")
            + "with a lower learning_rate or mixed_precision=no"
        )


def _any(accelerator: Accelerator, flag: bool) -> bool:
    # The clock differs between processes: all leave at the same step or none does.
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


class _Progress:
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
