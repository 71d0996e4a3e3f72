from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dd3g.errors import UserError
from distill.evaluation.learned import STLPIPS
from distill.evaluation.metrics import (
    alpha_fuzz,
    azimuth_distance,
    bootstrap_mean,
    psnr,
    ssim_map,
    view_metrics,
)
from distill.pictures import on_white


def test_psnr_values():
    a = torch.full((2, 3, 8, 8), 0.5)
    assert psnr(a, a + 0.1).tolist() == pytest.approx([20, 20], abs=1e-4)
    assert psnr(a, a).tolist() == [100, 100]
    b = a.clone()
    b[0, :, :4] += 0.1
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :2] = 1
    assert psnr(a, b)[0].item() == pytest.approx(20 + 10 * math.log10(2), abs=1e-4)
    masked = psnr(a, b, mask)
    assert masked[0].item() == pytest.approx(20, abs=1e-4) and masked[1].isnan()


def test_ssim_equals_scikit_image():
    from skimage.metrics import structural_similarity

    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 24, 24, generator=g)
    b = (a + 0.2 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    scores = view_metrics(b, None, torch.cat([a, torch.ones(2, 1, 24, 24)], 1))
    for v in range(2):
        expected = structural_similarity(
            a[v].numpy(), b[v].numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert scores["ssim"][v].item() == pytest.approx(expected, abs=1e-4)
    assert ssim_map(a, a).min() > 0.9999


def test_mask_metrics_equal_loops():
    g = torch.Generator().manual_seed(1)
    size = 12
    truth = torch.rand(1, 4, size, size, generator=g)
    truth[:, 3] = 0
    truth[0, 3, 2:10, 3:9] = 1
    alpha = torch.rand(1, 1, size, size, generator=g)
    rgb = torch.rand(1, 3, size, size, generator=g) * alpha + 1 - alpha
    scores = view_metrics(rgb, alpha, truth)
    inside, inner, outside, union, both = [], [], [], 0, 0
    for y in range(size):
        for x in range(size):
            a, t = alpha[0, 0, y, x].item(), truth[0, 3, y, x].item() > 0.5
            (inside if t else outside).append(a)
            union += t or a > 0.5
            both += t and a > 0.5
            around = truth[0, 3, y - 1 : y + 2, x - 1 : x + 2]
            if t and (around > 0.5).all():
                inner.append(a)
    assert len(inner) == 6 * 4
    assert scores["iou"].item() == pytest.approx(both / union)
    assert scores["holes"].item() == pytest.approx(np.mean(np.array(inside) < 0.5))
    assert scores["holes_eroded"].item() == pytest.approx(np.mean(np.array(inner) < 0.5))
    assert scores["alpha_inside"].item() == pytest.approx(np.mean(inside), abs=1e-6)
    assert scores["leak"].item() == pytest.approx(np.mean(outside), abs=1e-6)
    mask = truth[:, 3:] > 0.5
    assert scores["fg_psnr"].item() == pytest.approx(psnr(rgb, on_white(truth), mask).item())
    picked = ssim_map(rgb, on_white(truth))[mask]
    assert scores["fg_ssim"].item() == pytest.approx(picked.mean().item(), abs=1e-5)


def test_color_error():
    truth = torch.zeros(1, 4, 16, 16)
    truth[:, 0, 4:12, 4:12] = 0.6
    truth[:, 3, 4:12, 4:12] = 1
    alpha = torch.zeros(1, 1, 16, 16)
    alpha[..., 2:6, 2:6] = 0.5  # elsewhere and half transparent: only the colour counts
    rgb = torch.tensor([0.6, 0.3, 0.0])[:, None, None] * alpha + 1 - alpha
    assert view_metrics(rgb, alpha, truth)["color_error"].item() == pytest.approx(0.1, abs=1e-5)
    white = view_metrics(torch.ones(1, 3, 16, 16), torch.zeros(1, 1, 16, 16), truth)
    assert white["color_error"].item() == pytest.approx((0.4 + 1 + 1) / 3, abs=1e-5)
    without = view_metrics(rgb, None, truth)
    assert without["iou"].isnan().all() and not without["psnr"].isnan().any()


def test_bootstrap():
    values = [1.0, 2.0, 4.0, math.nan, 9.0]
    result = bootstrap_mean(values, seed=3)
    assert result == bootstrap_mean(values, seed=3)
    many = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(many, seed=3)["low"] != bootstrap_mean(many, seed=4)["low"]
    assert result["mean"] == 4.0 and result["n"] == 4
    rng = np.random.default_rng(3)
    kept = np.array([1.0, 2.0, 4.0, 9.0])
    means = sorted(kept[row].mean() for row in rng.integers(4, size=(2000, 4)))
    assert result["low"] == pytest.approx(np.quantile(means, 0.025), abs=1e-4)
    assert result["high"] == pytest.approx(np.quantile(means, 0.975), abs=1e-4)
    assert bootstrap_mean([math.nan])["mean"] is None
    assert bootstrap_mean([2.5]) == {"mean": 2.5, "low": 2.5, "high": 2.5, "n": 1}


def test_azimuth_distance():
    degrees = torch.tensor([0.0, 350, 180, -190, 725, 270])
    assert azimuth_distance(degrees).tolist() == [0, 10, 180, 170, 5, 90]


def random_weights(path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    shapes = {"1.0": (64, 3, 11, 11), "2.5": (192, 64, 5, 5), "3.9": (384, 192, 3, 3),
              "4.11": (256, 384, 3, 3), "5.13": (256, 256, 3, 3)}  # fmt: skip
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for i, (name, shape) in enumerate(shapes.items()):
        state[f"net.slice{name}.weight"] = torch.randn(shape, generator=g) / math.sqrt(math.prod(shape[1:]))
        state[f"net.slice{name}.bias"] = torch.zeros(shape[0])
        state[f"lin{i}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=g) / shape[0]
    torch.save(state, path)
    return path


def test_stlpips_is_a_distance(tmp_path):
    metric = STLPIPS(random_weights(tmp_path / "weights.pth"))
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=g)
    assert metric(a, a).tolist() == [0, 0]
    assert (metric(a, b) > 1e-4).all()
    assert torch.allclose(metric(a, b), metric(b, a), atol=1e-7)
    assert torch.equal(metric(metric.features(a), b), metric(a, b))
    assert [f.shape[1:] for f in metric.features(a)][0] == (64, 30, 30)
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="bad.pth does not hold the ST-LPIPS weights"):
        STLPIPS(tmp_path / "bad.pth")


def test_alpha_fuzz_equals_loops():
    g = torch.Generator().manual_seed(4)
    size = 14
    truth = torch.zeros(3, 1, size, size)
    truth[0, 0, 3:11, 0:8] = 1  # touches the border
    truth[1, 0, 6, 6] = 1
    truth[2] = torch.rand(1, size, size, generator=g)
    alpha = torch.rand(3, 1, size, size, generator=g)
    alpha[:, :, ::2] = 0.3 * alpha[:, :, ::2]  # few edges of its own
    alpha[:, :, 1::2, :9] = 0.4
    alpha[0, 0, 5, 5], alpha[0, 0, 12, 12] = 0.05, 0.95  # strictly between
    for found, a, t in zip(alpha_fuzz(alpha, truth), alpha[:, 0], truth[:, 0] > 0.5, strict=True):
        count = 0
        for y in range(size):
            for x in range(size):
                around = [
                    (v, u)
                    for v in range(max(y - 1, 0), min(y + 2, size))
                    for u in range(max(x - 1, 0), min(x + 2, size))
                ]
                far = all(len({bool(m[place]) for place in around}) == 1 for m in (t, a > 0.5))
                count += far and 0.05 < a[y, x] < 0.95
        assert found.item() == pytest.approx(count / int(t.sum()))
        assert t.sum() < 2 or count


def test_alpha_fuzz_of_haze_and_of_a_clean_edge():
    truth = torch.zeros(1, 1, 20, 20)
    truth[..., 5:15, 5:15] = 1
    soft = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert alpha_fuzz(soft, truth).item() == 0  # an edge of one pixel to either side
    assert alpha_fuzz(0.4 * truth, truth).item() == pytest.approx(0.64)  # 8 x 8 of 10 x 10 pixels
    everywhere = torch.full_like(truth, 0.4)
    assert alpha_fuzz(everywhere, truth).item() == pytest.approx((400 - 12 * 12 + 64) / 100)
    sideways = torch.nn.functional.avg_pool2d(truth, (1, 3), 1, (0, 1))
    assert alpha_fuzz(sideways.roll(4, -1), truth).item() == 0  # an edge elsewhere is no haze
    assert alpha_fuzz(everywhere, 0 * truth).isnan()  # infinite, it would be the mean of all objects
