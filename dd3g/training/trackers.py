"""Curves, settings and pictures for TensorBoard and Weights & Biases, across the sessions of one run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dd3g.training.config import LoopConfig
from dd3g.training.settings import flat


def start_trackers(accelerator: Accelerator, config: LoopConfig, run: str, step: int) -> None:
    """Start the tracker of `report_to` from `step` on.

    Args:
        accelerator: made with `log_with`.
        config: shown beside the curves.
        run: name that all sessions of a run share.
        step: what an earlier session told of later steps is dropped.
    """
    plain = {
        k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat(asdict(config)).items()
    }
    logs = config.logging_dir or str(Path(config.output_dir) / "logs")
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"id": run, "resume": "allow", "dir": logs},
    }
    Path(logs).mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers(config.tracker_project_name, plain, options)


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
        tracker.log_images({path.stem.partition("-")[0]: pixels}, step=step, **layout)
