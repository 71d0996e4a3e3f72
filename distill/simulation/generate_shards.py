"""Shards of quadruples: what goes into which, made by processes that may be killed at any time."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dd3g.cameras import Cameras
from dd3g.command.progress import Progress
from dd3g.errors import UserError
from dd3g.io.atomic import write_text
from dd3g.io.shards import write_shard
from distill.config import BELIEVED, Simulation
from distill.quadruples import Quadruple, encode, noise_of
from distill.simulation.inputs import NO_MATTE, MatteError, Pictures, Renders, seed_of
from distill.simulation.mattes import matte_views
from distill.simulation.ode import simulate
from distill.teachers import Teacher

SETTINGS = "simulate.json"
DECISIVE = ("steps", "guidance_scale", "seed", "per_shard", "batch_size", "captions")  # options in it
MADE_BY = "made_by"  # in it: what is known of the teacher
FAILED = ".failed.json"  # beside a shard: index of a picture that could not be used -> why


@dataclass(frozen=True)
class ShardSet:
    """What goes into which shard; every shard is a pure function of this and its number.

    Shards come in passes over the pictures, one pass a seed, so that a run that is cut short has seen many
    pictures and more seeds can be added later.
    """

    teacher: Teacher
    inputs: Pictures | Renders
    output: Path
    device: torch.device  # where the teacher computes
    options: Simulation  # with the steps and the guidance scale that are meant

    @property
    def order(self) -> list[int]:
        """Indices of the inputs in the order of a pass; shuffled: the first shards are a fair sample."""
        generator = torch.Generator().manual_seed(self.options.seed)
        return torch.randperm(len(self.inputs), generator=generator).tolist()[: self.options.limit]

    @property
    def shards(self) -> list[tuple[Path, int, list[int]]]:
        """Each shard's file, its pass and its inputs."""
        o, order = self.options, self.order
        parts = [order[i : i + o.per_shard] for i in range(0, len(order), o.per_shard)]
        return [(self.output / _name(k, s), k, part) for k in range(o.seeds) for s, part in enumerate(parts)]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be the same for all shards of a folder."""
        return {
            "teacher": self.teacher.fingerprint,
            "inputs": self.inputs.fingerprint,
            "matte": self.inputs.matte,
            "pictures": len(self.order),
            # Matrices of another size than `batch_size` round otherwise.
            **{name: getattr(self.options, name) for name in DECISIVE},
            "view_matte": NO_MATTE if self.teacher.draws_alpha else self.options.view_matte,
            "elevation": self.teacher.elevation if self.teacher.follows_elevation else None,
        }

    def cameras(self, pictures: list[dict[str, Any]]) -> Cameras | None:
        """The rigs of some pictures, where it depends on them; None for the teacher's own."""
        if not self.teacher.follows_elevation or not any("elevation" in about for about in pictures):
            return None
        elevations = [about.get("elevation", self.teacher.elevation) for about in pictures]
        return Cameras.stack([self.teacher.rig_at(elevation) for elevation in elevations])

    def samples(self, number: int, indices: list[int], failed: dict[str, str]) -> list[dict[str, Any]]:
        """Quadruples of pass `number` as samples; inputs that cannot be used go to `failed`."""
        o, pictures = self.options, []
        for i in indices:
            try:
                found = self.inputs.picture(i, seed_of(o.seed, number), self.teacher.picture_size)
                if not o.captions:
                    found[1].pop("caption", None)
                pictures.append((i, *found))
            except MatteError:
                raise
            except UserError as error:
                failed[str(i)] = str(error)
        samples = []
        for start in range(0, len(pictures), o.batch_size):
            batch = pictures[start : start + o.batch_size]
            seeds = [seed_of(o.seed, i, number) for i, _, _ in batch]
            noise = torch.stack([noise_of(self.teacher.latent_shape, s) for s in seeds])
            rgba = torch.stack([picture for _, picture, _ in batch])
            made = simulate(
                self.teacher,
                rgba.to(self.device),
                noise.to(self.device),
                o.steps,
                o.guidance_scale,
                self.cameras([about for _, _, about in batch]),
                [about.get("caption", "") for _, _, about in batch],
            )
            for b, (i, picture, about) in enumerate(batch):
                meta = about | {
                    "sample": number,
                    "seed": seeds[b],
                    "teacher": self.settings["teacher"],
                    "steps": o.steps,
                    "guidance_scale": o.guidance_scale,
                }
                cameras = made.cameras[b] if len(made.cameras.batch_shape) == 2 else made.cameras
                latents = None if made.latents is None else made.latents[b]
                one = Quadruple(noise[b], cameras, made.input[b], made.outputs[b], meta, latents)
                if not one.outputs.isfinite().all():
                    failed[str(i)] = (
                        f"{about.get('source')}: the teacher's views hold numbers that are not finite: give "
                        "--precision bfloat16 or float32, or fetch its weights again"
                    )
                    continue
                try:
                    samples.append(encode(self.matted(one), f"{i:07d}_{number:02d}"))
                except NoObjectError as error:
                    failed[str(i)] = str(error)
        return samples

    def matted(self, one: Quadruple) -> Quadruple:
        """Views without alpha with their mattes; of a caption's, the first one cut out becomes the input.

        Raises:
            NoObjectError: when that one's matte is not to be believed.
        """
        if self.settings["view_matte"] == NO_MATTE:
            return one
        mattes = matte_views(one.outputs, self.options.view_matte)
        one = replace(one, mattes=mattes)
        if self.teacher.sees_picture:
            return one
        if mattes.confidence[0] < BELIEVED:
            raise NoObjectError(
                f"{one.meta.get('source')}: the object in its first view stands out too little to be an "
                f"input (confidence {mattes.confidence[0]:.2f})"
            )
        return replace(one, input=mattes.straight(one.outputs.cpu())[0])


