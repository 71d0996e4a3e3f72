"""A turn around the object in a splat file: `dd3g turntable FILE`."""

from __future__ import annotations

import sys
from glob import escape
from pathlib import Path
from typing import Annotated

import typer

from dd3g.command.run import Json, command_line, say, tell
from dd3g.errors import UserError
from dd3g.io.atomic import remove_leftovers
from dd3g.io.formats import AXES, SPLATS, check_format, name_and_format


def turntable(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"A file that ends in .{', .'.join(SPLATS)}.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A .mp4, .webm, .webp or .gif, or .png for single pictures; default: out/NAME.mp4.",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=3600, help="Pictures of a whole turn.")] = 48,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Pixels per side.")] = 512,
    background: Annotated[
        str, typer.Option(help="A colour such as white, '#102030', or transparent (not in .mp4).")
    ] = "white",
    elevation: Annotated[
        float, typer.Option(min=-89, max=89, help="Degrees from which the camera looks down.")
    ] = 10.0,
    distance: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=100,
            help="Distance of the camera to the origin; default: one that shows the object.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=240, help="Pictures per second; default: 24. Not for .png.", show_default=False
        ),
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help=f"Axes of the file: {', '.join(AXES)}; default: what it says.")
    ] = None,
    antialiased: Annotated[
        bool | None, typer.Option("--antialiased/--classic", help="How to draw; default: as the file says.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a turn around the object of a splat file as a video, an animation or pictures."""
    stem, format = name_and_format(file)
    check_format(format, axes)
    target = output or Path("out") / f"{stem}.mp4"
    colour = _colour(background)
    from dd3g.cameras import RADIUS
    from dd3g.gaussians import framing
    from dd3g.io.splats import read_some
    from dd3g.io.turntable import check_movie, render_turntable, save_frames, save_turntable

    check_movie(target, transparent=colour is None)
    single = target.suffix.lower() == ".png"
    if fps is not None and single:
        raise UserError("--fps is for videos and animations, and .png are pictures: leave it out")
    if fps is not None and target.suffix.lower() == ".gif" and fps > 50:
        # Its delays are whole hundredths of a second, and browsers slow one down.
        raise UserError(f"a .gif shows at most 50 pictures a second, and --fps is {fps:g}: use .webp or .mp4")
    found = read_some(file, axes, visible=True)
    mode = found.drawn_antialiased if antialiased is None else antialiased
    remove_leftovers(target.parent)
    shown = found.gaussians
    if distance is None:
        centre, larger = framing(shown)
        shown, distance = shown.transformed(translation=-centre).transformed(scale=1 / larger), RADIUS
    images = render_turntable(shown, frames, size, elevation, colour, mode, distance)
    warnings = found.warnings(file)
    if (images.min((0, 1, 2)) == images.max((0, 1, 2))).all():
        warnings.append(
            f"the pictures are empty: {file} shows nothing at this --distance from the origin; dd3g info "
            "tells where its Gaussians are"
        )
    files = save_frames(images, target) if single else [save_turntable(images, target, fps or 24)]
    written = [str(path) for path in files]
    earlier = target.parent.glob(f"{escape(target.stem)}-[0-9][0-9][0-9]*.png") if single else ()
    if stale := sorted({*earlier} - {*files}):
        warnings.append(f"{stale[0]} and {len(stale) - 1} more are of an earlier turn: delete them")
    report = {"input": str(file), "files": written, "frames": frames, "size": size, "warnings": warnings}
    many = f"{written[0]} to {Path(written[-1]).name}" if len(written) > 1 else written[0]
    tell(report, as_json, f"wrote {many}")
    if not as_json and not many.endswith(target.suffix):
        say(f"for {target.suffix} install the extra 'video': pip install 'dd3g[video]'", err=True)


def _colour(name: str) -> tuple[float, ...] | None:
    """SRGB in 0..1 of a colour by name or #rrggbb; None is transparent."""
    from PIL import ImageColor

    if name == "transparent":
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(name)
    except ValueError as error:
        raise UserError(
            f"unknown colour {name!r}: give a name such as white, #rrggbb, or transparent"
        ) from error
    if alpha and alpha[0] < 255:
        raise UserError(f"the colour {name!r} is translucent: give #rrggbb, or transparent")
    return red / 255, green / 255, blue / 255


main = command_line(turntable, "dd3g turntable")

if __name__ == "__main__":
    sys.exit(main())
