"""Does this project compute what the authors' code computes?

    python -m tools.check_goldens FOLDER

Every NAME.npz of the folder is checked as `KINDS` has it for the beginning of its name. A line an array:
largest difference and rmse, both by the golden's rms. Exit code 1: one is over its tolerance, or nobody
compared it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from dd3g.command.run import command_line
from dd3g.errors import UserError, first_line
from dd3g.nn.blocks import timestep_embedding
from tools.goldens import lgm, made_up, pipeline, unet, zero123plus
from tools.goldens.golden import Compared, Golden

LAST = 99_999  # seed that is tried, besides larger ones that names and texts of the folder hold
TEXTS = (".json", ".txt", ".md", ".py", ".yaml")
SAME = 0.01  # rmse / rms; another seed has more than 1
PIXELS = 4  # a side of the grid of pixels that identifies a picture
FEW = 8  # outputs that identify a network; a draw of fewer rows is the beginning of that of all


def check(golden: Golden) -> Iterator[Compared]:
    """Compare one file's arrays, with a single thread: more of them sum in another order.

    Raises:
        UserError: when no check is known by its name, or its .json does not describe its arrays.
    """
    known = next((made for kind, made in KINDS.items() if golden.name.startswith(kind)), None)
    if known is None:
        raise UserError(f"{golden.name}.npz: no check has this name; known are {', '.join(sorted(KINDS))}")
    with torch.no_grad():
        try:
            yield from known[0](golden)
        except UserError:
            raise
        except Exception as error:  # whatever a configuration, a shape or a name that does not fit leads to
            raise UserError(
                f"{golden.name}.json does not describe what {golden.name}.npz holds "
                f"({type(error).__name__}: {first_line(error)}): copy both again, from one folder"
            ) from error


def default_folder() -> Path:
    """The folder `goldens` beside `$DD3G_DATA`, else the one of the tests."""
    data = os.environ.get("DD3G_DATA")
    own = Path(__file__).parents[1] / "tests/golden/teachers"
    return Path(data).parent / "goldens" if data else own


def command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of goldens; default: `goldens` beside $DD3G_DATA, or tests/golden/teachers."
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Names of files, without .npz.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help='Seed of weights and inputs; default: "seed" in NAME.json, or found out.'),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="A type other than float32 shows how far networks drift in it.")
    ] = "float32",
) -> None:
    """Compare what this project computes with what the authors' code computed on made-up weights."""
    folder = folder or default_folder()
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {dtype}: give float32, bfloat16 or float16")
    paths = _chosen(folder, only or [])
    torch.set_num_threads(1)
    wrong, found, told = 0, cache(find_seeds), 1
    for path in paths:
        golden = Golden.read(path, seed, getattr(torch, dtype))
        if not golden.arrays:
            raise UserError(f"{path} holds no arrays: copy it again")
        if seed is None and "seed" not in golden.about:
            golden = replace(golden, seed=_seed_among(found(folder), golden.name))
            if golden.seed != told:
                print(f"seed {golden.seed}, as the made-up inputs are")
            told = golden.seed
        wrong += _print_checks(golden)
    print(f"{wrong} arrays do not agree" if wrong else "all arrays agree")
    if wrong and dtype == "float32":
        raise typer.Exit(1)


def _chosen(folder: Path, only: list[str]) -> list[Path]:
    """The files to compare: those named, or all. One that nobody compares is none that agrees."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of goldens; give one with NAME.npz and NAME.json in it")
    wanted = set(only) or {p.stem for p in folder.glob("*.json") if p.stem.startswith(tuple(KINDS))}
    paths = [p for p in sorted(folder.glob("*.npz")) if not only or p.stem in only]
    paths.sort(key=lambda p: not p.stem.startswith(tuple(KINDS)))  # what nobody can compare comes last
    if lacking := sorted(wanted - {p.stem for p in paths}):
        raise UserError(f"{folder} holds no {lacking[0]}.npz: copy it whole")
    if not paths:
        inner = sorted({p.parent for p in folder.glob("*/*.npz")})
        raise UserError(f"{folder} holds no NAME.npz" + (f"; give {inner[0]}" if inner else ""))
    return paths


def _seed_among(found: dict[str, int], name: str) -> int:
    """The seed of a file's made-up inputs, or that of the others; 1, with a note, where none was found."""
    if not found:
        print(f"{name}: the seed of the made-up inputs was not found, so 1 is used: give it with --seed")
    return found.get(name, next(iter(found.values()), 1))


