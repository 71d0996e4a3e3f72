"""Zero123++ from a picture to a canvas of views, through a folder in the published layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.diffusion import Schedule, sample
from dd3g.errors import UserError
from distill.teachers.latents import bilinear, clip_pixels, levels, pixels
from distill.teachers.published import Source
from distill.teachers.zero123plus import MEAN, STD, Zero123PlusCondition, Zero123PlusTeacher, joined, parted
from tools.goldens.golden import CALL, LOOP, PART, Compared, Golden, recorded
from tools.goldens.pipeline import write_folder, write_scheduler

LEVEL, GUIDANCE = 500, 4.0


@dataclass(frozen=True)
class Loop:
    """How one of the loops goes down."""

    scheduler: str  # of diffusers; its noise levels
    last: bool = False  # `set_alpha_to_one`
    fresh: bool = False  # noise is drawn for the reference at each step, and for the state
    guidance: float = GUIDANCE  # 1 is none


LOOPS = {
    "ddim": Loop("DDIMScheduler"),
    "ddim_one": Loop("DDIMScheduler", last=True),
    "euler": Loop("EulerDiscreteScheduler"),
    "ancestral": Loop("EulerAncestralDiscreteScheduler", fresh=True),
    "ancestral_plain": Loop("EulerAncestralDiscreteScheduler", fresh=True, guidance=1.0),
}


def check(golden: Golden) -> Iterator[Compared]:
    """Compare all arrays of the file."""
    configs = golden.about["configs"]
    networks = {k: configs[k] for k in ("unet", "text_encoder", "vae", "vision_encoder")}
    sizes = configs["sizes"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(Path(temporary, "teacher"), networks, golden.about["shapes"], golden.seed)
        write_scheduler(folder, configs["scheduler"])
        index = {"ramping_coefficients": configs["ramping_coefficients"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        teacher = Zero123PlusTeacher(
            Source(folder, "made up", None, "none", "no licence binds made-up weights"),
            golden.dtype,
            version="1.2",
            sides=(sizes["cond"], sizes["clip"]),
            size=sizes["canvas_hw"][1] // 2,
        )
    yield from _levels(golden, teacher)
    if "input_rgba" not in golden:
        raise UserError(f"{golden.name}.npz lacks input_rgba, of which the others were made: copy it again")
    rgba = torch.from_numpy(golden["input_rgba"]).permute(2, 0, 1)[None] / 255
    yield from _inputs(golden, teacher, rgba)
    condition = teacher.condition(rgba)
    teacher.reference_noise = golden.normal("ref", teacher.reference_noise.shape)
    if "call.out" in golden:
        yield from _call(golden, teacher, condition)
    for loop, run in LOOPS.items():
        if f"{loop}.latents" in golden:
            yield from _loop(golden, teacher, condition, loop, run)


def _scheduler(name: str, config: dict[str, Any], spacing: str, steps: int) -> Any:
    import diffusers

    scheduler = getattr(diffusers, name).from_config(config | {"timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    return scheduler


def _levels(golden: Golden, teacher: Zero123PlusTeacher) -> Iterator[Compared]:
    """Which noise levels samplers visit; DDIM's are our own plans."""
    config = golden.about["configs"]["scheduler"]
    for name, rest in golden.named("levels."):
        kind, spacing, steps = rest.split(".")
        if kind == "ddim":
            levels = [t for t, _ in teacher.schedule.plan(int(steps), spacing)]
            yield golden.compare(name, np.array(levels, np.float64), PART)
        else:
            found = _scheduler("EulerAncestralDiscreteScheduler", config, spacing, int(steps))
            yield golden.compare(name, found.timesteps, PART)
    for name, rest in golden.named("sigmas."):
        spacing, steps = rest.split(".")
        found = _scheduler("EulerAncestralDiscreteScheduler", config, spacing, int(steps))
        yield golden.compare(name, found.sigmas, PART)


