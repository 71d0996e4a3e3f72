"""What is in a splat file: `dd3g info FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dd3g.command.run import Json, command_line, tell
from dd3g.io.formats import AXES, SPLATS, UNBUNDLED, name_and_format


def described(path: Path, axes: str | None = None) -> dict[str, Any]:
    """Format, size, and the range of the values of a splat file, as `dd3g info --json` prints it.

    Raises:
        UserError: when the file cannot be read.
    """
    from dd3g.io.splats import read

    found = read(path, axes)
    g, files = found.gaussians, [path]
    if path.name.lower() == UNBUNDLED:
        parts = [part for part in json.loads(path.read_bytes()).values() if isinstance(part, dict)]
        files += [path.with_name(name) for part in parts for name in part.get("files", [])]

    def spread(values: Any) -> list[float]:
        """Least, median and most."""
        return [float(f"{values.quantile(q).item():.4g}") for q in (0, 0.5, 1)] if values.numel() else []

    return {
        "file": str(path),
        "format": name_and_format(path)[1],
        "bytes": sum(f.stat().st_size for f in files),
        "gaussians": len(g),
        "not_finite": found.broken,
        "axes": found.axes,
        "antialiased": found.antialiased,
        "view_dependent": found.harmonics,
        "low": [round(v, 4) for v in g.means.amin(0).tolist()] if len(g) else [],
        "high": [round(v, 4) for v in g.means.amax(0).tolist()] if len(g) else [],
        "scale": spread(g.scales.flatten()[:: max(1, g.scales.numel() // 1_000_000)]),
        "opacity": spread(g.opacities[:: max(1, len(g) // 1_000_000)]),
    }


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"A file that ends in .{', .'.join(SPLATS)}.")],
    axes: Annotated[
        str | None, typer.Option(help=f"Axes of the file: {', '.join(AXES)}; default: what it says.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a splat file holds, in the axes x right, y up, z towards the viewer."""
    report = described(file, axes)
    answers = {True: "yes", False: "no", None: "the file does not say"}
    lines = {
        "file": f"{file} (.{report['format']}, {report['bytes'] / 1e6:.2f} MB)",
        "Gaussians": f"{report['gaussians']:,}"
        + (f", and {report['not_finite']:,} that are not finite" if report["not_finite"] else ""),
        "axes": str(report["axes"]),
        "antialiased": answers[report["antialiased"]],
        "colours": "depend on the view, which is left out" if report["view_dependent"] else "one each",
        "from": " ".join(f"{v:g}" for v in report["low"]),
        "to": " ".join(f"{v:g}" for v in report["high"]),
        "scale": " ".join(f"{v:g}" for v in report["scale"]) + "  (least, median, most)",
        "opacity": " ".join(f"{v:g}" for v in report["opacity"]),
    }
    tell(report, as_json, *(f"{name:<13}{value}" for name, value in lines.items()))


main = command_line(info, "dd3g info")

if __name__ == "__main__":
    sys.exit(main())
