"""Does this project compute what the authors' code computes?

    python -m tools.check_goldens FOLDER

Every NAME.npz of the folder is checked by the module that `CHECKS` has for the beginning of its name. A
line an array: largest difference and rmse, both by the golden's rms. Exit code 1: one is over its tolerance,
or nobody compared it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer

from dd3g.command.run import command_line
from dd3g.errors import UserError, first_line
from tools.goldens.golden import KINDS, Compared, Golden
from tools.goldens.seeds import find_seeds

# Beginning of the name of the file -> module whose `check` of a `Golden` gives the arrays `Compared`.
CHECKS = {"zero123pp": "zero123plus", "pipeline_mvdream": "pipeline", "lgm": "lgm", "unet_mvdream": "unet"}


def check(golden: Golden) -> Iterator[Compared]:
    """Compare one file's arrays, with a single thread: more of them sum in another order.

    Raises:
        UserError: when no check is known by its name, or its .json does not describe its arrays.
    """
    if golden.kind is None:
        raise UserError(f"{golden.name}.npz: no check has this name; known are {', '.join(KINDS)}")
    module = f"tools.goldens.{CHECKS[golden.kind]}"
    with torch.no_grad():
        try:
            yield from import_module(module).check(golden)
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
    wanted = set(only) or {p.stem for p in folder.glob("*.json") if p.stem.startswith(KINDS)}
    paths = [p for p in sorted(folder.glob("*.npz")) if not only or p.stem in only]
    paths.sort(key=lambda p: not p.stem.startswith(KINDS))  # what nobody can compare comes last
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


main = command_line(command, "tools.check_goldens", needs_words=False)

if __name__ == "__main__":
    sys.exit(main())
