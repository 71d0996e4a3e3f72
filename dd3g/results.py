"""What `dd3g infer` writes for one picture: splat files, turntable, viewer page, and the matte."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd3g.errors import UserError
from dd3g.io.formats import AXES as AXES
from dd3g.io.formats import MESHES, SPLATS, check_format

if TYPE_CHECKING:
    from dd3g.gaussians import Gaussians
    from dd3g.pepd import Generator
    from dd3g.picture import Picture

FORMATS = (*SPLATS, *MESHES)
SEEDS = 2**64  # torch knows no more


@dataclass(frozen=True)
class Request:
    """What to write for each picture, checked.

    Args:
        out: output folder.
        formats: some of `FORMATS`.
        axes: one of `AXES`, or None for the convention of each format.
        turntable: also write an orbit video.
        viewer: also write a self-contained HTML page.
        seed: seed of the first sample; sample k uses seed + k, below `SEEDS`.
        samples: objects made from one picture, >= 1.
        matte: as in `dd3g.picture.load_image`.
        elevation: degrees from which the pictures look down on their objects, within -80..80.
        raw: write the network's soft splats, not a solid body.
        refine: seconds for which the visible discs are fitted to the picture, 0 or more.
        ply_layout: of a .ply, one of `dd3g.io.formats.LAYOUTS`.
    """

    out: Path
    formats: tuple[str, ...]
    axes: str | None
    turntable: bool
    viewer: bool
    seed: int
    samples: int
    matte: str
    elevation: float = 10.0
    raw: bool = False
    refine: float = 0.0
    ply_layout: str = "compact"

    def __post_init__(self) -> None:
        for format in self.formats:
            check_format(format, self.axes, self.ply_layout, FORMATS)
        if self.samples < 1:
            raise UserError(f"--samples must be at least 1, got {self.samples}")
        highest = SEEDS - self.samples
        if not 0 <= self.seed <= highest:
            raise UserError(f"--seed {self.seed} is out of range: give 0 to {highest}")
        if not -80 <= self.elevation <= 80:
            raise UserError(
                f"--elevation {self.elevation:g} is out of range: give -80 to 80 degrees, 0 for a picture "
                "taken from the side and 40 for one from well above"
            )
        if not 0 <= self.refine < float("inf"):
            raise UserError(f"--refine {self.refine:g} must be a number of seconds, 0 or more")
        if self.raw and self.refine:
            raise UserError(
                "--refine fits the discs of a solid body, which --raw leaves out: give one of the two"
            )


def write_results(generator: Generator, picture: Picture, stem: str, request: Request) -> dict[str, Any]:
    """Generate and write everything for one picture; the files appear together, each whole.

    Returns:
        `{"matte": path, "samples": [{"seed", "gaussians", "files"}]}` as --json prints it; `gaussians` is how
        many the splat files hold.

    Raises:
        UserError: when the generator made nothing visible, or the files cannot be written.
    """
    from dd3g.io.splats import MIN_OPACITY

    samples = []
    with tempfile.TemporaryDirectory(dir=request.out, prefix=".dd3g-") as temporary:
        folder = Path(temporary)
        try:
            picture.save(folder / f"{stem}.matte.png")
            for k in range(request.samples):
                name = stem if request.samples == 1 else f"{stem}-{k}"
                # On the CPU from here on: turntables on CUDA would need a compiler, mps has no rasteriser.
                gaussians = generator.generate(
                    picture,
                    seed=request.seed + k,
                    elevation=request.elevation,
                    raw=request.raw,
                    refine=request.refine,
                ).to("cpu")
                files = _write_one(gaussians, folder, name, request)
                count = len(gaussians.pruned(MIN_OPACITY))
                samples.append({"seed": request.seed + k, "gaussians": count, "files": files})
        except UserError as e:
            raise UserError(str(e).replace(temporary, str(request.out))) from e
        moves = [(path, request.out / path.name) for path in sorted(folder.iterdir())]
        for _, target in moves:
            if target.is_dir():
                raise UserError(
                    f"cannot write {target}: it is a folder; move it away, or choose another folder with -o"
                )
        for path, target in moves:
            path.replace(target)
    return {"matte": str(request.out / f"{stem}.matte.png"), "samples": samples}


def _write_one(gaussians: Gaussians, folder: Path, name: str, request: Request) -> list[str]:
    """Write one object into `folder`; returns the paths that its files will have in the output folder."""
    from dd3g.io.splats import save

    files = [f"{name}.{format}" for format in request.formats]
    for file, format in zip(files[:], request.formats, strict=True):
        if format in MESHES:
            from dd3g.pepd.mesh import mesh_of

            files += [p.name for p in mesh_of(gaussians).save(folder / file)[1:]]
        else:
            save(gaussians, folder / file, request.axes, format, layout=request.ply_layout)
    if request.turntable:
        from dd3g.io.turntable import render_turntable, save_turntable

        movie = save_turntable(render_turntable(gaussians), folder / f"{name}.turntable.mp4")
        files.append(movie.name)  # an animation where there is no video encoder
    if request.viewer:
        from dd3g.io.viewer import save_viewer

        files.append(f"{name}.html")
        save_viewer(gaussians, folder / files[-1], title=name)
    return [str(request.out / file) for file in files]
