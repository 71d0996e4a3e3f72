"""All of data_gen at full size without a picture model: time of each step, memory, and their curve.

    python -m tools.rehearse_data runs/rehearsal --count 120000 --processes 2
    python -m tools.rehearse_data runs/killed --count 2000 --kills 20

A stub that draws shapes stands for the model; prompts, filters, duplicates, shards, checks and page are real.
With --kills the set is then made again, killed at random moments, and compared with the first.
Writes OUTPUT/rehearsal.json and rehearsal.svg beside the set, the prompts and the page.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from dd3g.command.run import Json, run_command
from dd3g.errors import UserError
from dd3g.io.atomic import write_text
from dd3g.io.shards import Shards

ROOT = Path(__file__).resolve().parents[1]  # of the repository
CONFIG = "configs/data_gen/shapes.yaml"
INTERVAL = 0.5  # seconds between looks at the memory
TEMPLATE = Path(__file__).with_name("rehearsal.svg")


@dataclass
class Step:
    """One command."""

    name: str  # of it
    seconds: float = 0.0  # it took
    megabytes: float = 0.0  # of resident memory, of all its processes together, at most
    # (seconds since the start of the step, megabytes, finished shards)
    curve: list[tuple[float, float, int]] = field(default_factory=list)
    output: dict[str, Any] = field(default_factory=dict)  # what it printed, as JSON


def run_step(name: str, command: list[str], folder: Path) -> Step:
    """Run a command to its end, looking at its memory and at the shards in `folder`.

    What it says on stderr is passed on when it has ended.

    Raises:
        UserError: when it fails.
    """
    step, start = Step(name), time.perf_counter()
    # Files, because a pipe that nobody reads fills up and blocks the command.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen([sys.executable, *command], stdout=printed, stderr=errors, cwd=ROOT) as process:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                megabytes = 0.0
                with contextlib.suppress(psutil.Error):  # one has just ended
                    for p in (root, *root.children(recursive=True)):
                        megabytes += p.memory_info().rss / 1e6
                shards = len(list(folder.glob("pictures-*.json")))
                step.curve.append((round(time.perf_counter() - start, 1), round(megabytes, 1), shards))
                time.sleep(INTERVAL)
        step.seconds = round(time.perf_counter() - start, 1)
        step.megabytes = max((m for _, m, _ in step.curve), default=0.0)
        printed.seek(0)
        errors.seek(0)
        sys.stderr.write(errors.read())
        if process.returncode:
            raise UserError(f"{name} ended with exit code {process.returncode}: see its output above")
        with contextlib.suppress(ValueError):
            step.output = json.loads(printed.read())
    return step


def rehearse(output: Path, count: int, processes: int, seed: int = 0) -> list[Step]:
    """Run every step in a new folder, which goes again when a step fails before any shard is finished.

    Raises:
        UserError: when the folder is there already, or a step fails.
    """
    output = output.absolute()
    if output.exists():
        raise UserError(f"{output} is there already: delete it or give another folder")
    prompts, folder = output / "prompts.jsonl", output / "set"
    data_gen = ["-m", "data_gen"]
    commands = {
        "prompts": [*data_gen, "prompts", f"--count={count}", f"--seed={seed}", f"-o{prompts}", "--json"],
        "synthesize": synthesis(output, "set", processes, seed),
        "verify": [*data_gen, "verify", str(folder), f"--threads={processes}", "--json"],
        "stats": [*data_gen, "stats", str(folder), f"-o{output / 'stats.html'}", "--json"],
    }
    try:
        return [run_step(name, command, folder) for name, command in commands.items()]
    except BaseException:
        if any(folder.glob("pictures-*.json")):  # worth a look
            print(f"{output} is kept: delete it before the next rehearsal", file=sys.stderr)
        else:
            shutil.rmtree(output, ignore_errors=True)
        raise


def synthesis(output: Path, name: str, processes: int, seed: int) -> list[str]:
    """Words after `python` that make the set OUTPUT/NAME."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    places = [f"prompts={output / 'prompts.jsonl'}", f"output={output / name}", f"seed={seed}"]
    words = ["-m", "data_gen", "synthesize", "--json", "--config", CONFIG, *places]
    return [*launch, *words] if processes > 1 else words


def summary(steps: list[Step]) -> dict[str, Any]:
    """The figures: seconds and memory by step, what came out, and how long drawing and finishing took."""
    figures = steps[-1].output
    return {
        "pictures": figures.get("pictures"),
        "missing": figures.get("missing"),
        "rejected": figures.get("rejected"),
        "verified": steps[2].output.get("ok"),
        "seconds": {s.name: s.seconds for s in steps} | {"total": round(sum(s.seconds for s in steps), 1)},
        "seconds_per_try": figures.get("seconds_per_try"),
        "megabytes": {s.name: s.megabytes for s in steps},
        "gigabytes_on_disk": round(figures.get("bytes", 0) / 1e9, 3),
    }


