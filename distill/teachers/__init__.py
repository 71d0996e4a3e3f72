"""Multi-view diffusion models behind one protocol: a picture or a caption in, views from around it out.

Read `protocol.py` first, then `analytic.py`, the smallest one. `compact.py` is ours; `mvdream.py` (ImageDream
too) and `zero123plus.py` run published ones, which `published.py` reads.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dd3g.errors import UserError
from dd3g.nn.checkpoint import SHIPPED, read_config
from distill.teachers.analytic import AnalyticTeacher
from distill.teachers.compact import CompactTeacher
from distill.teachers.protocol import Codec, Teacher

__all__ = ["Codec", "Teacher", "load"]

CLASSES: dict[str, type[AnalyticTeacher | CompactTeacher]] = {
    "analytic": AnalyticTeacher,
    "compact": CompactTeacher,
}
WHITE = "zero123plus-white"  # two downloads: Zero123++ v1.2, and a U-Net in place of its own
PUBLISHED = ("imagedream", "mvdream", "zero123plus", "zero123plus-v1.1", WHITE)


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    elevation: float | None = None,
    attention: str = "sdpa",
) -> Teacher:
    """Load a teacher.

    Args:
        name: "analytic", the name of shipped weights, a folder whose config.json has a "teacher" key, or a
            published one: its name in `dd3g models list` or a hub id `owner/name`, with `@revision` for
            another one than the newest, or a folder with a model_index.json.
        device: where it goes.
        precision: of the weights of a published one: auto (float16 on CUDA), float32, bfloat16 or float16.
        elevation: degrees of the rig, for a teacher that is not bound to one; None is its own default.
        attention: of a published one: sdpa, torch's own, or xformers where it is installed.

    Raises:
        UserError: when nothing is found under that name, or what is found is not a teacher.
    """
    folder = SHIPPED / str(name) if (SHIPPED / str(name) / "config.json").is_file() else Path(name)
    if not (folder / "config.json").is_file() and str(name) != "analytic":
        if (teacher := _published(name, device, precision, elevation)) is not None:
            from distill.teachers.published import choose_attention

            choose_attention(teacher, attention)
            return teacher
    if attention != "sdpa":
        raise UserError(f"{name} attends by torch's own kernels: leave the attention out")
    if elevation is not None:
        raise UserError(f"{name} was trained with its own cameras: leave the elevation out")
    if not folder.is_dir():
        if str(name) == "analytic":
            return AnalyticTeacher().to(device)
        raise UserError(
            f"{name}: no such teacher; give 'nano-teacher', which ships, 'analytic', a published one "
            f"({', '.join(PUBLISHED)}), a folder in its layout, or one written by dd3g train-teacher"
        )
    kind = read_config(folder, "teacher").get("teacher")
    if kind not in CLASSES:
        raise UserError(
            f"{folder}/config.json: unknown teacher {kind!r}; known are {', '.join(sorted(CLASSES))}"
        )
    return CLASSES[kind].from_pretrained(folder).to(device)


def _published(
    name: str | Path, device: str | torch.device, precision: str, elevation: float | None
) -> Teacher | None:
    """A teacher in the published layout; None where there is none of that name."""
    from distill.teachers.mvdream import MVDreamTeacher
    from distill.teachers.published import choose_dtype, find_source, read_json

    white = str(name).partition("@")[0] == WHITE  # a revision is of its U-Net
    source = find_source("zero123plus" if white else name)
    if source is None:
        return None
    dtype = choose_dtype(precision, device)
    if "model_channels" in read_json(source.folder / "unet" / "config.json"):  # ImageDream's, too
        return MVDreamTeacher(source, dtype, elevation).to(device)
    from distill.teachers.zero123plus import Zero123PlusTeacher

    if elevation is not None:
        raise UserError(f"{name} was trained with its own cameras: leave the elevation out")
    return Zero123PlusTeacher(source, dtype, find_source(name) if white else None).to(device)
