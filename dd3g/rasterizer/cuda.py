"""The CUDA engine: gsplat's kernels."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import cache
from importlib import import_module

from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError, first_line
from dd3g.gaussians import Gaussians
from dd3g.io.atomic import only_user


def rasterize_batch(gaussians: Gaussians, cameras: Cameras, antialiased: bool) -> tuple[Tensor, Tensor]:
    """As `rasterize_batch` of `cpu.py`, of float32 on a CUDA device.

    Raises:
        UserError: gsplat's kernels cannot be built.
    """
    from gsplat import rasterization

    B, V = cameras.batch_shape
    if 0 in (B, V, len(gaussians)):  # gsplat cannot launch over nothing
        nothing = gaussians.means.sum() * 0
        frame = (cameras.height, cameras.width)
        channels = gaussians.colors.shape[-1] + 1
        return nothing.expand(B, V, channels, *frame), nothing.expand(B, V, 1, *frame)
    load_kernels()
    image, alpha, _ = rasterization(
        **vars(gaussians),
        viewmats=cameras.viewmats,
        Ks=cameras.Ks,
        width=cameras.width,
        height=cameras.height,
        near_plane=cameras.near,
        far_plane=cameras.far,
        packed=False,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic",
    )  # (B, V, H, W, C + 1), (B, V, H, W, 1)
    return image.movedim(-1, -3), alpha.movedim(-1, -3)


@cache
def load_kernels() -> None:
    """Build gsplat's kernels, minutes once a machine, or wait for a process that does.

    gsplat empties the folder before it builds, whoever is building there.

    Raises:
        UserError: when they cannot be built.
    """
    try:
        place = os.environ.get("TORCH_EXTENSIONS_DIR")
        if not place:
            from torch.utils.cpp_extension import get_default_build_root  # needs setuptools

            place = get_default_build_root()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(UserError):  # nothing is built where nothing can be written
                stack.enter_context(only_user(place, wait=True))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # it prints, where JSON may be due
            kernels = import_module("gsplat.cuda._backend")._C
        if kernels is None:
            raise RuntimeError("there is no CUDA toolkit")
    except Exception as error:  # of compilers, which fail in every way
        raise UserError(
            f"gsplat cannot build its kernels for CUDA ({first_line(error)}): install nvcc of torch's CUDA "
            "version, a C++ compiler and ninja, and set CUDA_HOME (VERBOSE=1 shows the compiler's output); "
            "or rasterise on the CPU: --device cpu, in Python .to('cpu')"
        ) from error
