"""What is the object? Mattes by u2netp, by any model of rembg, or that a user gives beside a picture.

Where a soft edge of a photo mixes the object with its background, `unmixed` finds the object's own colours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from dd3g.errors import UserError
from dd3g.models import obtain_model
from dd3g.picture.decoding import NAMELESS, Source, name_of, read_rgba
from dd3g.picture.framing import CORE, SOLID, box_sum, is_cut_out, object_box

FOUND = 0.9  # saliency from which there is an object in the picture
SPECK = 0.03  # of the picture, below which a model has seen a speck of dust
THROUGHOUT = 0.98  # of the picture, from which a model tells nothing apart
UNSURE = 1.5  # times the area of an object; that of soft edges reaches once
VAGUE = 0.25  # times the area of an object; that of soft edges, from which smooth noise is suspected
EVEN = 1.4  # times as steep as the rest is what smooth noise is taken for, at most
NOISE = 25  # levels of grey, of 255, by which noise that is more than a sensor's differs


def read_mask(source: Source, size: tuple[int, int]) -> Image.Image:
    """A matte that comes as a picture of its own: its alpha where it has some, else its brightness.

    Alpha that is nearly the same throughout is none where the colours are black and white.

    Args:
        source: as in `read_rgba`.
        size: width and height of the picture that it belongs to, upright.

    Returns:
        Mode L, of that size.

    Raises:
        UserError: when it cannot be read, is black throughout, or has other proportions.
    """
    name = name_of(source) if name_of(source) != NAMELESS else "the mask"
    rgba = read_rgba(source, name)
    alpha, grey = rgba.getchannel("A"), rgba.convert("L")
    mask = grey if alpha.getextrema()[0] == 255 or (_is_painted(rgba) and not is_cut_out(rgba)) else alpha
    high = np.asarray(mask).max()
    if high == 1:  # a map of labels, 1 the object
        mask, high = mask.point(lambda value: 255 * value), 255
    if high < SOLID:
        how = f"nearly black (at most {high} of 255)" if high else "black throughout"
        raise UserError(f"{name} is {how}: paint the object white")
    if abs(mask.width * size[1] - mask.height * size[0]) > 0.02 * mask.width * size[1] + max(size):
        how = "give a mask of the whole picture, turned the same way"
        if name.endswith(".matte.png"):
            how = "a saved cut-out is framed; edit it, and give it in place of the picture"
        raise UserError(
            f"{name} is {mask.width}x{mask.height} pixels and its picture {size[0]}x{size[1]}: {how}"
        )
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _is_painted(image: Image.Image) -> bool:
    """Whether the colours of a picture (RGBA) are white on black."""
    pixels = np.asarray(image)  # (H, W, 4)
    grey = pixels[..., 0]
    return bool(grey.min() < SOLID and grey.max() >= CORE and (pixels[..., :3] == grey[..., None]).all())


def predict_matte(image: Image.Image, model: str, threads: int = 0) -> Image.Image:
    """Ask a matting model what the object is.

    Where onnxruntime has CUDA (the package onnxruntime-gpu) the model runs on the GPU that torch uses in the
    thread of the first call, or on the first one.

    Args:
        image: RGB.
        model: "auto" or "u2netp", or another model that rembg has.
        threads: of the CPU for one picture; 0 takes all. Of u2netp only; the others take OMP_NUM_THREADS.

    Returns:
        Matte of the same size, mode L; u2netp's is empty where it finds no object.

    Raises:
        UserError: when the model is unknown, or not on this machine and cannot be fetched.
    """
    if model not in ("auto", "u2netp"):
        return _rembg_session(model).predict(image)[0].convert("L")
    session = _u2netp_session(threads)
    small = np.asarray(image.resize((320, 320), Image.Resampling.LANCZOS), np.float32)
    small = (small / max(small.max(), 1) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    batch = small.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, 320, 320)
    saliency = session.run(None, {session.get_inputs()[0].name: batch})[0][0, 0]  # (320, 320)
    low, high = saliency.min(), saliency.max()
    # Blank pictures reach .002 to .08, a single odd pixel .51, most noise under .85, objects .98 and more:
    # stretched, each would count.
    mask = (saliency - low) / (high - low) if high > FOUND else np.zeros_like(saliency)
    return Image.fromarray((mask * 255).astype(np.uint8)).resize(image.size, Image.Resampling.LANCZOS)


def shows_object(image: Image.Image) -> bool:
    """Whether the matte that a model gave a picture (RGBA) is that of an object.

    Blank pictures and noise are taken for a speck, for one object throughout, or for something without an
    outline. White noise may have one, but inside it no pixel is like its neighbours. Smooth noise (clouds,
    fractals) is as steep inside it and along it as elsewhere, which photos of objects are not.
    """
    alpha = image.getchannel("A")
    matte, box = np.asarray(alpha), object_box(alpha)
    if matte.max() < CORE or box is None or max(box[2] - box[0], box[3] - box[1]) < SPECK * max(matte.shape):
        return False
    sure, unsure = (matte >= CORE).mean(), ((matte >= SOLID) & (matte < 255 - SOLID)).mean()
    if sure > THROUGHOUT or unsure > UNSURE * sure:
        return False
    grey, inside = np.asarray(image.convert("RGB").convert("L"), np.float64), matte >= CORE  # (H, W)
    grey = grey - grey[inside].mean()
    pairs = inside[:, 1:] & inside[:, :-1]
    left, right = grey[:, :-1][pairs], grey[:, 1:][pairs]
    alike = (left * right).sum() / max((left**2 + right**2).sum() / 2, 1e-9)
    if unsure > VAGUE * sure and _even(image):
        return False
    return bool(grey[inside].std() < NOISE or len(left) < 400 or abs(alike) > 0.15)


def _even(image: Image.Image) -> bool:
    """Whether a picture (RGBA) changes as much where its matte says there is an object as elsewhere."""
    parts = [image.convert("RGB").convert("L"), image.getchannel("A")]  # together, alpha would weigh colours
    for part in parts:
        part.thumbnail((256, 256))
    grey, matte = (np.asarray(part, np.float64) for part in parts)
    inside, outside = matte >= CORE, matte < SOLID
    outline = np.hypot(*np.gradient(matte)) > 16
    if not (inside.any() and outside.any() and outline.any()):
        return False
    slope = np.hypot(*np.gradient(grey))
    within = slope[inside].mean() / max(slope[outside].mean(), 0.1)
    return bool(1 / EVEN < within < EVEN and slope[outline].mean() < EVEN * max(slope.mean(), 0.1))


def unmixed(image: Image.Image, matte: Image.Image) -> Image.Image:
    """A framed photo with a matte (mode L) for its alpha, and colours without the background's share.

    It is RGBA as photographed, transparent where the frame reaches outside the picture.
    """
    rgba = np.asarray(image) / 255.0  # (H, W, 4)
    front = estimate_foreground(rgba[..., :3], np.asarray(matte) / 255.0, rgba[..., 3])
    cut = Image.fromarray(np.rint(255 * front).astype(np.uint8))
    cut.putalpha(matte)
    return cut


def estimate_foreground(image: np.ndarray, alpha: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """Solve image = alpha * F + (1 - alpha) * B for F by blur fusion.

    After M. Forte, Approximate Fast Foreground Colour Estimation, ICIP 2021: F and B are first weighted means
    of the image around a pixel; what they leave of the image is then given to them. Unlike the paper, weights
    are cubed, so that the soft edge itself hardly counts in the means, and B is corrected like F: at edges 4
    to 16 pixels wide that leaves a third to a tenth of the paper's error on plain colours and two thirds on
    striped ones.

    Args:
        image: (H, W, 3) floats in 0..1, as photographed.
        alpha: (H, W) floats in 0..1.
        inside: (H, W) floats, 0 where the image says nothing about the background; None trusts all of it.

    Returns:
        (H, W, 3) foreground colour in 0..1; of no meaning where alpha is 0 far from the object.
    """
    picture = np.moveaxis(image, -1, 0)  # (3, H, W)
    front, back = picture, picture
    a, b = alpha**3, (1 - alpha) ** 3 * (1 if inside is None else inside)  # (H, W)
    first = max(2, max(alpha.shape) // 16)  # pixels, as wide as the soft edge
    for radius in (first, max(1, first // 2), min(3, first)):  # equations 4 to 7 of the paper
        sums = np.stack([box_sum(values, radius) for values in (*front * a, a, *back * b, b)])  # (8, H, W)
        # Where one of the two is nowhere near, the image has nothing to take it from.
        front = np.where(sums[3] > 1e-3, sums[:3] / np.maximum(sums[3], 1e-3), picture)
        back = np.where(sums[7] > 1e-3, sums[4:7] / np.maximum(sums[7], 1e-3), picture)
        left = picture - alpha * front - (1 - alpha) * back
        front, back = np.clip(front + alpha * left, 0, 1), np.clip(back + (1 - alpha) * left, 0, 1)
    return np.moveaxis(front, 0, -1)


def _providers() -> list[Any]:
    from onnxruntime import get_available_providers

    found: list[Any] = []
    if "CUDAExecutionProvider" in get_available_providers():
        import torch

        # onnxruntime's own default is the first GPU for every process.
        gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        # Plain where it can be: rembg's warning of a CUDA that does not load takes names alone.
        found = [("CUDAExecutionProvider", {"device_id": gpu}) if gpu else "CUDAExecutionProvider"]
    return [*found, "CPUExecutionProvider"]


@lru_cache(maxsize=1)
def _u2netp_session(threads: int = 0) -> Any:
    # Run here and not through rembg, whose import compiles matting kernels for about a minute on first use.
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    return InferenceSession(obtain_model("u2netp"), options, providers=_providers())


@lru_cache(maxsize=1)
def _rembg_session(model: str) -> Any:
    try:
        from rembg import new_session
        from rembg.sessions import sessions_names_downloadable as names  # the rest send pictures to a service

        if model not in names:
            raise UserError(f"no matting model is called {model!r}: choose from {', '.join(names)}")
        return new_session(model, providers=_providers())
    except UserError:
        raise
    except ImportError as e:
        raise UserError(
            f"the matting model {model!r}, if it is one of rembg's, needs the extra 'matte': pip install "
            "'dd3g[matte]', or leave it out to use u2netp"
        ) from e
    except Exception as e:
        raise UserError(
            f"the matting model {model!r} could not be loaded ({e}): leave it out to use u2netp, or give a "
            "picture with a transparent background"
        ) from e