def _inputs(golden: Golden, teacher: Zero123PlusTeacher, rgba: Tensor) -> Iterator[Compared]:
    """What the network is given of the picture."""
    picture = teacher.on_ground(levels(rgba, truncate=False))
    seen = pixels(picture, teacher.sides[0], bilinear, MEAN, STD)
    clip = clip_pixels(picture, teacher.sides[1])
    embeds = teacher.image(pixel_values=clip.to(teacher.unet.dtype)).image_embeds
    exact = {
        "input_rgb": lambda: picture[0].permute(1, 2, 0),
        "vae_pixels": lambda: seen,
        "clip_pixels": lambda: clip,
    }
    networks = {
        "cond_lat": lambda: teacher.codec.mode(torch.cat([torch.zeros_like(seen), seen])),
        "image_embeds": lambda: embeds,
        "prompt_embeds": lambda: torch.cat([teacher.caption(), teacher.tokens(embeds)]),
    }
    yield from golden.compare_held(PART, exact)
    yield from golden.compare_held(CALL, networks)
    # Given, and compared with what reaches the network as a picture.
    yield golden.compare("input_rgba", (rgba[0] * 255).round().permute(1, 2, 0), PART)


def _call(golden: Golden, teacher: Zero123PlusTeacher, condition: Zero123PlusCondition) -> Iterator[Compared]:
    """Both halves of a guided call, and what some blocks give in the reference's pass and in the other."""
    given = recorded(teacher.unet, (rest for _, rest in golden.named("call.read.")))
    x = golden.normal("znoise", (1, *golden["call.out"].shape[1:]))
    t = torch.tensor([golden.about.get("t", LEVEL)])
    out = [joined(teacher(parted(x), t, half)) for half in (condition.null(), condition)]
    yield golden.compare("call.out", torch.cat(out), CALL)
    for place, kind in enumerate(("write", "read")):
        for name, rest in golden.named(f"call.{kind}."):
            halves = torch.cat(given[rest][place:4:2])
            yield golden.compare(name, halves[:, : golden[name].shape[1]], CALL)


def _loop(
    golden: Golden, teacher: Zero123PlusTeacher, condition: Zero123PlusCondition, name: str, loop: Loop
) -> Iterator[Compared]:
    """Noise to a canvas; the last steps of the latents, or all of them."""
    wanted = golden[f"{name}.latents"]
    steps = len(golden[f"{name}.timesteps"]) if f"{name}.timesteps" in golden else len(wanted)
    noise = golden.normal("znoise", (1, *wanted.shape[1:]))
    reference = golden.normal("ref", teacher.reference_noise.shape)
    teacher.reference_noise = reference
    denoiser = teacher.denoiser(condition, loop.guidance)
    config = golden.about["configs"]["scheduler"]
    if loop.scheduler == "DDIMScheduler":
        schedule = Schedule.from_config(config | {"set_alpha_to_one": loop.last})
        # diffusers goes down by whole strides, which meet the next level where they divide the schedule.
        stride = schedule.steps // steps
        plan = [(t, max(t - stride, -1)) for t, _ in schedule.plan(steps, "trailing")]
        found = sample(denoiser, schedule, parted(noise), plan, condition, record=lambda s: s.x_t)
        states, levels = [*found.trace[1:], found.x], [t for t, _ in plan]
    else:
        scheduler = _scheduler(loop.scheduler, config, "trailing", steps)
        levels = scheduler.timesteps.tolist()
        x, states = parted(noise * scheduler.init_noise_sigma), []
        for k, (t, now, then) in enumerate(
            zip(levels, scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True)
        ):
            if loop.fresh:
                halves = 1 if loop.guidance == 1 else 2
                drawn = golden.normal(f"ref.{k}", (halves, *reference.shape[1:]))
                teacher.reference_noise = drawn.expand_as(reference)
            v = denoiser(x / (now**2 + 1).sqrt(), torch.tensor([int(t)]), condition)
            x0 = x / (now**2 + 1) - v * now / (now**2 + 1).sqrt()
            up = (then**2 * (now**2 - then**2) / now**2).sqrt() if loop.fresh else torch.tensor(0.0)
            x = x + (x - x0) / now * ((then**2 - up**2).sqrt() - now)
            if loop.fresh:
                x = x + up * parted(golden.normal(f"anc.{k}", noise.shape))
            states.append(x)
    canvases = torch.cat([joined(x) for x in states])
    yield golden.compare(f"{name}.latents", canvases[-len(wanted) :], LOOP)
    yield from golden.compare_held(PART, {f"{name}.timesteps": lambda: torch.tensor(levels)})
    yield from golden.compare_held(LOOP, {f"{name}.canvas": lambda: teacher.codec.canvas(canvases[-1:])})
