"""A teacher and LGM as one generator: `dd3g infer --weights imagedream+lgm`.

The slow way to today's best quality, and the reference that a distilled generator is measured by: tens of
calls of a diffusion model give four views, of which LGM makes Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from dd3g.cameras import ELEVATION, FOVY
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd.elevation import degrees_of
from dd3g.pepd.perspective import seen_under
from dd3g.picture import as_picture
from dd3g.picture.framing import check_how
from distill.lgm import LGM, SIZE, check_cameras, load_lgm
from distill.simulation.ode import views_of
from distill.teachers import Teacher, load


@dataclass
class TeacherAndLGM:
    """Picture to Gaussians by way of a teacher's views; stands where a `Generator` does in `dd3g infer`.

    Raises:
        UserError: when the teacher's views are not those that LGM needs.
    """

    teacher: Teacher  # with four views around the object
    lgm: LGM  # the reconstructor
    size: int = SIZE  # pixels per side of the views that LGM sees
    captured: ClassVar = None

    def __post_init__(self) -> None:
        check_cameras(self.teacher.rig)

    def compiled(self) -> TeacherAndLGM:
        """Itself: the time goes into the teacher's steps."""
        return self

    def generate(
        self,
        picture: Any,
        seed: int = 0,
        elevation: float | str = ELEVATION,
        raw: bool = False,
        refine: float = 0.0,
        matte: str = "auto",
        mask: Any = None,
        fov: float = FOVY,
    ) -> Gaussians:
        """One object, (N,) Gaussians on LGM's device; the arguments are those of `Generator.generate`.

        The seed's noise is drawn on the CPU. An elevation of 0 is what LGM's authors give; its splats are raw
        always, as it makes them.

        Raises:
            UserError: for `refine`, which fits a solid's discs, or when the elevation or fov is out of range.
        """
        check_how(elevation, fov, False, 0)
        if refine:
            raise UserError("--refine fits the discs of a solid body, and LGM gives none: leave it out")
        rgba = as_picture(picture, matte, mask).rgba
        rig = self.teacher.rig_at(degrees_of(elevation, rgba))
        device = next(self.lgm.parameters()).device
        views = views_of(self.teacher, rgba, seed, cameras=rig, device=device)
        gaussians = self.lgm.reconstruct(views[None].to(device), rig.to(device), self.size)[0]
        return gaussians if fov == FOVY else seen_under(gaussians, rig[:1], fov)


def is_pair(name: str) -> bool:
    """Whether a name is TEACHER+LGM, and not that of a folder with a plus sign."""
    return "+" in name and not Path(name).exists()


def load_two_stage(name: str, device: str | torch.device = "cpu") -> TeacherAndLGM:
    """Load TEACHER+LGM: what `distill.teachers.load` and `load_lgm` take, joined by a plus sign.

    Raises:
        UserError: when either cannot be loaded.
    """
    teacher, _, lgm = name.rpartition("+")
    return TeacherAndLGM(load(teacher, device), load_lgm(lgm, device))
