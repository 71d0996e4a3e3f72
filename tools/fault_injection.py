"""Fault injection: a dataset made under kill -9 must be the one that is made undisturbed."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dd3g.errors import UserError
from dd3g.io.shards import Shards

ROOT = Path(__file__).resolve().parents[1]  # of the repository


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
    """Finished batches of unfinished shards, and when each was written (ns).

    Args:
        folder: of the set.
        before: what this gave after the last kill.

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
    import psutil

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
            raise UserError(
                f"after a kill it ended with exit code {process.returncode}: {errors.read()[-500:]}"
            )
        return process.returncode == 0
