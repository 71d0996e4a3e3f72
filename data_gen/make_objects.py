"""Made-up household objects for those who have no meshes: `dd3g data objects -o FOLDER`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from dd3g.command.progress import Progress
from dd3g.command.run import Json, command_line
from dd3g.io.atomic import check_writable, replacing
from dd3g.processes import map_in_processes, usable_cores

LARGEST = 32767  # a coordinate of 1, as `dd3g.meshes.mesh.load_mesh` reads it


def write_object(folder: Path, seed: int, resolution: int, index: int) -> None:
    """Write object `index` of a seed as `0-00000-kind.npz`; one that is there is kept."""
    from data_gen.meshes.procedural import (
        Space,
        procedural_shape,
    )  # compiles kernels, which help does not need

    stem = f"{seed}-{index:05d}"
    if any(folder.glob(f"{stem}-*.npz")):
        return
    kind, vertices, faces = procedural_shape(Space(resolution), seed, index)
    with replacing(folder / f"{stem}-{kind}.npz") as part, open(part, "wb") as stream:
        np.savez_compressed(stream, V=np.round(vertices * LARGEST).astype(np.int16), F=faces)


def objects_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the .npz shapes.")],
    count: Annotated[int, typer.Option(min=1, help="Objects.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed adds other objects.")] = 0,
    resolution: Annotated[int, typer.Option(min=16, help="Grid points a side.")] = 80,
    processes: Annotated[int, typer.Option(min=1, help="CPU processes.")] = usable_cores(),
    as_json: Json = False,
) -> None:
    """Make up household objects without texture; `dd3g data render` paints and draws them."""
    check_writable(output)
    write = partial(write_object, output, seed, resolution)
    with Progress(not as_json) as progress:
        progress.phase("objects", count)
        for _ in map_in_processes(write, range(count), processes):
            progress.advance()
    about = {"objects": count, "output": str(output)}
    print(json.dumps(about) if as_json else f"{count} objects in {output}")


main = command_line(objects_command, "dd3g data objects")

if __name__ == "__main__":
    sys.exit(main())