class NoObjectError(UserError):
    """A view that has to be an input shows no object that can be cut out."""


def generate_shards(wanted: ShardSet, state: Any, show: bool = True) -> dict[str, Any]:
    """Make the shards that are not there yet; this process makes every P-th of them.

    No other command may work in the folder meanwhile, see `held_by_main`; `state` is a `PartialState`.

    Returns:
        {"output", "shards", "present", "written", "quadruples", "mattes", "unsure_mattes", "failed",
        "complete"}, over all processes. Mattes are those of the views of this run; views of unsure ones count
        for colour alone. `failed` says what was wrong with each picture that could not be used, in this run
        or an earlier one.
    """
    minutes = wanted.options.max_minutes
    deadline = time.monotonic() + 60 * minutes if minutes else math.inf
    with state.main_process_first():
        check_settings(
            wanted.output, wanted.settings, wanted.options.seeds, state.is_main_process, wanted.teacher.about
        )
    shards = wanted.shards
    present = sum(path.exists() for path, _, _ in shards)
    state.wait_for_everyone()  # all have counted before the first new shard appears
    written = quadruples = 0
    confidence: list[float] = []  # of each view's matte
    failed: dict[str, str] = {}
    mine = shards[state.process_index :: state.num_processes]
    with Progress(show and state.is_main_process, len(mine), "shards") as progress:
        for path, number, indices in mine:
            if not path.exists():
                if time.monotonic() > deadline:
                    continue
                lost: dict[str, str] = {}
                samples = wanted.samples(number, indices, lost)
                if lost:  # written first: a shard that is there is never made again
                    write_text(path.with_suffix(FAILED), json.dumps(lost, indent=2) + "\n")
                write_shard(path, samples)
                for sample in samples:
                    confidence += json.loads(sample["json"]).get("mattes", {}).get("confidence", [])
                written, quadruples = written + 1, quadruples + len(samples)
            failed |= _read_json(path.with_suffix(FAILED))
            progress.advance(note=path.name)
    reports = [(written, quadruples, failed, confidence)]
    if state.num_processes > 1:
        from accelerate.utils import gather_object

        reports = gather_object(reports)
    written, quadruples = sum(r[0] for r in reports), sum(r[1] for r in reports)
    confidence = [c for r in reports for c in r[3]]
    return {
        "output": str(wanted.output),
        "shards": len(shards),
        "present": present,
        "written": written,
        "quadruples": quadruples,
        "mattes": len(confidence),
        "unsure_mattes": sum(c < BELIEVED for c in confidence),
        "failed": sorted({message for r in reports for message in r[2].values()}),
        "complete": present + written == len(shards),
    }


def check_settings(
    output: Path, settings: dict[str, Any], seeds: int, write: bool, about: dict[str, Any] | None = None
) -> None:
    """Refuse to mix two settings in one folder, which keeps those of the run that made the first shard.

    Beside them it keeps the most passes that were ever asked for, `seeds`, and what is known `about` the
    teacher; only one process may `write`.

    Raises:
        UserError: naming what differs.
    """
    old = _read_json(output / SETTINGS)
    if not old and any(output.glob("*.tar")):
        raise UserError(f"{output} holds shards but no {SETTINGS}: give an empty folder as --output")
    if not any(output.glob("quadruples-*")):  # a first try that made nothing binds to nothing
        old = {}
    # Sets that were begun before a setting existed take it up.
    wrong = [k for k in settings if k in old and old[k] != settings[k]]
    if wrong:
        changes = ", ".join(f"{k} {old.get(k)} (now {settings[k]})" for k in wrong)
        raise UserError(
            f"{output} was made with other settings: {changes}; repeat those, or give another --output"
        )
    new = settings | {"seeds": max(seeds, old.get("seeds", 0))}
    if about:
        new[MADE_BY] = about
    if write and new != old:
        write_text(output / SETTINGS, json.dumps(new, indent=2) + "\n")


def teacher_of(path: Path) -> dict[str, Any]:
    """What is known of the teacher that made a set, its folder or one of its shards; {} where nothing is."""
    if not path.exists():
        return {}
    folder = path if path.is_dir() else path.parent
    return _read_json(folder / SETTINGS).get(MADE_BY, {})


def missing_shards(output: Path) -> list[str]:
    """Names of the shards that a folder should hold, by its settings, and does not."""
    settings = _read_json(output / SETTINGS)
    try:
        parts = math.ceil(settings.get("pictures", 0) / settings.get("per_shard", 1))
        names = [_name(k, s) for k in range(settings.get("seeds", 0)) for s in range(parts)]
    except (TypeError, ArithmeticError) as error:
        raise UserError(f"{output / SETTINGS} was not written by distill.simulate ({error})") from error
    return [name for name in names if not (output / name).exists()]


def _name(number: int, part: int) -> str:
    return f"quadruples-{number:02d}-{part:05d}.tar"


def _read_json(path: Path) -> dict[str, Any]:
    """An object of a file; empty where there is none."""
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): restore it, or give another --output") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object: restore it, or give another --output")
    return found
