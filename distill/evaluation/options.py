"""What `dd3g evaluate` is asked for; loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dd3g.command.setting import setting
from dd3g.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated by a protocol, and how; see `distill.evaluation.compare.evaluate`."""

    protocol: str = setting(
        "house", "house, grm, spar3d, syncdreamer, splatter, or a file; see docs/evaluation.md."
    )
    changes: list[str] = setting(
        [], "KEY=VALUE to change in the protocol; its hash changes too.", option="--set"
    )
    layout: str = setting(
        "auto", "Layout of the data set: auto, or gso, gso-zip, omniobject3d, ycb, nerf and so on."
    )
    generator: list[str] = setting([], "LABEL=NAME_OR_FOLDER, or just the name; may be repeated.")
    predictions: list[str] = setting(
        [], "NAME=FOLDER of another tool's results, with options: ,axes=opengl,elevation=0"
    )
    row: list[str] = setting([], "Another row, KIND=VALUE; see distill/evaluation/rows.py.")
    baselines: bool = setting(True, "Add the rows that need no network.")
    teacher: str | None = setting(None, "Teacher whose own views make a row.")
    teacher_steps: int | None = setting(None, "DDIM steps; default: the teacher's.", 1)
    guidance_scale: float | None = setting(None, "Guidance scale of the teacher; default: its own.")
    quadruples: Path | None = setting(
        None, "Held-out quadruples: generators against the teacher on the same noise."
    )
    size: int = setting(0, "Pixels per side of what is scored; 0: the protocol's.", 0)
    limit: int = setting(0, "Only the first objects (and quadruples); 0: all.", 0)
    seed: int = setting(0, "Seed of the noise and the bootstrap.", 0)
    seeds: int = setting(1, "Noises for each object; two or more show diversity and best-of-K.", 1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.")
    processes: int = setting(0, "Objects at a time; 0: one per core, one on a GPU.", 0)
    sheet_objects: int = setting(10, "Objects on contact sheets, ten each; 0: no sheet.", 0)
    page: bool = setting(True, "Write index.html.")

    @property
    def generators(self) -> dict[str, str]:
        """["A=path", "nano"] -> {"A": "path", "nano": "nano"}.

        Raises:
            UserError: when two share a label.
        """
        result: dict[str, str] = {}
        for value in self.generator:
            label, path = labelled(value)
            if label in result:
                raise UserError(f"two generators are called {label!r}: give each its own LABEL=PATH")
            result[label] = path
        return result


def labelled(value: str) -> tuple[str, str]:
    """Label and path: "A=path" -> A and path, "nano" -> nano twice."""
    label, _, path = value.partition("=")
    return label, path or value
