"""One training loop for every network: accelerate, moving average, checkpoints, exact resume.

Samples and random numbers of a step are pure functions of seed, step and process. So a run that was killed
continues bit for bit, and several processes see what one would see.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from dd3g.errors import UserError
from dd3g.progress import Progress
from dd3g.training.averaging import Average
from dd3g.training.checkpoints import checkpoints, resume, save_checkpoint
from dd3g.training.config import LoopConfig
from dd3g.training.data import Samples, batches, mixed_seed
from dd3g.training.metrics import Metrics
from dd3g.training.muon import Muon
from dd3g.training.rate import LearningRate
from dd3g.training.stopping import Stopped, StopRequest

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
        Stopped: on SIGINT, SIGTERM, SIGHUP or SIGUSR1, after a checkpoint of the step that was under way.
        UserError: when loss or gradient are not finite (weights, average and checkpoints are then still those
            of the step before), the checkpoint to resume from is missing or broken, the folder holds another
            run, or the disk is full.
    """
    run = _Run(model, config)
    with torch.random.fork_rng(devices=run.gpus), StopRequest() as request:
        step = resume(run.accelerator, run.output, config)
        main = run.accelerator.is_main_process
        metrics = Metrics(run.output / METRICS, step, config.logging_steps) if main else None
        source = batches(run.accelerator, samples, config, step)
        last = run.starts_at(step)
        if last:
            run.publish(publish, step)
        with Progress(main) as progress:
            progress.phase("steps", config.max_train_steps, step)
            while not last:
                numbers = run.advance(loss, source, step)
                step += 1
                if metrics is not None:
                    metrics.add(step, numbers)
                progress.advance(note=f"loss {numbers['loss']:.4f}")
                last = run.ends_at(step)
                # The model goes first: a run that is killed between the two and resumed writes both again.
                if last or step % config.validation_steps == 0:
                    found = run.publish(publish, step)
                    if metrics is not None and found:
                        metrics.write(step, found)
                asked = 0 if last else run.asked_to_stop(request)
                if last or asked or step % config.checkpointing_steps == 0:
                    save_checkpoint(run.accelerator, run.output, step, config)
                if asked:
                    run.accelerator.end_training()
                    raise Stopped(asked)
        run.accelerator.end_training()
    return run.average_model


class _Run:
    """A model in training, with all that follows it from step to step."""

    def __init__(self, model: nn.Module, config: LoopConfig) -> None:
        self.started, self.earlier = time.monotonic(), 0.0
        self.config, self.output = config, Path(config.output_dir)
        self.accelerator = _accelerator(config, self.output)
        self.average_model: Any = copy.deepcopy(model).requires_grad_(False).eval()
        self.model, self.optimizer = self.accelerator.prepare(model, _optimizer(model, config))
        self.rate = LearningRate(self.optimizer, config)
        self.average = Average(self.model, config.ema_decay, config.ema_warmup)
        self.accelerator.register_for_checkpointing(self.rate, self.average)
        if config.report_to != "none":
            self.accelerator.init_trackers("dd3g")

    @property
    def gpus(self) -> list[int]:
        """Devices whose random numbers the run uses."""
        device = self.accelerator.device
        return [device.index or 0] if device.type == "cuda" else []

    def starts_at(self, step: int) -> bool:
        """Get ready to go on from `step`; returns whether nothing is left to do."""
        self.model.train()
        # Only a rate that falls with the time counts that of earlier sessions.
        self.earlier = self.rate.minutes if self.config.lr_scheduler == "timed_cosine" else 0.0
        self.rate.minutes = self.earlier
        return step >= self.config.max_train_steps or self.earlier >= (self.config.max_minutes or math.inf)

    def ends_at(self, step: int) -> bool:
        """Whether `step` steps, or the minutes so far, are enough."""
        minutes = (time.monotonic() - self.started) / 60
        if self.accelerator.num_processes > 1:  # whose clocks differ: all leave at one step or none does
            here = torch.tensor(minutes, device=self.accelerator.device)
            minutes = float(self.accelerator.reduce(here, "mean"))
        self.rate.minutes = self.earlier + minutes
        return step == self.config.max_train_steps or self.rate.minutes > (
            self.config.max_minutes or math.inf
        )

    def asked_to_stop(self, request: StopRequest) -> int:
        """Number of the signal that any process got, or 0; all leave at one step or none does."""
        if self.accelerator.num_processes == 1:
            return request.number
        here = torch.tensor([request.number], device=self.accelerator.device)
        return int(self.accelerator.gather(here).max())

    def advance(self, loss: Loss, source: Iterator[Any], step: int) -> dict[str, float]:
        """One optimiser step; returns its numbers, the same on all processes."""
        accelerator, config = self.accelerator, self.config
        index = step * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(mixed_seed(config.seed, index))  # of dropout
        terms: dict[str, Tensor] = {}
        for _ in range(config.gradient_accumulation_steps):
            with accelerator.accumulate(self.model):
                result = loss(self.model, next(source), step)
                value, parts = result if isinstance(result, tuple) else (result, {})
                accelerator.backward(value)
            for name, part in {"loss": value.detach(), **parts}.items():
                share = part.float() / config.gradient_accumulation_steps
                terms[name] = terms[name] + share if name in terms else share
        numbers = _means(accelerator, terms)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or math.inf)
        numbers["grad_norm"] = float(norm)
        _check_finite(accelerator, numbers, step + 1, self.output)
        numbers["lr"] = self.rate.set()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not accelerator.optimizer_step_was_skipped:  # fp16 leaves a step out after an overflow
            self.rate.count += 1
            self.average.step()
        if config.report_to != "none":
            accelerator.log(numbers, step=step + 1)
        return numbers

    def publish(self, publish: Publish | None, step: int) -> dict[str, float]:
        """Show the averaged model; all processes call this together."""
        self.average.copy_to(self.average_model)
        numbers = None
        if self.accelerator.is_main_process and publish is not None:
            with torch.no_grad():
                numbers = publish(self.average_model.to(self.accelerator.device), step)
        self.accelerator.wait_for_everyone()
        return numbers or {}


def _optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    return (Muon if config.optimizer == "muon" else torch.optim.AdamW)(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        amsgrad=config.adam_amsgrad,
        fused=config.adam_fused or None,  # None: what suits the device
    )


def _accelerator(config: LoopConfig, output: Path) -> Accelerator:
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision 'fp16' needs a CUDA device and there is none: take bf16 or no")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write output_dir {output}: {error.strerror}; choose another folder"
        ) from error
    # accelerate keeps one precision a process; here each run has its own. The process group stays.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            # Without CUDA, cpu=True lets torchrun start several processes.
            cpu=config.use_cpu or not torch.cuda.is_available(),
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.precision,
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
