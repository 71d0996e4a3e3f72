"""What `dd3g infer` writes for one picture: splat files, turntable, viewer page, and the matte."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd3g.command.setting import setting
from dd3g.command.signals import signals_wait
from dd3g.errors import UserError
from dd3g.io.atomic import move_files, temporary_folder
from dd3g.io.formats import AXES as AXES
from dd3g.io.formats import LAYOUTS, MESHES, SPLATS, check_format, check_layout
from dd3g.picture.decoding import SUFFIXES
from dd3g.picture.framing import AUTO, check_how
from dd3g.whole import SEEDS

if TYPE_CHECKING:
    from dd3g.gaussians import Gaussians
    from dd3g.pepd import Generator
    from dd3g.picture import Picture

FORMATS = (*SPLATS, *MESHES)
PAGE = "html"  # that shows the object
SAMPLES = 1_000_000  # of a picture: days of work
NO_ENCODER = (
    "the turntable is an animated .webp: for .mp4 install the extra 'video': pip install 'dd3g[video]'"
)


@dataclass(frozen=True)
class Options:
    """How objects are made and written: options of `dd3g infer`."""

    turntable: bool = setting(False, "Also write an orbit video.")
    viewer: bool = setting(False, "Also write an HTML page that shows the object.")
    seed: int = setting(0, "Picture and seed give the same file on the same machine.")
    samples: int = setting(1, "Objects per picture, with seeds SEED, SEED+1, ….")
    elevation: str = setting("10", "Degrees from which the picture looks down on the object; or auto.")
    fov: float = setting(49.1, "Degrees that the framed object's picture spans; less for a tele lens.")
    refine: float = setting(0.0, "Seconds to fit the visible side to the picture.")
    raw: bool = setting(False, "Write the network's soft splats, not a solid.")
    mask: Path | None = setting(
        None, "Your own matte, white on black or as alpha; or a folder, by the pictures' names."
    )
    foreground_ratio: float = setting(0.8, "Part of the frame that the object fills; training saw 0.8.")
    axes: str | None = setting(None, f"{', '.join(AXES)}; default: what each format's viewers expect.")
    ply_layout: str = setting("compact", f"Columns of a .ply: {' or '.join(LAYOUTS)} (62).")


@dataclass(frozen=True)
class Request(Options):
    """What to write for each picture, checked."""

    out: Path = Path("out")  # output folder
    formats: tuple[str, ...] = ("ply",)  # some of `FORMATS`
    matte: str = "auto"  # as in `dd3g.picture.load_image`
    stem: str | None = None  # of the one result's files; None takes the picture's

    def __post_init__(self) -> None:
        if "" in self.formats:
            raise UserError(f"unknown format '': use one of {', '.join(FORMATS)}")
        for format in self.formats:
            check_format(format, self.axes, known=FORMATS)
        check_layout(self.ply_layout, self.formats)
        if not 1 <= self.samples <= SAMPLES:
            raise UserError(f"--samples {self.samples} is out of range: give 1 to {SAMPLES}")
        highest = SEEDS - self.samples
        if not 0 <= self.seed <= highest:
            raise UserError(f"--seed {self.seed} is out of range: give 0 to {highest}")
        check_how(**self.how, dashes="--")
        if not 0.1 <= self.foreground_ratio <= 1:
            raise UserError(f"--foreground-ratio {self.foreground_ratio:g} is out of range: give 0.1 to 1")
        if self.stem is not None and self.samples > 1:
            raise UserError(f"-o names one file, but there are {self.samples} --samples: give a folder")

    @property
    def how(self) -> dict[str, Any]:
        """Options of `Generator.generate`, but for the seed."""
        elevation: float | str = self.elevation
        with contextlib.suppress(TypeError, ValueError):
            elevation = float(elevation)
        return {"elevation": elevation, "fov": self.fov, "raw": self.raw, "refine": self.refine}

    def mask_of(self, picture: str, below: Path = Path()) -> Path | None:
        """The mask that belongs to the picture at a path, None where none was given.

        Where it lies in a folder `below` the one searched, the same of the masks comes first.

        Raises:
            UserError: a folder of masks without one for the picture.
        """
        if self.mask is None or not self.mask.is_dir():
            return self.mask
        folder = self.mask / below if (self.mask / below).is_dir() else self.mask
        stem, itself = Path(picture).stem, Path(picture).absolute()
        named = sorted(p for p in folder.iterdir() if p.stem == stem and p.suffix.lower() in SUFFIXES)
        found = [path for path in named if path.absolute() != itself]
        if not found:
            raise UserError(f"no mask for {picture} in {folder}: looked for {stem}.*")
        return found[0]


def how_of(request: Request, picture: Picture) -> dict[str, Any]:
    """`request.how` with the elevation in degrees, estimated from the picture where it is left open."""
    from dd3g.pepd.elevation import degrees_of

    how = request.how
    return how | {"elevation": degrees_of(how["elevation"], picture.rgba)}


def write_results(
    generator: Generator, picture: Picture, stem: str, request: Request
) -> Iterator[dict[str, Any]]:
    """Generate and write everything for one picture, sample by sample; the matte comes with the first.

    Args:
        generator: makes the objects.
        picture: of the object.
        stem: of the names of its results; may begin with folders below the output folder.
        request: what to write.

    Yields:
        `{"seed", "gaussians", "files"}` as --json prints it, once the sample's files have their places, and
        before a signal can end the work; `gaussians` is how many the splat files hold. `elevation` is there
        where it was estimated.

    Raises:
        UserError: when the generator made nothing visible, or the files cannot be written.
    """
    from dd3g.io.splats import MIN_OPACITY

    how = how_of(request, picture)
    told = {"elevation": how["elevation"]} if request.elevation == AUTO else {}
    for k in range(request.samples):
        name = stem if request.samples == 1 else f"{stem}-{k}"
        # On the CPU from here on: turntables on CUDA would need a compiler, mps has no rasteriser.
        gaussians = generator.generate(picture, seed=request.seed + k, **how).to("cpu")
        with temporary_folder(request.out) as folder:
            try:
                if k == 0:
                    picture.save(folder / f"{stem}.matte.png")
                files = _write_one(gaussians, folder, name, request)
            except UserError as e:
                raise UserError(str(e).replace(str(folder), str(request.out))) from e
            count = len(gaussians.pruned(MIN_OPACITY))
            with signals_wait():
                move_files(folder, request.out)
                yield {"seed": request.seed + k, "gaussians": count, **told, "files": files}


def are_there(stem: str, request: Request) -> bool:
    """Whether everything that `write_results` would write for a picture lies in the output folder."""
    names = [stem] if request.samples == 1 else [f"{stem}-{k}" for k in range(request.samples)]
    suffixes = [*request.formats, *([PAGE] if request.viewer else [])]
    wanted = [f"{stem}.matte.png", *(f"{name}.{suffix}" for name in names for suffix in suffixes)]
    movies = names if request.turntable else []  # of either kind, see `dd3g.io.turntable`
    return all((request.out / name).is_file() for name in wanted) and all(
        any((request.out / f"{name}.turntable{end}").is_file() for end in (".mp4", ".webp"))
        for name in movies
    )


def _write_one(gaussians: Gaussians, folder: Path, name: str, request: Request) -> list[str]:
    """Write one object into `folder`; returns the paths that its files will have in the output folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for suffix in request.formats:
        files += write_file(gaussians, folder / f"{name}.{suffix}", suffix, request)
    if request.turntable:
        from dd3g.io.turntable import render_turntable, save_turntable

        # An animation where there is no video encoder.
        files.append(save_turntable(render_turntable(gaussians), folder / f"{name}.turntable.mp4"))
    if request.viewer:
        files += write_file(gaussians, folder / f"{name}.{PAGE}", PAGE, request)
    return [str(request.out / file.relative_to(folder)) for file in files]


def write_file(gaussians: Gaussians, path: Path, format: str, request: Request) -> list[Path]:
    """Write one object as one of `FORMATS`, or as a `PAGE`; returns its files, the named one first."""
    if format == PAGE:
        from dd3g.io.viewer import save_viewer

        return [save_viewer(gaussians, path)]
    if format in MESHES:
        from dd3g.pepd.mesh import mesh_of

        return mesh_of(gaussians).save(path)
    from dd3g.io.splats import save

    return [save(gaussians, path, request.axes, format, layout=request.ply_layout)]
