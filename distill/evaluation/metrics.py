"""Picture metrics of rendered views against ground truth, per view, and their means with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.pictures import on_white

MAX_PSNR = 100.0  # of equal pictures, so that means stay finite


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """(V,) PSNR in dB of (V, C, H, W) in 0..1, over a (V, 1, H, W) mask if given; NaN where that is empty."""
    error = (a - b).square().mean(1, keepdim=True)
    weight = torch.ones_like(error) if mask is None else mask.to(error)
    mse = (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    return -10 * torch.log10(mse.clamp(min=10 ** (-MAX_PSNR / 10)))


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(V, 1, H, W) SSIM (Wang et al. 2004, eq. 13; Gaussian window, sigma 1.5, 11 x 11), channel mean."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, full = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    return full.mean(1, keepdim=True)


def view_metrics(rgb: Tensor, alpha: Tensor | None, truth: Tensor) -> dict[str, Tensor]:
    """Every metric of every view.

    Args:
        rgb: (V, 3, H, W) prediction over white.
        alpha: (V, 1, H, W) its alpha; None for pictures without, whose mask metrics are NaN.
        truth: (V, 4, H, W) straight RGBA.

    Returns:
        name -> (V,): psnr, ssim (full picture over white, SSIM without the window's margin); fg_psnr, fg_ssim
        (over pixels with true alpha > 0.5); iou (of alpha > 0.5); holes (share of the true mask with
        alpha < 0.5), holes_eroded (the same for the mask shrunk by a pixel); alpha_inside, leak (mean alpha
        inside and outside the true mask); color_error (mean absolute difference of the foregrounds' mean
        colours, an empty prediction counting as white).
    """
    target, true_alpha = on_white(truth), truth[:, 3:]
    mask = true_alpha > 0.5
    similarity = ssim_map(rgb, target)
    margin = 5
    scores = {
        "psnr": psnr(rgb, target),
        "ssim": similarity[..., margin:-margin, margin:-margin].mean((1, 2, 3)),
        "fg_psnr": psnr(rgb, target, mask),
        "fg_ssim": _mean(similarity, mask),
    }
    if alpha is None:
        names = ("iou", "holes", "holes_eroded", "alpha_inside", "leak", "color_error")
        return scores | dict.fromkeys(names, torch.full((len(rgb),), torch.nan))
    seen = alpha > 0.5
    inner = -F.max_pool2d(-mask.float(), 3, 1, 1) > 0.5
    gap = alpha < 0.5
    return scores | {
        "iou": (seen & mask).sum((1, 2, 3)) / (seen | mask).sum((1, 2, 3)),
        "holes": _mean(gap, mask),
        "holes_eroded": _mean(gap, inner),
        "alpha_inside": _mean(alpha, mask),
        "leak": _mean(alpha, ~mask),
        "color_error": (_mean_color(rgb, alpha) - _mean_color(target, true_alpha)).abs().mean(1),
    }


def alpha_fuzz(alpha: Tensor, truth: Tensor) -> Tensor:
    """(V,) haze: alpha strictly between .05 and .95 beyond one pixel of an edge, by the object's size.

    The number of such pixels by the number of pixels of the true mask, so that haze counts alike on objects
    of any size and around them. The edges are those of the true mask and of the predicted one, alpha > 0.5:
    a sharp edge in the wrong place is not haze, and IoU counts it. A pixel is within one pixel of an edge
    when its 3 x 3 neighbourhood holds pixels inside and pixels outside that mask.

    Args:
        alpha: (V, 1, H, W) predicted.
        truth: (V, 1, H, W) true alpha; the mask is where it exceeds 0.5. NaN where that is empty.
    """
    mask = truth > 0.5
    soft = (alpha > 0.05) & (alpha < 0.95) & ~_edge(mask) & ~_edge(alpha > 0.5)
    area = mask.sum((1, 2, 3))
    return torch.where(area > 0, soft.sum((1, 2, 3)) / area, torch.nan)


def _edge(mask: Tensor) -> Tensor:
    """Pixels of (V, 1, H, W) within one pixel of a mask's edge."""
    near = F.max_pool2d(mask.float(), 3, 1, 1) > 0.5
    inner = -F.max_pool2d(-mask.float(), 3, 1, 1) > 0.5
    return near & ~inner


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """(V,) mean of (V, 1, H, W) over a mask; NaN where that is empty."""
    return (values * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def _mean_color(rgb: Tensor, alpha: Tensor) -> Tensor:
    """(V, 3) alpha-weighted mean colour of what stands before white; white where nothing does."""
    weight = alpha.sum((2, 3))  # (V, 1)
    premultiplied = (rgb - (1 - alpha)).sum((2, 3))  # (V, 3)
    return torch.where(weight > 1e-3, premultiplied / weight.clamp(min=1e-3), torch.ones(3))


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> dict[str, float | int | None]:
    """Mean with a 95 % percentile bootstrap interval of 2000 resamples; NaN values are left out.

    Returns:
        mean, low, high (None when nothing is left) and n, the number of values that counted.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    if not len(x):
        return {"mean": None, "low": None, "high": None, "n": 0}
    draws = np.random.default_rng(seed).integers(len(x), size=(2000, len(x)))
    low, high = np.quantile(x[draws].mean(1), [0.025, 0.975])
    return {
        "mean": round(float(x.mean()), 5),
        "low": round(float(low), 5),
        "high": round(float(high), 5),
        "n": len(x),
    }


def azimuth_distance(azimuth: Tensor) -> Tensor:
    """Degrees of any size -> distance in azimuth from 0, within 0..180."""
    return ((azimuth + 180) % 360 - 180).abs()
