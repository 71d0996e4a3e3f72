"""ImageDream and MVDream from a picture or a caption to views, through a folder in the published layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.diffusion import sample
from distill.teachers.latents import END, START, clip_pixels, levels
from distill.teachers.mvdream import MVDreamTeacher
from distill.teachers.published import Source
from tools.goldens import made_up
from tools.goldens.golden import CALL, LOOP, PART, Compared, Golden
from tools.goldens.unet import known_options

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
PROMPT, NEGATIVE = "a toy robot, 3d asset", "ugly, blurry"
PROMPT_IDS = [START, 320, 5988, 8797, 267, 274, 323, 13039, END]
NEGATIVE_IDS = [START, 8159, 267, 21977, END]

# Name of a loop -> guidance, elevation, caption, negative, and whether there is a picture.
LOOPS = {
    "a": (5.0, 0.0, "", "", True),
    "b": (5.0, 5.0, "", "", True),
    "c": (7.5, 0.0, PROMPT, NEGATIVE, True),
    "t": (7.5, 15.0, PROMPT, NEGATIVE, False),
}


def write_folder(folder: Path, configs: dict[str, Any], shapes: dict[str, Any], seed: int) -> Path:
    """Made-up weights in the published layout: a config.json and a safetensors file a part."""
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    for part, config in configs.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        name = "model" if part.endswith("encoder") else "diffusion_pytorch_model"
        state = {key: made_up.weight(key, shape, seed) for key, shape in sorted(shapes[part].items())}
        save_file(state, folder / part / f"{name}.safetensors", metadata={"format": "pt"})
    return folder


def write_scheduler(folder: Path, config: dict[str, Any]) -> None:
    """The scheduler's folder of a pipeline."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def check(golden: Golden) -> Iterator[Compared]:
    """Compare all arrays of the file."""
    configs, shapes = golden.about["configs"], golden.about["shapes"]
    with tempfile.TemporaryDirectory() as temporary:
        for kind, unet in (("picture", "unet"), ("text", "unet_text")):
            if unet not in shapes:  # a file of the other one alone
                continue
            parts = {k: configs[k] for k in shapes if not k.startswith("unet")} | {
                "unet": known_options(configs[unet])
            }
            weights = shapes | {"unet": shapes[unet]}
            folder = write_folder(Path(temporary, kind), parts, weights, golden.seed)
            write_scheduler(folder, golden.about.get("scheduler", SCHEDULER))
            source = Source(folder, "made up", None, "none")
            teacher = MVDreamTeacher(source, golden.dtype)
            teacher.text.tokenizer = _tokenizer(golden)
            if "image_latent" in golden:
                teacher.codec.size = golden["image_latent"].shape[-1] * teacher.codec.factor
            if kind == "picture":
                yield from _inputs(golden, teacher)
            for loop, settings in LOOPS.items():
                if settings[-1] == teacher.sees_picture and f"{loop}.latents" in golden:
                    yield from _loop(golden, teacher, loop, *settings[:-1])


def _tokenizer(golden: Golden) -> Any:
    """Knows the two captions of the loops; a file may hold ids of its own: caption, none, negative."""
    rows = [[int(i) for i in row] for row in golden["ids"]] if "ids" in golden else []
    known = (rows[:1] or [PROMPT_IDS]) + (rows[2:] or [NEGATIVE_IDS])
    return {
        text: ids[: ids.index(END) + 1] for text, ids in zip((PROMPT, NEGATIVE), known, strict=False)
    }.__getitem__


def _picture(golden: Golden) -> Tensor:
    picture = golden.picture("picture", *golden.picture_sides)
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
    return torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1)


def _inputs(golden: Golden, teacher: MVDreamTeacher) -> Iterator[Compared]:
    """What the network is given of picture and caption."""
    rgba = _picture(golden)
    given = levels(rgba[:, :3], truncate=True)
    exact = {
        "picture": lambda: rgba[0, :3].permute(1, 2, 0),
        "clip_pixels": lambda: clip_pixels(given, teacher.image.config.image_size),
        "ids": lambda: teacher.text.ids([PROMPT, "", NEGATIVE])[: len(golden["ids"])],
    }
    networks = {
        "image_tokens": lambda: teacher.image_tokens(rgba)[0],
        "image_latent": lambda: teacher.codec.encode(rgba),
        "text": lambda: teacher.text([NEGATIVE, PROMPT]),
    }
    yield from golden.compare_held(PART, exact)
    yield from golden.compare_held(CALL, networks)


def _loop(
    golden: Golden,
    teacher: MVDreamTeacher,
    loop: str,
    guidance: float,
    elevation: float,
    caption: str,
    negative: str,
) -> Iterator[Compared]:
    """Noise to views; the last steps of the latents, or all of them."""
    wanted = golden[f"{loop}.latents"]
    kept, views, *size = wanted.shape
    steps = len(golden[f"{loop}.timesteps"]) if f"{loop}.timesteps" in golden else kept if kept > 1 else 4
    teacher.negative = negative
    frames = views + teacher.sees_picture  # the authors draw noise for the clean frame, too
    noise = golden.normal(f"noise.{loop}", (frames, *size))[None, :views]
    cameras = Cameras.orbit([-90 + 360 * v / views for v in range(views)], elevation)
    condition = teacher.condition(_picture(golden), cameras, [caption])
    plan = teacher.schedule.plan(steps)
    found = sample(
        teacher.denoiser(condition, guidance),
        teacher.schedule,
        noise,
        plan,
        condition,
        record=lambda s: s.x_t,
    )
    states = torch.cat([*found.trace[1:], found.x])[-kept:]
    yield golden.compare(f"{loop}.latents", states, LOOP)
    times = torch.tensor([t for t, _ in plan])
    yield from golden.compare_held(PART, {f"{loop}.timesteps": lambda: times})
    images = {f"{loop}.images": lambda: teacher.codec.decode(found.x)[0].permute(0, 2, 3, 1)}
    yield from golden.compare_held(LOOP, images)