def curve(steps: list[Step]) -> str:
    """An SVG of memory over time, with the finished shards as a second line and the steps named."""
    from jinja2 import Template

    starts = list(accumulate((s.seconds for s in steps), initial=0.0))
    top = max(s.megabytes for s in steps) * 1.1 or 1.0
    shards = max((n for s in steps for *_, n in s.curve), default=0) or 1
    seen = [(start + t, m, n) for step, start in zip(steps, starts, strict=False) for t, m, n in step.curve]
    return Template(TEMPLATE.read_text("utf-8"), trim_blocks=True).render(
        steps=list(zip(steps, starts, strict=False)),
        total=starts[-1] or 1.0,
        top=top,
        shards=shards,
        memory=[(x, m / top) for x, m, _ in seen],
        done=[(x, n / shards / 1.1) for x, _, n in seen],
    )


def kill_and_compare(
    command: list[str], folder: Path, undisturbed: Path, kills: int, seconds: float, seed: int = 0
) -> dict[str, int]:
    """Make a set with a command that is killed at random moments; each set must come out as the undisturbed.

    Args:
        command: words after `python` that make, or resume, the set in `folder`.
        folder: that is not there yet, and is gone in the end.
        undisturbed: the set that the same command made in another folder.
        kills: how often, with all its processes; a set that is complete before is made anew.
        seconds: that the command takes undisturbed.
        seed: of the moments.

    Returns:
        {"kills", "sets": how many were completed and compared}.

    Raises:
        UserError: when a tar is torn, a finished batch was lost or made twice, or the sets differ; `folder`
            stays to be looked at.
    """
    rng, done, sets, unfinished = random.Random(seed), 0, 0, True
    batches: dict[Path, int] = {}
    while done < kills or unfinished:
        # Half the time, so that most sets are killed several times.
        unfinished = not _ended(command, rng.uniform(0, seconds / 2) if done < kills else None)
        if unfinished:
            done += 1
            batches = look_at_batches(folder, batches)
            continue
        if name := difference(folder, undisturbed):
            raise UserError(f"{folder / name} is not what {undisturbed / name} is, after {done} kills")
        shutil.rmtree(folder)
        sets, batches = sets + 1, {}
    return {"kills": done, "sets": sets}


def look_at_batches(folder: Path, before: dict[Path, int]) -> dict[Path, int]:
    """Finished batches of a set's unfinished shards, and when each was written (ns), now as `before`.

    Raises:
        UserError: when a tar is torn, or one of those before is gone or was written again.
    """
    for tar in folder.rglob("*.tar"):
        Shards(tar)
    now = {p: p.stat().st_mtime_ns for p in folder.glob("parts/*/*.tar")}
    for part, written in before.items():
        if part not in now and not (folder / f"{part.parent.name}.json").exists():
            raise UserError(f"{part} was lost by a kill")
        if now.get(part, written) != written:
            raise UserError(f"{part} was made twice")
    return now


def difference(one: Path, other: Path) -> str:
    """The first file that two sets do not share byte for byte, "" when there is none.

    How many seconds a shard took, which its manifest records, may differ.
    """
    names = {p.relative_to(f).as_posix() for f in (one, other) for p in f.rglob("*") if p.is_file()}
    return next((n for n in sorted(names) if _content(one / n) != _content(other / n)), "")


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.suffix == ".json" and path.name.startswith("pictures-"):
        return {k: v for k, v in json.loads(path.read_bytes()).items() if k != "seconds"}
    return path.read_bytes()


def _ended(command: list[str], seconds: float | None) -> bool:
    """Run a command and kill it and its children after some seconds; whether it was done before."""
    words, quiet = [sys.executable, *command], subprocess.DEVNULL
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(words, stdout=quiet, stderr=errors, cwd=ROOT) as process,
    ):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            root = psutil.Process(process.pid)
            family = [root, *root.children(recursive=True)]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family[1:], timeout=60)
            process.wait()
        if process.returncode > 0:
            errors.seek(0)
            code = process.returncode
            raise UserError(f"after a kill it ended with exit code {code}: {errors.read()[-500:]}")
        return process.returncode == 0


def main(
    output: Annotated[Path, typer.Argument(help="New folder to work in.")],
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 120_000,
    processes: Annotated[int, typer.Option(min=1, help="Processes that make pictures at the same time.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of prompts, pictures and moments of kills.")] = 0,
    kills: Annotated[
        int, typer.Option(min=0, help="Make the set again, killed this often at random moments, and compare.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Make a set of shapes with every step of data_gen, and report time and memory."""
    steps = rehearse(output, count, processes, seed)
    report = {"count": count, "processes": processes} | summary(steps)
    if kills:
        command = synthesis(output.absolute(), "killed", processes, seed)
        sets = output / "killed", output / "set"
        report["killed"] = kill_and_compare(command, *sets, kills, steps[1].seconds, seed)
    write_text(output / "rehearsal.json", json.dumps(report, indent=1) + "\n")
    write_text(output / "rehearsal.svg", curve(steps))
    print(json.dumps(report, indent=None if as_json else 1))


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.rehearse_data"))
