"""What the tests of training runs share."""

from __future__ import annotations

import json
from pathlib import Path


def fresh():
    """Forget accelerate's process-wide state: every run of a script is a process of its own."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def metrics(output):
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
