"""A generator whose phase 1 is a published teacher's own network, weights and all."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from dd3g.errors import UserError
from dd3g.fingerprint import folder_fingerprint
from dd3g.nn.clip_vision import ClipVisionConfig
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.pepd.config import TeacherPhase
from dd3g.processes import from_launcher
from distill.config import StartConfig
from distill.teachers import load
from distill.teachers.mvdream import MVDreamTeacher
from distill.teachers.published import find_source


def start_from_teacher(config: GeneratorConfig, start: StartConfig) -> Generator:
    """A generator of `config`, with the teacher's network, encoders and empty caption in phase 1.

    Raises:
        UserError: when the teacher is not ImageDream, or its views and the generator's differ.
    """
    teacher = load(start.teacher)
    if not isinstance(teacher, MVDreamTeacher) or not teacher.sees_picture:
        raise UserError(
            f"start.teacher {start.teacher} is not an ImageDream teacher, whose network phase 1 could be"
        )
    wanted = (teacher.picture_size, teacher.latent_shape)
    if (config.size, tuple(config.latent_shape)) != wanted:
        raise UserError(
            f"start.teacher {start.teacher} draws {wanted[0]} pixels from noise {list(wanted[1])}: set "
            f"generator.size={wanted[0]} and generator.latent_shape={list(wanted[1])}"
        )
    level = teacher.schedule.plan(start.steps)[0][0]
    vision = teacher.image.config
    if vision.hidden_act != "gelu":
        raise UserError(f"start.teacher {start.teacher}: its image encoder has {vision.hidden_act}, not gelu")
    phase = TeacherPhase(
        unet=teacher.unet.config,
        image=ClipVisionConfig(**{f.name: getattr(vision, f.name) for f in fields(ClipVisionConfig)}),
        vae={k: v for k, v in dict(teacher.codec.vae.config).items() if not k.startswith("_")},
        level=level,
        alpha_bar=float(teacher.schedule.ab(level)),
        **{name: getattr(start, name) for name in ("top_only", "lower", "rank", "lower_rate")},
    )
    generator = Generator(replace(config, teacher=phase))
    extraction: Any = generator.extraction
    _take(extraction.unet, teacher.unet)
    _take(extraction.image, teacher.image)
    _take(extraction.vae, teacher.codec.vae)
    with torch.no_grad():
        extraction.caption.copy_(teacher.text([""]))
    return generator


def share_frozen(generator: Generator, teacher: MVDreamTeacher) -> int:
    """Let a teacher use the student's frozen tensors, where both have them, in place of its own.

    Low-rank changes lie beside the weights that they change, so a student whose lower levels learn that way
    still holds the teacher's. The student is as `start_from_teacher` made it, before anything wraps or splits
    it, the teacher in float32.

    Returns:
        How many parameters are held once instead of twice.

    Raises:
        UserError: when the student holds nothing of this teacher.
    """
    extraction: Any = generator.extraction
    pairs = [("unet", teacher.unet), ("image", teacher.image), ("vae", teacher.codec.vae)]
    count = 0
    for part, theirs in pairs if generator.config.teacher else []:
        frozen = {n: p for n, p in getattr(extraction, part).named_parameters() if not p.requires_grad}
        for name, tensor in list(theirs.named_parameters()):
            if name in frozen and torch.equal(frozen[name], tensor):
                owner, _, leaf = name.rpartition(".")
                setattr(theirs.get_submodule(owner), leaf, frozen[name])
                count += tensor.numel()
    if not count:
        raise UserError(
            "objective.implicit_shared: the student holds no frozen weights of the verifier: set "
            "start.teacher to it with start.lower=frozen or low_rank, or leave implicit_shared out"
        )
    return count


def check_steps(start: StartConfig, made_by: dict[str, Any], steps: int | None, name: str) -> None:
    """Refuse a student that takes a teacher's noise at another level than it entered at.

    The quadruples `name` were made in `steps` by what `teacher_of` says; None where they do not say.

    Raises:
        UserError: naming the option that fits.
    """
    same = start.teacher and made_by.get("teacher") == "imagedream"
    if same and steps is not None and steps != start.steps:
        raise UserError(
            f"{name} was made in {steps} steps, and start.steps={start.steps}: its noise enters at another "
            f"level of the network; set start.steps={steps}"
        )


def check_weights(options: dict[str, str], made_by: dict[str, Any], name: str) -> None:
    """Warn where quadruples were made by an ImageDream of other weights than a run's options name."""
    made = made_by.get("weights")
    if made is None or made_by.get("teacher") != "imagedream" or from_launcher("RANK") != 0:
        return
    for option, teacher in options.items():
        source = find_source(teacher) if teacher else None
        if source is not None and folder_fingerprint(source.folder) != made:
            print(
                f"warning: {name} was made by an ImageDream of other weights than {option} {teacher}: make "
                "it again with that, or name the teacher that made it",
                file=sys.stderr,
            )


@torch.no_grad()
def _take(own: nn.Module, theirs: nn.Module) -> None:
    """Copy every tensor that both have by the same name; new ones of ours stay as they began."""
    state = theirs.state_dict()
    for name, tensor in own.state_dict().items():
        if name in state:
            tensor.copy_(state[name])
