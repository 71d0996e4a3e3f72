"""Names of the files that dd3g writes, and which options each of them takes; loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dd3g.errors import UserError

if TYPE_CHECKING:
    from dd3g.gaussians import Gaussians

AGAIN = "copy or download it again"  # what to do about a file that was cut
SPLATS = ("ply", "compressed.ply", "splat", "spz", "sog", "glb")
MESHES = ("mesh.glb", "mesh.usdz", "mesh.obj")
TELLING = ("ply", "compressed.ply", "sog")  # those that say whether they are drawn with antialiasing
AXES = ("opencv", "opengl", "zup")
UNBUNDLED = "meta.json"  # of a .sog that was not zipped; read, with the pictures beside it
LAYOUTS = ("compact", "inria")  # of .ply: 14 columns, or the 62 of the first implementation


@dataclass(frozen=True)
class Splats:
    """What a splat file holds."""

    gaussians: Gaussians  # (N,) float32 on the CPU
    axes: str | None = None  # one of `AXES`, None where the file does not say
    # Whether they are made to be drawn with antialiasing, None where the format cannot say
    antialiased: bool | None = None
    harmonics: bool = False  # whether the file has colour that depends on the view, which is left out
    broken: int = 0  # rows that are not finite, which are left out

    @property
    def drawn_antialiased(self) -> bool:
        """How to draw them where nobody says: as the file does, and else as files of dd3g are drawn."""
        return self.antialiased is not False

    def warnings(self, name: object) -> list[str]:
        """What of the file called `name` is left out."""
        found = [f"{name}: colour that depends on the view was left out"] if self.harmonics else []
        if self.broken:
            all = self.broken + len(self.gaussians)
            found.append(f"{name}: {self.broken:,} of {all:,} Gaussians are not finite and were left out")
        return found


def format_of(path: str | Path) -> str:
    """The format that a file's name ends in: one of `SPLATS` or `MESHES`, else its bare suffix."""
    name = Path(path).name.lower()
    known = [format for format in (*SPLATS, *MESHES) if name.endswith(f".{format}")]
    return max(known, key=len) if known else Path(name).suffix.removeprefix(".")


def name_and_format(path: str | Path) -> tuple[str, str]:
    """Name of a file to read, without its suffix, and its format; a meta.json is called like its folder."""
    path = Path(path)
    if path.name.lower() == UNBUNDLED:
        return path.absolute().parent.name, "sog"
    format = format_of(path)
    return path.name[: len(path.name) - len(format) - 1], format


def check_format(format: str, axes: str | None = None, known: tuple[str, ...] = SPLATS) -> None:
    """Refuse a format that is not `known`, and axes that it cannot have.

    Raises:
        UserError: names the wrong one and what would be right.
    """
    if not format:
        raise UserError(f"a name without suffix tells no format: let it end in .{', .'.join(known)}")
    if format not in known:
        what = f".{format} is a mesh, and not splats" if format in MESHES else f"unknown format {format!r}"
        raise UserError(f"{what}: use one of {', '.join(known)}")
    if axes is not None and axes not in AXES:
        raise UserError(f"unknown axes {axes!r}: use one of {', '.join(AXES)}")
    if axes not in (None, "opengl") and format not in SPLATS[:-1]:
        why = "custom" if format == "mesh.obj" else "its standard"
        raise UserError(
            f"a .{format} is y up by {why} and cannot have the axes {axes!r}: leave --axes out, or use one "
            f"of {', '.join(SPLATS[:-1])}"
        )


def check_layout(layout: str, formats: tuple[str, ...]) -> None:
    """Refuse an unknown layout, and one where no .ply is written.

    Raises:
        UserError: names what would be right.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r} of .ply: use one of {', '.join(LAYOUTS)}")
    if layout != "compact" and "ply" not in formats:
        raise UserError(
            f"the layout {layout!r} is one of .ply, and .{', .'.join(formats)} has none: leave it out, or "
            "write a .ply"
        )


def check_drawing(antialiased: bool | None, format: str) -> None:
    """Refuse to say how Gaussians are to be drawn where the format has no word for it.

    Raises:
        UserError: names the formats that have.
    """
    if antialiased is not None and format not in TELLING:
        raise UserError(
            f"a .{format} cannot record whether it is drawn with antialiasing: leave --antialiased and "
            f"--classic out, or write a .{', .'.join(TELLING)}"
        )


def check_length(count: int, needed: int, there: int) -> None:
    """Raise ValueError where a file holds fewer bytes than its Gaussians need."""
    if there < needed:
        raise ValueError(
            f"it ends too early: {count} Gaussians need {needed} bytes, and it holds {there}; {AGAIN}"
        )