def _print_checks(golden: Golden) -> int:
    """Compare and print each array of a golden; returns how many do not agree or were not compared."""
    wrong, left = 0, set(golden.arrays)
    for one in check(golden):
        left.discard(one.name)
        wrong += not one.agrees
        verdict = "ok" if one.agrees else f"OVER {one.tolerance:.0e}"
        print(f"{golden.name}  {one.name:44} max {one.largest:.1e}  rmse {one.rmse:.1e}  {verdict}")
    for name in sorted(left):
        print(f"{golden.name}  {name:44} NOT COMPARED")
    return wrong + len(left)


def find_seeds(folder: Path) -> dict[str, int]:
    """Name of each file -> the first seed with which its made-up picture, or smallest network, comes out."""
    found: dict[str, int] = {}
    noted = _noted(folder)
    for kind, (_, array, make) in KINDS.items():
        for path in sorted(folder.glob(f"{kind}*.npz")):
            with contextlib.suppress(Exception):  # whatever is wrong is said when its turn comes
                golden = Golden.read(path, 1)
                likely = dict.fromkeys((*found.values(), *noted))
                seed = _first(golden, make, likely) if array in golden else None
                if seed is not None:
                    found[golden.name] = seed
    return found


def _noted(folder: Path) -> list[int]:
    """Numbers over `LAST` that stand in the folder's names and texts."""
    words = [str(folder.resolve()), *(path.stem for path in folder.iterdir())]
    words += [
        path.read_text(errors="replace")
        for path in folder.glob("*.*")
        if path.suffix in TEXTS and path.is_file()
    ]
    return sorted(n for n in {int(d) for text in words for d in re.findall(r"\d{6,20}", text)} if n > LAST)


def _first(golden: Golden, make: Callable[[Golden], Compared], likely: Iterable[int]) -> int | None:
    for seed in (*likely, *range(LAST + 1)):
        if make(replace(golden, seed=seed)).agrees:
            return seed
    return None


def _picture(golden: Golden) -> Compared:
    wanted, (height, width) = golden["picture"], golden.picture_sides
    every = max(1, min(wanted.shape[:2]) // PIXELS)
    found = made_up.picture("picture", height, width, golden.seed, step=height // len(wanted) * every)
    return Compared("picture", found, wanted[::every, ::every], SAME)


def _levels(array: str, name: str) -> Callable[[Golden], Compared]:
    """A picture `name` that an array holds in 255ths, over its alpha."""

    def make(golden: Golden) -> Compared:
        height, width = golden[array].shape[:2]
        step = max(1, min(height, width) // PIXELS)
        found = made_up.picture(name, height, width, golden.seed, step=step)
        return Compared(array, (255 * found).round(), golden[array][::step, ::step, :3], SAME)

    return make


def _time_embed(golden: Golden) -> Compared:
    hidden, width = golden.about["shapes"]["time_embed.0.weight"]
    shapes = {"0.weight": (hidden, width), "0.bias": (hidden,), "2.weight": (FEW, hidden), "2.bias": (FEW,)}
    w = {n: made_up.weight(f"time_embed.{n}", shape, golden.seed) for n, shape in shapes.items()}
    inner = timestep_embedding(torch.tensor(unet.LEVELS), width).numpy() @ w["0.weight"].T + w["0.bias"]
    found = inner / (1 + np.exp(-inner)) @ w["2.weight"].T + w["2.bias"]
    return Compared("part.time_embed", found, golden["part.time_embed"][:, :FEW], SAME)


# Beginning of a file's name -> what compares it, and an array that tells its seed; the quick ones first.
KINDS: dict[str, tuple[Callable[[Golden], Iterator[Compared]], str, Callable[[Golden], Compared]]] = {
    "pipeline_mvdream": (pipeline.check, "picture", _picture),
    "zero123pp": (zero123plus.check, "input_rgba", _levels("input_rgba", "zpicture")),
    "lgm": (lgm.check, "preprocess.rgba", _levels("preprocess.rgba", "lgm.picture")),
    "unet_mvdream": (unet.check, "part.time_embed", _time_embed),
}

main = command_line(command, "tools.check_goldens", needs_words=False)

if __name__ == "__main__":
    sys.exit(main())
