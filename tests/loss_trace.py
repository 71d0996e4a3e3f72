"""The loss of every trainer over its first steps, for the proof that a change to the loop moved nothing.

python tests/loss_trace.py runs/before.json      # in a copy of the code before the change, then after it
python tests/loss_trace.py runs/after.json --against runs/before.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from stand_ins.small_motion import small_archive
from stand_ins.tiny_objects import write_quadruples, write_renders

STEPS = 20
SHAPE = {"size": 32, "width": 32, "depth": 1, "heads": 2, "residual_hidden": 8, "fine": 8, "mid": 16}
GENERATOR = SHAPE | {"latent_shape": "[4,64,8,8]", "head_hidden": 8}
LOOP = {"lr_warmup_steps": 5, "lr_decay_steps": 5, "report_to": "none", "mixed_precision": "no"}
LOOP |= {"train_batch_size": 2, "max_train_steps": STEPS}


def _words(output: Path, section: str, shape: dict, options: dict) -> list[str]:
    settings = LOOP | {f"{section}.{k}": v for k, v in shape.items()} | options
    return [f"{k}={v}" for k, v in settings.items()] + [f"output_dir={output}"]


def trainers(folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> what runs that trainer for `STEPS` steps on small data made in `folder`."""
    from data_gen import train_tiny
    from dd3g.command.configuration import launch
    from distill.train import DistillConfig
    from distill.train import run as distil
    from distill.train_teacher import TeacherConfig
    from distill.train_teacher import run as teach

    renders, quadruples = write_renders(folder / "renders"), write_quadruples(folder / "quadruples")
    motion = small_archive(folder / "motion.npz")
    both = {
        "renders": f"[{renders}]", "quadruples": f"[{quadruples}]", "quadruples_start": 0.25,
        "objective.bootstrap": 0.2, "objective.implicit": 0.05, "pretrained_teacher_model": "analytic",
    }  # fmt: skip

    def generator(name: str, **options: object) -> Callable[[], object]:
        words = _words(folder / name, "generator", GENERATOR, both | options)
        return lambda: launch(distil, DistillConfig, words)

    def pose(network: str, *options: object) -> Callable[[], object]:
        from dd3g.pose.train import main

        words = [network, "--motion", motion, "-o", folder / network, "--steps", STEPS, *options]
        return lambda: main([str(w) for w in words])

    teacher = _words(folder / "teacher", "teacher", SHAPE, {"renders": f"[{renders}]"})
    tiny = {"size": 32, "width": 64, "depth": 1, "heads": 2, "hidden": 16, "mid": 16, "buckets": 64}
    small = {"renders": f"[{renders}]", "max_train_steps": STEPS, "train_batch_size": 4}
    picture = [f"{k}={v}" for k, v in (small | {f"model.{k}": v for k, v in tiny.items()}).items()]
    return {
        "generator": generator("generator"),
        "generator, Muon, accumulated": generator("muon", optimizer="muon", gradient_accumulation_steps=2),
        "generator, bf16, cosine": generator("bf16", mixed_precision="bf16", lr_scheduler="cosine"),
        "teacher": lambda: launch(teach, TeacherConfig, teacher),
        "pose prior": pose("prior"),
        "pose lifter": pose("lifter"),
        "pose difficulty": pose("difficulty"),
        "pose difficulty, graph": pose("difficulty", "-o", folder / "graph", "--graph"),
        "pose recovery": pose("recovery"),
        "picture model": lambda: train_tiny.main([*picture, f"output_dir={folder / 'tiny'}"]),
    }


class _Enough(BaseException):
    """The last backward pass is done; what a trainer does after its loop is not looked at."""


def trace(train: Callable[[], object], passes: int = STEPS) -> list[float]:
    """Every value that `train` sends back through a network, until `passes` of them."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    found: list[float] = []
    backward = torch.Tensor.backward

    def spy(self: torch.Tensor, *args: object, **kwargs: object) -> None:
        found.append(self.item())
        backward(self, *args, **kwargs)  # type: ignore[arg-type]
        if len(found) == passes:
            raise _Enough

    torch.Tensor.backward = spy  # type: ignore[method-assign, assignment]
    try:
        train()
    except _Enough:
        pass
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    if len(found) < passes:
        raise SystemExit(f"only {len(found)} steps")
    return found


def main(path: Path, before: Path | None = None) -> None:
    """Write every trainer's losses, or compare them with those of another file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: trace(train) for name, train in trainers(Path(folder)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    old = json.loads(before.read_text()) if before else {}
    for name, losses in found.items():
        line = f"{name:30} first {losses[0]:.6f}  last {losses[-1]:.6f}"
        if name in old:
            worst = max(abs(a - b) / abs(b) for a, b in zip(losses, old[name], strict=True))
            line += f"  largest relative difference {worst:.1e}"
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
