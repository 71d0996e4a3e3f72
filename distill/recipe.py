"""One command a size: `dd3g recipe nano --minutes 60 --data MESHES -o runs/recipe`.

Meshes, made-up ones without any, or a teacher's quadruples become training data, these a shape network or
several, and with a generator a folder of weights with a card, a table and a sheet. Each stage is a command
that can be typed alone, stops in time, and goes on where it was when the recipe is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.run import STAGE, Json, command_line
from dd3g.command.setting import flattened, setting
from dd3g.errors import UserError
from dd3g.io.atomic import write_text
from dd3g.io.shards import Shards
from dd3g.training.config import changes

SIZES = {"nano": 64, "small": 128, "base": 128}  # pixels of the pictures, as in configs/shape
RENDERING = 0.35  # of the minutes, at most
MAKING = 0.1  # likewise
AROUND = 20.0  # seconds that a training takes to start, to write its last checkpoint, and to be put together
VIEWS = "--variants 1 --scan-variants 3 --quads 1 --square-quads 2 --free-quads 1 --novel 8".split()
SHARD = 15_000_000  # bytes of a file of weights at most
ABOUT = """
# {name}

`dd3g infer picture.png --weights {name}`: the generator `{generator}`, with {networks} made by

    {command}

| | |
|---|---|
| data | {data} |
| minutes | {minutes:.1f} of training, {steps} steps, on {device} |
| best on held-out objects | {scores} |

