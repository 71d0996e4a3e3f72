"""From one splat file to another, or to a mesh: `dd3g convert IN OUT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.run import Json, command_line, tell
from dd3g.io.atomic import remove_leftovers
from dd3g.io.formats import (
    AXES,
    LAYOUTS,
    MESHES,
    SPLATS,
    TELLING,
    check_drawing,
    check_format,
    check_layout,
    format_of,
    name_and_format,
)


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"A file that ends in .{', .'.join(SPLATS)}.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=f"Any of these, or .{', .'.join(MESHES)}.")],
    axes: Annotated[
        str | None, typer.Option(help=f"Axes of OUT: {', '.join(AXES)}; default: what viewers expect.")
    ] = None,
    from_axes: Annotated[
        str | None, typer.Option(help="Axes of IN; default: what the file says, else what viewers expect.")
    ] = None,
    ply_layout: Annotated[
        str, typer.Option(help=f"Columns of a .ply: {' or '.join(LAYOUTS)} (62).")
    ] = "compact",
    antialiased: Annotated[
        bool | None,
        typer.Option(
            "--antialiased/--classic",
            help=f"How to draw OUT, one of .{', .'.join(TELLING)}; default: as IN says.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a splat file to another format, or make a textured mesh of it.

    Everything is kept but colour that depends on the view; what a format quantises is in docs/viewers.md.
    """
    format = format_of(target)
    check_format(format, axes, (*SPLATS, *MESHES))
    check_layout(ply_layout, (format,))
    check_format(name_and_format(source)[1], from_axes)
    check_drawing(antialiased, format)
    from dd3g.io.splats import read_some, save

    remove_leftovers(target.parent)
    found = read_some(source, from_axes)
    warnings = found.warnings(source)
    if format in MESHES:
        from dd3g.pepd.mesh import mesh_of, strays

        written = mesh_of(found.gaussians).save(target)
        if far := int(strays(found.gaussians).sum()):
            warnings.append(f"{far:,} Gaussians far from all others are not part of the mesh")
    else:
        mode = found.drawn_antialiased if antialiased is None else antialiased
        written = [save(found.gaussians, target, axes, format, 0, mode, ply_layout)]
    if format in SPLATS and format not in TELLING and not found.drawn_antialiased:
        warnings.append(f"{source} is drawn without antialiasing, which a .{format} cannot record")
    report: dict[str, Any] = {
        "input": str(source),
        "files": [str(path) for path in written],
        "gaussians": len(found.gaussians),
        "bytes": sum(path.stat().st_size for path in written),
        "warnings": warnings,
    }
    files, size = ", ".join(report["files"]), report["bytes"] / 1e6
    tell(report, as_json, f"wrote {files} of {len(found.gaussians):,} Gaussians, {size:.2f} MB")


main = command_line(convert, "dd3g convert")

if __name__ == "__main__":
    sys.exit(main())
