"""What a run records: metrics.jsonl, its sessions in run.json, and curves in TensorBoard or wandb."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dd3g.errors import first_line
from dd3g.io.atomic import replacing
from dd3g.machine import provenance
from dd3g.training.config import LoopConfig, flat


class Metrics:
    """metrics.jsonl: one JSON object a line; lines after the step that a run resumes from are dropped.

    Args:
        path: of the file.
        step: from which the run goes on.
        every: steps over which a line's numbers are averaged.
    """

    def __init__(self, path: Path, step: int, every: int = 1) -> None:
        kept = []
        if path.exists() and step:
            for line in path.read_text(errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # torn by a kill or a full disk
        with replacing(path) as partial:
            partial.write_text("".join(kept))
        self.path, self.step, self.torn = path, step, ""
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.every = every
        self.waiting: list[dict[str, float]] = []

    def close(self) -> None:
        """Write what waits for a full line, and let go of the file."""
        if self.waiting:
            self._write_mean()
        os.close(self.file)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Take in one step's numbers; the learning rate is that of a line's last step."""
        self.waiting.append(numbers)
        self.step = step
        if step % self.every == 0:
            self._write_mean()

    def _write_mean(self) -> None:
        columns = {k: [n[k] for n in self.waiting if k in n] for n in self.waiting for k in n}
        means = {k: sum(values) / len(values) for k, values in columns.items()}
        self.write(self.step, means | {"lr": self.waiting[-1]["lr"]})
        self.waiting = []

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add a line; a disk that is full costs lines, not the run.

        What is not finite, as the gradient of a step that float16 leaves out, is null: JSON has no infinity.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        try:
            os.write(self.file, (self.torn + json.dumps({"step": step, **finite}) + "\n").encode())
            self.torn = ""
        except OSError as error:
            if not self.torn:
                print(f"warning: cannot write {self.path} ({error.strerror})", file=sys.stderr)
            self.torn = "\n"  # what is there of this line is not part of the next one


RUN = "run.json"


def record_session(accelerator: Accelerator, output: Path, config: LoopConfig, step: int) -> str:
    """Add this session, which goes on from a step, to run.json; the main process calls it.

    At step 0 the record is begun anew. Returns the name of the run, which all its sessions share.
    """
    path = output / RUN
    try:
        before: dict[str, Any] = json.loads(path.read_text()) if step else {}
    except (OSError, ValueError):  # lost with the rest of a full disk; the run itself does not need it
        before = {}
    session = {
        "from_step": step,
        "processes": accelerator.num_processes,
        "precision": config.precision,
        "config": asdict(config),
        **provenance(str(accelerator.device)),
    }
    run = str(before.get("run") or secrets.token_hex(4))
    with replacing(path) as part:
        sessions = [*before.get("sessions", []), session]
        part.write_text(json.dumps({"run": run, "sessions": sessions}, indent=1) + "\n")
    return run


def start_trackers(accelerator: Accelerator, config: LoopConfig, run: str, step: int) -> None:
    """Start the tracker of `report_to`, under the name that all sessions of a run share.

    What an earlier session logged of steps after this one is dropped; the configuration is shown beside the
    curves. A tracker that does not start costs its curves, not the run.
    """
    plain = {
        k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat(asdict(config)).items()
    }
    logs = config.logging_dir or str(Path(config.output_dir) / "logs")
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"id": run, "resume": "allow", "dir": logs},
    }
    try:
        if accelerator.is_main_process:
            Path(logs).mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers(config.tracker_project_name, plain, options)
    except Exception as error:  # nobody is logged in, the service cannot be reached, the folder not written
        accelerator.trackers = []
        _warn(f"the tracker does not start ({first_line(error)}): the run has no curves there")


def log(accelerator: Accelerator, numbers: dict[str, float], step: int) -> None:
    """Give the trackers a step's numbers; what cannot be shown costs curves, not the run."""
    _try(lambda: accelerator.log(numbers, step=step))


def show_picture(accelerator: Accelerator, path: Path, step: int) -> None:
    """Give the trackers a picture, where there is one at `path`."""
    if not path.is_file():
        return
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))[None]  # (1, H, W, 3)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        name = path.stem.partition("-")[0]
        _try(partial(tracker.log_images, {name: pixels}, step=step, **layout))


def stop_trackers(accelerator: Accelerator) -> None:
    """Let the trackers write what they hold."""
    for tracker in accelerator.trackers:
        _try(tracker.finish)
    accelerator.trackers = []


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:  # of a full disk, or of a service that cannot be reached
        _warn(f"the tracker fails ({first_line(error)}): its curves have a gap")


@cache
def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