{table}
"""


@dataclass(frozen=True)
class RecipeOptions:
    """What weights are made from, and where."""

    data: list[Path] = setting([], "Folder of meshes; may be repeated. Without any: made-up ones.")
    quadruples: list[Path] = setting([], "Folder of a teacher's quadruples; may be repeated.")
    test: Path | None = setting(None, "Folder of meshes to evaluate on, never trained on.")
    generator: str = setting("nano", "Generator that gets the shape networks.")
    networks: int = setting(1, "Shape networks, trained in turn, whose answers are averaged.", 1)
    output: Path = setting(Path("runs/recipe"), "Folder for all results.", option="-o --output")
    resume: bool = setting(False, "Continue an earlier run in this folder.")
    train: list[str] = setting([], "KEY=VALUE for train-shape.")


@flattened
def recipe_command(
    size: Annotated[str, typer.Argument(help=f"{', '.join(SIZES)}: see configs/shape.", metavar="SIZE")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Wall-clock minutes for everything.")],
    options: RecipeOptions,
    as_json: Json = False,
) -> None:
    """Data, training, evaluation and weights of one size, within the given minutes."""
    if size not in SIZES:
        raise UserError(f"there is no recipe {size!r}: give {', '.join(SIZES)}")
    o, seconds, recipe = options, 60 * minutes, Recipe(size, minutes, options)
    stored: dict[str, Any] = {"size": size, "data": o.data or None, "quadruples": o.quadruples or None}
    stored |= {"generator": o.generator, "networks": o.networks}
    _check_begun(o.output / "recipe.json", json.loads(json.dumps(stored, default=str)), o.resume)
    _check_inputs(size, o)
    with recipe.smoke():
        folders = o.data if o.data or o.quadruples else [recipe.objects(seconds * MAKING)]
        renders = recipe.renders(folders, seconds * RENDERING)
    recipe.train(renders, seconds * (0.12 if o.test else 0.02) + min(AROUND, seconds / 10))
    weights = recipe.assemble()
    # The weights are whole, whatever becomes of the evaluation.
    recipe.describe(weights, folders, "Not evaluated.")
    table = recipe.evaluate(weights, o.test) if o.test else None
    if table:
        recipe.describe(weights, folders, table)
    print(json.dumps({"weights": str(weights), "evaluation": table}) if as_json else f"wrote {weights}")


def trained(shape: Path) -> tuple[int, float]:
    """Steps and minutes up to the last checkpoint of a run, a damaged one aside; 0 without one."""
    from dd3g.training.checkpoints import STATE, checkpoints

    for path in reversed(checkpoints(shape)):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            about = json.loads((path / STATE).read_text())
            return int(about["step"]), float(about["rate"]["minutes"])
    return 0, 0.0


def _check_begun(path: Path, stored: dict[str, Any], resume: bool) -> None:
    """Store what a folder was started with, or compare with it.

    Raises:
        UserError: another recipe, a damaged file, or a folder that was begun and --resume not given.
    """
    if not path.exists() or not any(other != path for other in path.parent.iterdir()):
        write_text(path, json.dumps(stored, indent=1) + "\n")  # also after a first try that could not begin
        return
    try:
        before = {"networks": 1} | json.loads(path.read_text())  # as in folders that were begun without it
        changed, _ = changes(before, stored)
    except (ValueError, TypeError) as error:  # no JSON, or no keys with values
        raise UserError(f"{path} is damaged: delete it, or give another --output") from error
    if changed:
        raise UserError(
            f"{path.parent} was started with other options ({', '.join(changed)}): use those, or "
            "another --output"
        )
    if not resume:
        raise UserError(f"{path.parent} was started before: continue with --resume, or give another --output")


def _check_inputs(size: str, options: RecipeOptions) -> None:
    """Find out now what stages would refuse after hours.

    Raises:
        UserError: no such folder, key or generator, quadruples of fewer pixels, or objects to test on among
            those to train on.
    """
    from dd3g.command.configuration import KEYS, parse
    from dd3g.meshes.layouts import find_objects
    from dd3g.nn.checkpoint import find_weights, read_config
    from distill.quadruples import Quadruples
    from distill.train_shape import ShapeConfig

    try:
        training = parse(["--config", size, *options.train], ShapeConfig, f"dd3g train-shape {KEYS}")
    except UserError as error:
        raise UserError(f"--train: {error}") from error
    if training.lr_scheduler != "timed_cosine":
        raise UserError(
            f"--train lr_scheduler={training.lr_scheduler}: a recipe ends with its minutes, over all its "
            "sessions, as only timed_cosine does; leave it out"
        )
    tests = [] if options.test is None else [("--test", options.test)]
    for option, folder in [*(("--data", folder) for folder in options.data), *tests]:
        if not folder.is_dir():
            raise UserError(f"{option} {folder}: there is no such folder")
        if option == "--data" or not any(folder.glob("*.tar")):  # of renders, which can be tested on too
            find_objects(folder)  # raises
    for folder in options.quadruples:
        if not folder.exists():
            raise UserError(f"--quadruples {folder}: there is no such folder")
        pixels = Quadruples(folder, tolerant=True).about(0).get("width", 0)
        if pixels < SIZES[size]:
            raise UserError(f"--quadruples {folder} has views of {pixels} pixels: {size} takes {SIZES[size]}")
    for folder in options.data:
        own, tested = folder.resolve(), options.test and options.test.resolve()
        if tested and (own.is_relative_to(tested) or tested.is_relative_to(own)):
            raise UserError(
                f"--test {options.test} and --data {folder} hold the same objects: give meshes of their own"
            )
    read_config(find_weights(options.generator), "generator")


@dataclass
class Recipe:
    """The stages of one run."""

    size: str  # name of it
    minutes: float  # for everything, from now on
    options: RecipeOptions  # of the command

    def __post_init__(self) -> None:
        self.output, self.end = self.options.output, time.monotonic() + 60 * self.minutes

    @property
    def command(self) -> str:
        """What makes the same weights, for their card."""
        words, o = ["dd3g", "recipe", self.size, "--minutes", f"{self.minutes:g}"], self.options
        own = [] if o.generator == RecipeOptions.generator else [o.generator]
        test = [] if o.test is None else [o.test]  # its time is not the training's
        options: dict[str, Sequence[object]] = {
            "--data": o.data,
            "--quadruples": o.quadruples,
            "--test": test,
            "--generator": own,
            "--networks": [o.networks] if o.networks > 1 else [],
            "--train": o.train,
        }
        for option, values in options.items():
            words += [word for value in values for word in (option, str(value))]
        return shlex.join(words)

    @property
    def shapes(self) -> list[Path]:
        """Folder of the training of each shape network."""
        return [self.output / f"shape{f'-{k}' if k else ''}" for k in range(self.options.networks)]

    @property
    def seconds_left(self) -> float:
        """Until the end, never negative."""
        return max(0.0, self.end - time.monotonic())

    @contextlib.contextmanager
    def smoke(self) -> Iterator[None]:
        """Every branch that only CUDA has, beside what needs no GPU: to build kernels takes minutes.

        What has trained already has tried it.

        Raises:
            UserError: at the end of the block, when it failed.
        """
        import torch

        if not torch.cuda.is_available() or trained(self.shapes[0])[0]:
            yield
            return
        with started("distill.smoke") as stage:
            yield
            check_ended("distill.smoke", stage.wait())

    def objects(self, seconds: float) -> Path:
        """Made-up household objects, as many as the time allows."""
        place = self.output / "objects"
        if not (self.output / "renders-0").exists():  # which hold for the objects they were begun with
            run_stage("data_gen.make_objects", "-o", str(place), seconds=seconds)
        return place

    def renders(self, folders: Sequence[Path], seconds: float) -> list[Path]:
        """Shards of the meshes in each folder; what is missing when the time is up is left out."""
        found, end = [], time.monotonic() + seconds
        for k, folder in enumerate(folders):
            place = self.output / f"renders-{k}"
            arguments = (str(folder), "-o", str(place), "--volumes", "--size", str(SIZES[self.size]), *VIEWS)
            left = (end - time.monotonic()) / (len(folders) - k)
            run_stage("data_gen.render", *arguments, "--per-shard", "10", seconds=left, some_may_fail=True)
            if not any(place.glob("*.tar")):
                raise UserError(f"{folder}: none of it was rendered in time: give more --minutes")
            if not len(Shards(place)):
                raise UserError(f"{folder}: none of its meshes could be drawn: see above")
            found.append(place)
        return found

    def train(self, renders: list[Path], spare: float) -> None:
        """The shape networks, each in its part of the time until `spare` seconds before the end."""
        import torch

        from dd3g.command.configuration import parse
        from distill.train_shape import ShapeConfig

        seed = parse(["--config", self.size, *self.options.train], ShapeConfig, "dd3g train-shape").seed
        words = ["report_to=none", "logging_steps=20", f"renders={json.dumps([str(r) for r in renders])}"]
        words += [f"quadruples={json.dumps([str(q) for q in self.options.quadruples])}"]
        if torch.cuda.is_available():  # which would wait for samples of one process, or decoded from PNGs
            words += [f"unpacked_dir={self.output / 'unpacked'}", "dataloader_num_workers=12"]
        before = [trained(shape)[1] for shape in self.shapes]  # minutes
        for k, shape in enumerate(self.shapes):
            left = max(self.seconds_left - spare, 1) / 60
            minutes = (sum(before[k:]) + left) / len(before[k:])
            if minutes <= before[k]:  # the others were killed earlier
                continue
            own = [f"output_dir={shape}", f"max_minutes={minutes:.3f}"]
            if before[k]:
                own.append("resume=latest")
            own += [*words, *self.options.train, f"seed={seed + k}"]
            run_stage("distill.train_shape", "--config", self.size, *own)

    def assemble(self) -> Path:
        """Generator and shape networks in one folder of float16 weights."""
        import torch

        from dd3g.pepd import Generator
        from dd3g.pepd.occupancy import OccupancyNet

        shapes = [OccupancyNet.from_pretrained(shape / "model") for shape in self.shapes]
        whole = Generator.from_pretrained(self.options.generator).with_shape(*shapes)
        return whole.save_pretrained(self.output / "weights", torch.float16, SHARD)

    def evaluate(self, weights: Path, test: Path) -> str:
        """Table of the weights beside the baselines, and a sheet, on objects that were not trained on.

        Where the time does not suffice, the command that goes on.
        """
        place = self.output / "evaluation"
        (place / "table.md").unlink(missing_ok=True)  # of weights before these
        before = "before=" + self.options.generator
        arguments = ("--generator", f"{self.size}={weights}", "--generator", before, "-o", str(place))
        # Networks take the smallest part of its time, and a GPU's objects would come one after another.
        words = ("distill.evaluation", str(test), *arguments, "--sheet-objects", "10", "--device", "cpu")
        run_stage(*words, seconds=self.seconds_left, some_may_fail=True)
        if not (place / "table.md").exists():
            late = f"Not evaluated in time: `{shlex.join(('python', '-m', *words))}` continues it."
            print(late, file=sys.stderr)
            return late
        return (place / "table.md").read_text()

    def describe(self, weights: Path, data: Sequence[Path], table: str) -> None:
        """The card of the weights: the command that made them, from what, and what they are worth."""
        from dd3g.nn.checkpoint import CARD
        from distill.model_card import made_by

        source = [f"meshes in {d}" for d in data]
        source += [f"quadruples in {q}{made_by(str(q))}" for q in self.options.quadruples]
        scores = [shape / "model" / "scores.json" for shape in self.shapes]
        best = [json.loads(path.read_text()) for path in scores if path.exists()]
        steps, minutes = zip(*map(trained, self.shapes), strict=True)
        text = CARD.format(repo=weights) + ABOUT.format(
            name=weights,
            generator=self.options.generator,
            networks="a shape network"
            if len(steps) == 1
            else f"{len(steps)} shape networks, whose answers are averaged,",
            command=self.command,
            data=", ".join(source),
            minutes=sum(minutes),
            steps=" and ".join(map(str, steps)),
            device=describe_machine(),
            scores="; ".join(", ".join(f"{k} {v:.4g}" for k, v in one.items()) for one in best)
            or "none were held out",
            table=table,
        )
        write_text(weights / "MODEL_CARD.md", text)


def run_stage(
    module: str, *arguments: str, seconds: float | None = None, some_may_fail: bool = False
) -> None:
    """Run a command of the project, whose output goes to stderr.

    After some seconds it is asked to stop, as each of them can. With `some_may_fail` it may end with 1, which
    says that some of its objects failed.

    Raises:
        UserError: when it ends with an error, which it has printed.
    """
    with started(module, *arguments) as stage:
        try:
            code = stage.wait(seconds)
        except subprocess.TimeoutExpired:
            stage.send_signal(signal.SIGTERM)
            stage.wait()
            print(f"the time for `{module}` is over: going on with what there is", file=sys.stderr)
            return
    if not (code == 1 and some_may_fail):
        check_ended(module, code)


@contextlib.contextmanager
def started(module: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A command that runs during the block, and is asked to stop when that fails."""
    print(f"{shlex.join(['python', '-m', module, *arguments])}", file=sys.stderr)
    words, environment = [sys.executable, "-m", module, *arguments], os.environ | {STAGE: "1"}
    with subprocess.Popen(words, stdout=sys.stderr, env=environment) as stage:
        try:
            yield stage
        except BaseException:
            stage.send_signal(signal.SIGTERM)
            stage.wait()
            raise


def check_ended(module: str, code: int) -> None:
    """Raise UserError for a command that ended with an error, which it has printed."""
    if code:
        raise UserError(f"`{module}` ended with {code}: see above; fix it and continue")


def describe_machine() -> str:
    """What the training ran on, in a few words."""
    import torch

    from dd3g.machine import provenance

    about = provenance("cuda" if torch.cuda.is_available() else "cpu")["machine"]
    return about["gpu"] or f"{about['cores']} cores of {about['cpu']}"


main = command_line(recipe_command, "dd3g recipe", go_on="run the same command with --resume to continue")

if __name__ == "__main__":
    sys.exit(main())
