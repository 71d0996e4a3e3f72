"""Drawn pictures -> RGBA pictures framed like those the generator learns from, off the drawing's path.

Mattes come from the CPU, or from the GPU where onnxruntime-gpu is installed in place of onnxruntime.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from dd3g.command.setting import check_ranges, setting
from dd3g.machine import cores_each
from dd3g.picture.framing import cut_frame, object_frame
from dd3g.picture.matting import predict_matte, unmixed


@dataclass
class MatteConfig:
    """How objects are cut out; pictures that come with alpha need no model."""

    model: str = setting("u2netp", "or another model of rembg, such as isnet-general-use or birefnet-general")
    workers: int = setting(0, "pictures cut out at a time; 0: this process's share of the CPU cores", 0)
    decontaminate: bool = setting(True, "take the background's colour out of soft edges")
    size: int = setting(256, "pixels per side of the result", 16, 4096)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("matte model is empty: give u2netp or the name of a model of rembg")
        check_ranges(self, "matte ")


@dataclass(frozen=True)
class Matted:
    """A cut-out picture."""

    # (S, S, 4) uint8, straight alpha, the object in the middle, its longest side 80 % of the frame; colour is
    # 0 where alpha is 0
    rgba: np.ndarray
    alpha: np.ndarray  # (H, W) uint8 matte of the picture as drawn, before framing


def matte_and_frame(image: Image.Image, config: MatteConfig) -> Matted | None:
    """Find the object, frame it, and clean its edges.

    Args:
        image: RGBA, whose alpha is the matte even when it is solid throughout; anything else is taken as RGB
            and its matte asked of the model.
        config: the model, whether edges are cleaned, and the size.

    Returns:
        The cut-out, or None when the matte is empty.

    Raises:
        UserError: when the matting model is unknown or not on this machine.
    """
    given = image.mode == "RGBA"
    picture = image if given else image.convert("RGB")
    matte = image.getchannel("A") if given else predict_matte(picture, config.model, threads=1)
    frame = object_frame(matte)
    if frame is None:
        return None
    if given:
        rgba = np.array(cut_frame(picture, frame, config.size))
    else:
        # Colours and matte are framed apart: premultiplied resampling would mix what is to be separated.
        opaque = cut_frame(picture.convert("RGBA"), frame, config.size)
        alpha = cut_frame(matte, frame, config.size)
        rgba = np.array(opaque if not config.decontaminate else unmixed(opaque, alpha))
        rgba[..., 3] = alpha
    rgba[rgba[..., 3] == 0] = 0
    return Matted(rgba, np.array(matte))


class MattePool(AbstractContextManager):
    """Cuts out batches of pictures while others are drawn; leaving it waits for those that have begun.

    Threads do it: onnxruntime, Pillow and numpy release Python's lock for all but a few per cent of the work,
    so they hardly slow the thread that draws, share one copy of the network, and die with the process.
    """

    def __init__(self, config: MatteConfig) -> None:
        self.config = config
        self._pictures = ThreadPoolExecutor(config.workers or cores_each(), "matte")
        self._batches = ThreadPoolExecutor(1, "matte-batch")

    def warm(self) -> None:
        """Load the matting model now, so that a missing model is reported before anything is drawn.

        It goes to the GPU of the thread that calls this, which those of the pool would not know.

        Raises:
            UserError: when the model is unknown or not on this machine.
        """
        predict_matte(Image.new("RGB", (32, 32)), self.config.model, threads=1)

    def submit(self, images: list[Image.Image]) -> Future[list[Matted | None]]:
        """Cut out a batch in the background; batches are finished in the order they came in.

        Returns:
            Future of one result a picture; it raises what `matte_and_frame` raises.
        """
        matte = partial(matte_and_frame, config=self.config)
        return self._batches.submit(lambda: list(self._pictures.map(matte, images)))

    def __exit__(self, *exc: object) -> None:
        self._batches.shutdown(cancel_futures=True)
        self._pictures.shutdown(cancel_futures=True)
