"""One training loop for every network: accelerate, moving average, checkpoints, exact resume.

Samples and random numbers of a step are pure functions of seed, step and process. So a run that was killed
continues bit for bit, and several processes see what one would see.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dd3g.command.progress import Progress
from dd3g.command.signals import Interrupted, signals_stop
from dd3g.errors import UserError, first_line
from dd3g.nn.recompute import recompute_blocks
from dd3g.processes import from_launcher
from dd3g.training.averaging import Average
from dd3g.training.checkpoints import State, checkpoints, resume, save_checkpoint
from dd3g.training.config import LoopConfig
from dd3g.training.data import Samples, batches, mixed_seed
from dd3g.training.optimizer import LearningRate, make_optimizer
from dd3g.training.processes import (
    check_options,
    from_all,
    held_by_main,
    make_accelerator,
    on_main,
    split_present_blocks,
)
from dd3g.training.records import Metrics, log, record_session, show_picture, start_trackers, stop_trackers
from dd3g.training.stopping import SIGNALS, StopRequest, launcher_has_ended

METRICS = "metrics.jsonl"
MIN_LOSS_SCALE = 1e-4  # fp16: below this nothing but overflows happens

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[nn.Module, Any, int], Tensor | tuple[Tensor, dict[str, Tensor]]]
Publish = Callable[[Any, int], dict[str, float] | None]


def fit(
    model: M, loss: Loss, samples: Samples | None, config: LoopConfig, publish: Publish | None = None
) -> M:
    """Train until `max_train_steps` or `max_minutes`.

    Args:
        model: trained in place.
        loss: (model, batch, step) -> scalar to minimise, alone or with detached terms to log. Only the model
            runs in mixed precision; what is computed from its outputs stays in float32.
        samples: of which batches are made; None gives the loss a `torch.Generator` to draw its batch from.
        config: how to run.
        publish: (averaged model, step) -> numbers for metrics.jsonl, or None. The main process calls it every
            `validation_steps` and at the end; it may write the model and pictures.

    Returns:
        A copy of the model that holds the moving average, in evaluation mode.

    Raises:
        Interrupted: on SIGINT, SIGTERM, SIGHUP or SIGUSR1, after a checkpoint of the step that was under way.
        UserError: when loss or gradient are not finite (weights, average and checkpoints are then still those
            of the step before), the checkpoint to resume from is missing or broken, the folder holds another
            run, or the disk is full.
    """
    items = len(samples) if isinstance(samples, Sized) else 0
    if config.num_train_epochs and not items:
        raise UserError("num_train_epochs: this training draws batches without end; set max_train_steps")
    config.count_epochs(items)
    if samples is None and from_launcher("WORLD_SIZE") > 1:
        raise UserError(
            "this network draws its own batches on one device, so several processes would all learn from the "
            "same; start one, without torchrun"
        )
    if launcher_has_ended():  # the processes would wait for each other through it
        raise Interrupted(signal.SIGHUP)
    run = _Run(model, config, samples is not None)
    run.state.items = items
    device, request = run.accelerator.device, StopRequest()
    gpus = [device.index or 0] if device.type == "cuda" else []
    signals = signals_stop(*SIGNALS, instead=request.note)
    with torch.random.fork_rng(devices=gpus), signals, held_by_main(run.output):
        step = first = resume(run.state, run.output, config)
        config.count_epochs(items, step, run.state.consumed)
        main = run.accelerator.is_main_process
        run.metrics = Metrics(run.output / METRICS, step, config.logging_steps) if main else None
        source = batches(run.accelerator, samples, config, step, run.state.consumed)
        last = run.starts_at(step)
        if last:
            run.publish(publish, step)
        with Progress(main) as progress:
            if not last:
                run.announce(progress, step)
            progress.phase("steps", config.max_train_steps, step)
            while not last:
                micro_batches = [next(source) for _ in range(config.gradient_accumulation_steps)]
                run.stop_if_asked(request, micro_batches, step, first)
                numbers = run.advance(loss, micro_batches, step)
                step += 1
                run.note(progress, step, numbers, step == first + 1)
                last = run.ends_at(step)
                # The model goes first: a run that is killed between the two and resumed writes both again.
                if last or step % config.validation_steps == 0:
                    found = run.publish(publish, step)
                    if run.metrics is not None and found:
                        run.metrics.write(step, found)
                if last or step % config.checkpointing_steps == 0:
                    run.save(step)
        run.end()
    return run.average_model


class _Run:
    """A model in training, with all that follows it from step to step."""

    def __init__(self, model: nn.Module, config: LoopConfig, counts_samples: bool) -> None:
        self.started, self.earlier = time.monotonic(), 0.0
        self.config, self.output = config, Path(config.output_dir)
        self.most_minutes = config.max_minutes or math.inf
        self.accelerator = make_accelerator(config, self.output)
        check_options(self.accelerator, config)
        self.learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.average_model: Any = copy.deepcopy(model).requires_grad_(False).eval()
        if config.gradient_checkpointing:
            recompute_blocks(model)
        split_present_blocks(self.accelerator, model)
        fused = config.adam_fused or self.accelerator.device.type == "cuda"
        self.model, optimizer = self.accelerator.prepare(model, make_optimizer(model, config, fused))
        self.optimizer = optimizer
        self.rate = LearningRate(optimizer, config)
        self.average = Average(model, config.ema_decay, config.ema_warmup)
        self.state = State(self.accelerator, model, optimizer.optimizer, self.average, self.rate)
        self.consumption = config.gradient_accumulation_steps  # of a step, see `State.consumed`
        if counts_samples:
            self.consumption *= config.train_batch_size * self.accelerator.num_processes
        self.saved = -1  # step of the last checkpoint
        self.metrics: Metrics | None = None  # of the main process

    def starts_at(self, step: int) -> bool:
        """Get ready to go on from `step`; returns whether nothing is left to do."""
        self.model.train()
        # Only a rate that falls with the time counts that of earlier sessions.
        self.earlier = self.rate.minutes if self.config.lr_scheduler == "timed_cosine" else 0.0
        self.rate.minutes = self.earlier
        return step >= self.config.max_train_steps or self.earlier >= self.most_minutes

    def ends_at(self, step: int) -> bool:
        """Whether `step` steps, or the minutes so far, are enough."""
        minutes = (time.monotonic() - self.started) / 60
        if self.accelerator.num_processes > 1:  # whose clocks differ: all leave at one step or none does
            here = torch.tensor(minutes, device=self.accelerator.device)
            minutes = float(self.accelerator.reduce(here, "mean"))
        self.rate.minutes = self.earlier + minutes
        return step == self.config.max_train_steps or self.rate.minutes > self.most_minutes

    def announce(self, progress: Progress, step: int) -> None:
        """Say where and how the run goes, write it down, and start the trackers; all call this together."""
        accelerator, config = self.accelerator, self.config
        device = accelerator.device
        shown = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        count = sum(p.numel() for p in self.average_model.parameters())
        counted = f"{count:,}" if self.learns == count else f"{self.learns:,} of {count:,}"
        if accelerator.is_main_process:
            progress.say(
                f"training {counted} parameters on {shown}, processes: {accelerator.num_processes}, "
                f"precision: {config.precision}, from step {step} of {config.max_train_steps}"
            )
        run = on_main(lambda: record_session(accelerator, self.output, config, step))
        if config.report_to != "none":
            start_trackers(accelerator, config, run, step)

    def note(self, progress: Progress, step: int, numbers: dict[str, float], first: bool) -> None:
        """Write down and show the numbers of a step; a session's first one has a line of its own."""
        if self.metrics is not None:
            self.metrics.add(step, numbers)
        loss = f"loss {numbers['loss']:.4f}"
        progress.advance(note=loss, seconds=max(0.0, 60 * (self.most_minutes - self.rate.minutes)))
        if first and self.accelerator.is_main_process:
            progress.say(f"step {step}: {loss}, {time.monotonic() - self.started:.1f} s after the start")

    def save(self, step: int) -> None:
        """Write a checkpoint, unless the last one is of this step."""
        if step != self.saved:
            save_checkpoint(self.state, self.output, step, self.config)
            self.saved = step

    def end(self) -> None:
        """Close files and trackers and leave the group of processes; nothing is trained afterwards."""
        if self.metrics is not None:
            self.metrics.close()
        # A wrapped model that outlives its group takes it along when it goes, and waits for gloo's threads
        # while it holds the interpreter's lock, for which these may be waiting.
        self.model = None
        stop_trackers(self.accelerator)
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def stop_if_asked(self, request: StopRequest, micro_batches: list[Any], step: int, first: int) -> None:
        """Leave with a checkpoint where any process got a signal or no batch; all leave at one step."""
        broken = next((str(b) for b in micro_batches if isinstance(b, UserError)), "")
        flag = request.number or int(bool(broken))
        if self.accelerator.num_processes > 1:  # one number a step; the reasons only where there are any
            flag = int(self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device)).max())
        if not flag:
            return
        asked = from_all((request.number, broken))
        number, broken = max(n for n, _ in asked), next((b for _, b in asked if b), "")
        if step > first:
            self.save(step)
        self.end()
        if number:
            raise Interrupted(number)
        raise UserError(broken)

    def advance(self, loss: Loss, micro_batches: list[Any], step: int) -> dict[str, float]:
        """One optimiser step on its batches; returns its numbers, the same on all processes."""
        accelerator, config = self.accelerator, self.config
        index = step * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(mixed_seed(config.seed, index))  # of dropout
        terms: dict[str, Tensor] = {}
        try:
            for batch in micro_batches:
                if hasattr(batch, "to"):
                    batch = batch.to(accelerator.device, non_blocking=True)
                with accelerator.accumulate(self.model):
                    result = loss(self.model, batch, step)
                    value, found = result if isinstance(result, tuple) else (result, {})
                    accelerator.backward(value)
                for name, term in {"loss": value.detach(), **found}.items():
                    share = term.float() / config.gradient_accumulation_steps
                    terms[name] = terms[name] + share if name in terms else share
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has too little memory for step {step + 1} ({first_line(error)}): lower "
                f"train_batch_size {config.train_batch_size} and raise gradient_accumulation_steps "
                f"{config.gradient_accumulation_steps} by as much, or set gradient_checkpointing=true"
            ) from error
        numbers = _means(accelerator, terms)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or math.inf)
        numbers["grad_norm"] = float(norm)
        _check_finite(accelerator, numbers, step + 1, self.output)
        numbers["lr"] = self.rate.set()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.consumed += self.consumption
        if not accelerator.optimizer_step_was_skipped:  # fp16 leaves a step out after an overflow
            self.rate.count += 1
            self.average.step()
        if config.report_to != "none":
            log(accelerator, numbers, step + 1)
        return numbers

    def publish(self, publish: Publish | None, step: int) -> dict[str, float]:
        """Show the averaged model; all processes call this together."""
        self.average.copy_to(self.average_model)

        def show() -> dict[str, float] | None:
            if publish is None:
                return None
            try:
                with torch.no_grad():
                    numbers = publish(self.average_model.to(self.accelerator.device), step)
            finally:
                self.average_model.cpu()  # a GPU has better uses for its memory
            show_picture(self.accelerator, self.output / f"sheet-{step:06d}.png", step)
            return numbers

        return on_main(show) or {}


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
