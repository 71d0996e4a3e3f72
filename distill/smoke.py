"""What only CUDA does, in a minute: `python -m distill.smoke`, before hours are spent on one.

The rasteriser's kernels come first, since all else needs them, then a pass as one graph, then training: what
worker processes give a GPU, steps in half precision, a checkpoint and the way on from it. Without CUDA the
same runs on the CPU, as far as it goes there, and ends with an error.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch

from dd3g.cameras import Cameras
from dd3g.command.run import command_line
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.pepd.occupancy import OccupancyConfig, OccupancyNet
from dd3g.rasterizer import get_ready, rasterize
from dd3g.training import LoopConfig, fit, generator_for
from distill.objective import Objective, ObjectiveConfig, Verifier
from distill.samples.render_samples import Sample
from distill.shape.objective import ShapeObjective, ShapeObjectiveConfig, shape_scores
from distill.shape.samples import ShapeSample
from distill.teachers.compact import CompactConfig, CompactTeacher

SIZE, VIEWS = 32, 4
TINY: dict[str, Any] = {
    "size": SIZE, "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8, "fine": 8, "mid": 16,
}  # fmt: skip
STEPS = 4  # of a training, in two sessions


def smoke_command() -> None:
    """Compare CUDA with the CPU: rasteriser, a captured pass; then train a little in half precision."""
    there = torch.cuda.is_available()
    place = torch.device("cuda" if there else "cpu")
    shown = torch.cuda.get_device_name(place) if there else "no CUDA here, so the CPU"
    say(f"torch {torch.__version__}, {shown}; kernels come first, which a new machine builds for minutes")
    get_ready(place)
    say("the rasteriser's kernels are there")
    picture = torch.rand(4, 64, 64, generator=generator_for(0, 0))
    slow = Generator.from_pretrained("nano").generate(picture, raw=True)
    check("rasteriser", drawn(slow, place), drawn(slow, torch.device("cpu")), 1e-3)
    generator = Generator.from_pretrained("nano", device=place)
    check("a pass", generator.generate(picture, raw=True).to("cpu").means, slow.means, 1e-2)
    generator.compiled()
    check("a pass as one graph", generator.generate(picture, raw=True).to("cpu").means, slow.means, 1e-2)
    if there:
        generator.compiled(torch.bfloat16)
        check("in bfloat16", generator.generate(picture, raw=True).to("cpu").means, slow.means, 2e-2)
    check_shape_network(place)
    for precision in ("no", "bf16", "fp16") if there else ("no", "bf16"):
        check_training(precision, there)
    if not there:
        raise UserError(
            "smoke test: there is no CUDA here; everything that runs on a CPU passed, which says "
            "nothing about a GPU"
        )
    say("passed")


def check_shape_network(place: torch.device) -> None:
    """Steps of a shape network in bfloat16, by Muon, and its scores."""
    shape = OccupancyConfig(revolved=True)
    samples = [made_up_shape(shape, index) for index in range(STEPS)]
    with tempfile.TemporaryDirectory(prefix="dd3g-smoke-") as folder:
        config = LoopConfig(
            output_dir=folder, max_train_steps=STEPS // 2, train_batch_size=2, mixed_precision="bf16",
            report_to="none", optimizer="muon", use_cpu=place.type == "cpu",
        )  # fmt: skip
        network = fit(OccupancyNet(shape), ShapeObjective(ShapeObjectiveConfig()), samples, config)
    with torch.no_grad():
        scores = shape_scores(network.to(place), [ShapeSample.collate([samples[0]]).to(place)])
    if not all(math.isfinite(score) for score in scores.values()):
        raise UserError(f"smoke test: a shape network has scores that are not finite: {scores}")
    say("a shape network was trained and scored")


def made_up_shape(shape: OccupancyConfig, index: int) -> ShapeSample:
    """A sample of a shape network that shows nothing."""
    g, size, pixels = generator_for(0, index), shape.size, 256
    camera = Cameras.default_rig(size, VIEWS)[1]
    origins, directions = camera.rays()
    return ShapeSample(
        image=torch.rand(4, size, size, generator=g),
        elevation=camera.elevations,
        occupancy=torch.rand(shape.bins, size, size, generator=g).half(),
        origins=origins[0].expand(pixels, -1),
        directions=directions.flatten(0, 1)[:pixels],
        rgba=torch.rand(pixels, 4, generator=g),
        depth=1 + torch.rand(pixels, generator=g),
        jitter=torch.rand(pixels, generator=g),
    )


def check_training(precision: str, there: bool) -> None:
    """The whole objective on made-up samples, in bfloat16 a worker's, cut in the middle and resumed."""
    shape = GeneratorConfig(latent_shape=(VIEWS, 64, SIZE // 4, SIZE // 4), head_hidden=8, **TINY)
    teacher = CompactTeacher(CompactConfig(**TINY))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    weights = ObjectiveConfig(bootstrap=0.25, cover=1.0, implicit=0.1, ramp="constant")
    objective = Objective(weights, STEPS, Verifier(teacher, "x0", 0, 1.5, dtype))
    with tempfile.TemporaryDirectory(prefix="dd3g-smoke-") as folder:
        config = LoopConfig(
            output_dir=folder, max_train_steps=STEPS // 2, train_batch_size=2, mixed_precision=precision,
            report_to="none", dataloader_num_workers=int(precision == "bf16"), use_cpu=not there,
            gradient_checkpointing=True,
        )  # fmt: skip
        samples = [made_up_sample(shape, index) for index in range(2 * STEPS)]
        fit(Generator(shape), objective, samples, config)
        more = replace(config, max_train_steps=STEPS, resume_from_checkpoint="latest")
        fit(Generator(shape), objective, samples, more)
    say(f"trained and resumed, precision {precision}")


def made_up_sample(shape: GeneratorConfig, index: int) -> Sample:
    """A sample that shows nothing."""
    g, rig = generator_for(0, index), Cameras.default_rig(SIZE, VIEWS)
    return Sample(
        image=torch.rand(4, SIZE, SIZE, generator=g),
        rig=rig,
        views=torch.rand(VIEWS, 4, SIZE, SIZE, generator=g),
        views_known=torch.ones(VIEWS),
        depth=1 + torch.rand(VIEWS, SIZE, SIZE, generator=g),
        has_depth=torch.tensor(1.0),
        noise=torch.randn(shape.latent_shape, generator=g),
        target_cameras=rig,
        targets=torch.rand(VIEWS, 4, SIZE, SIZE, generator=g),
        targets_known=torch.ones(VIEWS),
        background=torch.ones(VIEWS, 3),
        uniform=torch.rand(4, generator=g),
        index=torch.tensor(index),
    )


def drawn(gaussians: Gaussians, device: torch.device) -> torch.Tensor:
    """Two views, on the CPU."""
    cameras = Cameras.orbit([0.0, 120.0], 10.0, 64)
    return rasterize(gaussians.to(device), cameras.to(device), antialiased=True).rgb.detach().cpu()


def check(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare with the CPU, in the mean: TensorFloat-32 rounds otherwise, and so do single pixels' edges."""
    error = (found - expected).abs()
    mean = float(error.mean())
    say(f"{name}: mean difference {mean:.1e}, largest {float(error.max()):.1e}")
    if not mean < tolerance:
        raise UserError(
            f"smoke test: {name} differs by {mean:.2g} in the mean from the CPU's, {tolerance:g} is allowed"
        )


def say(text: str) -> None:
    """A line on stderr."""
    print(f"smoke test: {text}", file=sys.stderr, flush=True)


main = command_line(smoke_command, "python -m distill.smoke", needs_words=False)

if __name__ == "__main__":
    sys.exit(main())
