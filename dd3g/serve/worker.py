"""Pictures to files for many callers, one after another by one generator."""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dd3g.errors import UserError
from dd3g.io.atomic import scratch_folder
from dd3g.io.formats import MESHES, SPLATS
from dd3g.io.splats import MIN_OPACITY
from dd3g.picture import load_image
from dd3g.picture.framing import AUTO
from dd3g.picture.matting import predict_matte
from dd3g.results import PAGE, Request, how_of, write_file

if TYPE_CHECKING:
    from dd3g.gaussians import Gaussians
    from dd3g.pepd import Generator

FORMATS = (*SPLATS, *MESHES[:-1], PAGE)  # one file each, as an answer is; a mesh.obj would be three
KEPT = 8  # objects that are remembered, so that another format of one costs no second pass


class Unwritten(Exception):
    """The object was made, and this machine could not write it."""


@dataclass(frozen=True)
class Made:
    """One file."""

    data: bytes
    gaussians: int  # how many it holds
    elevation: float  # degrees, as given or estimated
    seconds: float  # from picture to bytes, waiting left out
    warnings: tuple[str, ...]  # about the picture


class Worker:
    """One thread with one generator; its matte is "auto" or "none", for pictures that leave it open."""

    def __init__(self, generator: Generator, matte: str = "auto") -> None:
        self.matte, self.mean_seconds = matte, 1.0
        self._generator = generator
        self._kept: OrderedDict[tuple[Any, ...], tuple[Gaussians, float, tuple[str, ...]]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "dd3g-worker")

    def warm_up(self) -> None:
        """Load all models and compile all kernels, which takes seconds once; on CUDA, one graph."""
        self._thread.submit(self._warm_up).result()
        self.mean_seconds = 1.0

    def submit(self, picture: bytes, format: str, request: Request) -> Future[Made]:
        """Put the bytes of a picture file behind those that wait; can be cancelled until its turn comes.

        The future's result raises UserError where the picture cannot be used, and Unwritten where this
        machine's disk is at fault.
        """
        return self._thread.submit(self._make, picture, format, request)

    def close(self) -> None:
        """End the thread after what it works on; what waits is cancelled."""
        self._thread.shutdown(cancel_futures=True)

    def _warm_up(self) -> None:
        from PIL import Image

        self._generator.compiled()
        if self.matte != "none":
            predict_matte(Image.new("RGB", (32, 32)), self.matte)
        canvas = Image.new("RGBA", (64, 64))
        canvas.paste((200, 80, 40, 255), (16, 16, 48, 48))
        file = io.BytesIO()
        canvas.save(file, "PNG")
        order = Request(formats=FORMATS[:1], matte="none", refine=0.1, elevation=AUTO)
        for format in FORMATS:
            with contextlib.suppress(UserError):  # of a model to which this shows nothing
                self._make(file.getvalue(), format, order)

    def _make(self, picture: bytes, format: str, request: Request) -> Made:
        start = time.perf_counter()
        gaussians, elevation, warnings = self._object(picture, request)
        try:
            with scratch_folder() as folder:
                path = folder / f"object.{format}"
                write_file(gaussians, path, format, request)
                data = path.read_bytes()
        except (UserError, OSError) as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                raise Unwritten(str(error)) from error
            raise
        seconds = time.perf_counter() - start
        self.mean_seconds += 0.3 * (seconds - self.mean_seconds)  # of late
        return Made(data, len(gaussians.pruned(MIN_OPACITY)), elevation, seconds, warnings)

    def _object(self, picture: bytes, request: Request) -> tuple[Gaussians, float, tuple[str, ...]]:
        r = request
        key = (hashlib.sha256(picture).digest(), r.matte, r.foreground_ratio, r.seed, *r.how.values())
        if key not in self._kept:
            found = load_image(picture, matte=r.matte, fill=r.foreground_ratio)
            how = how_of(r, found)
            gaussians = self._generator.generate(found, seed=r.seed, **how)
            self._kept[key] = gaussians.to("cpu"), how["elevation"], found.warnings
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
