"""Multi-view diffusion models behind one protocol."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from dd3g.errors import UserError
from dd3g.nn.checkpoint import read_config
from distill.teachers.protocol import Codec, Condition, Teacher

__all__ = ["Codec", "Condition", "Teacher", "load"]

CLASSES = {
    "analytic": "distill.teachers.analytic:AnalyticTeacher",
    "compact": "distill.teachers.compact:CompactTeacher",
}
SHIPPED = Path(import_module("dd3g").__file__ or "").parent / "weights"


def load(name: str | Path, device: str = "cpu") -> Teacher:
    """Load a teacher.

    Args:
        name: "analytic", the name of shipped weights, or a folder whose config.json has a "teacher" key.
        device: where it goes.

    Raises:
        UserError: when nothing is found under that name, or what is found is not a teacher.
    """
    folder = SHIPPED / str(name) if (SHIPPED / str(name) / "config.json").is_file() else Path(name)
    if not folder.is_dir():
        if str(name) == "analytic":
            return _class("analytic")().to(device)
        raise UserError(
            f"{name}: no such teacher; give 'nano-teacher', which ships, 'analytic', or a folder written by "
            "distill/train_teacher.py"
        )
    kind = read_config(folder, "teacher").get("teacher")
    if kind not in CLASSES:
        raise UserError(
            f"{folder}/config.json: unknown teacher {kind!r}; known are {', '.join(sorted(CLASSES))}"
        )
    return _class(kind).from_pretrained(folder).to(device)


def _class(kind: str) -> Any:
    module, name = CLASSES[kind].split(":")
    return getattr(import_module(module), name)
