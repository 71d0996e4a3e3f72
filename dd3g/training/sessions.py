"""run.json: what a run was started with, and each session that went on with it."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dd3g.io.atomic import replacing
from dd3g.machine import provenance
from dd3g.training.config import LoopConfig

RUN = "run.json"


def record_session(accelerator: Accelerator, output: Path, config: LoopConfig, step: int) -> str:
    """Add this session to run.json; the main process calls it.

    Args:
        accelerator: of the run.
        output: folder of the run.
        config: as it is now.
        step: from which the session goes on; at 0 the record is begun anew.

    Returns:
        The name of the run, which all its sessions share.
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
