"""A splat file in the browser: `dd3g view FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dd3g.command.run import Json, command_line, tell
from dd3g.errors import UserError
from dd3g.io.atomic import remove_leftovers
from dd3g.io.formats import AXES, SPLATS, check_format, name_and_format


def view(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"A file that ends in .{', .'.join(SPLATS)}.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML page to write; default: out/NAME.html.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help=f"Axes of the file: {', '.join(AXES)}; default: what it says.")
    ] = None,
    antialiased: Annotated[
        bool | None, typer.Option("--antialiased/--classic", help="How to draw; default: as the file says.")
    ] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    as_json: Json = False,
) -> None:
    """Make a page that shows a splat file, and open it in the browser."""
    stem, format = name_and_format(file)
    check_format(format, axes)
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {output} is no page: give a name that ends in .html")
    from dd3g.io.splats import read_some
    from dd3g.io.viewer import save_viewer

    found = read_some(file, axes, visible=True)
    mode = found.drawn_antialiased if antialiased is None else antialiased
    page = output or Path("out") / f"{stem}.html"
    remove_leftovers(page.parent)
    save_viewer(found.gaussians, page, stem, mode)
    if show:
        import webbrowser

        show = webbrowser.open(page.resolve().as_uri())
    report = {"input": str(file), "page": str(page), "opened": show, "warnings": found.warnings(file)}
    tell(report, as_json, f"wrote {page}" + ("" if show else "; open it in a browser"))


main = command_line(view, "dd3g view")

if __name__ == "__main__":
    sys.exit(main())
