from __future__ import annotations

import math
import os
from itertools import product

import numpy as np
import pytest
import torch

from dd3g.errors import UserError
from distill.evaluation import learned
from distill.evaluation.learned import frechet_distance, kernel_distance, load_metrics
from distill.evaluation.paired import paired_difference, sign_flip_p


def test_frechet_distance_equals_its_definition():
    from scipy.linalg import sqrtm

    g = np.random.default_rng(0)
    a, b = g.normal(size=(60, 5)), 1.5 * g.normal(size=(80, 5)) + 0.3
    S, T = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S + T - 2 * np.real(sqrtm(S @ T)))
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(20, rel=1e-6)
    # One dimension: (difference of means)^2 + (difference of deviations)^2.
    x, y = a[:, :1], 3 * a[:, :1] + 1
    s = x.std(ddof=1)
    assert frechet_distance(x, y) == pytest.approx((x.mean() - y.mean()) ** 2 + (2 * s) ** 2, rel=1e-6)


def test_kernel_distance_equals_its_brute_force_twin():
    g = np.random.default_rng(1)
    a, b = g.normal(size=(7, 4)), g.normal(size=(6, 4)) + 1

    def k(x, y):
        return (x @ y / 4 + 1) ** 3

    within_a = np.mean([k(a[i], a[j]) for i, j in product(range(7), repeat=2) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i, j in product(range(6), repeat=2) if i != j])
    across = np.mean([k(x, y) for x, y in product(a, b)])
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across)
    assert math.isnan(kernel_distance(a[:1], b))


def test_metrics_without_weights_are_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(learned, "CLIP", "nobody/has-this-model")
    found, about = load_metrics(["lpips-vgg", "lpips-alex", "fid", "kid", "clip"])
    assert found == []
    assert about["lpips-vgg"]["missing"] == (
        f"its weights are not here: put vgg16-397923af.pth into {tmp_path}/checkpoints"
    )
    assert "weights-inception-2015-12-05" in about["fid"]["missing"]
    assert about["clip"]["missing"] == (
        "nobody/has-this-model is not in the cache of the hub: hf download nobody/has-this-model"
    )
    # Weights alone are not enough, and no other net takes their place.
    (tmp_path / "checkpoints").mkdir()
    for name in ("vgg16-397923af.pth", "weights-inception-2015-12-05-6726825d.pth"):
        (tmp_path / "checkpoints" / name).write_bytes(b"x")
    monkeypatch.setattr(learned, "find_spec", lambda name: None)
    _, about = load_metrics(["lpips-vgg", "fid"])
    assert "needs torchvision" in about["lpips-vgg"]["missing"]
    assert "needs torch-fidelity" in about["fid"]["missing"]


def test_lpips_goes_through_torchmetrics_and_is_named(tmp_path, monkeypatch):
    import torchmetrics.functional.image as functional

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"weights")
    monkeypatch.setattr(learned, "find_spec", lambda name: object())
    asked = []

    def stand_in(x, y, net, normalize):
        asked.append((tuple(x.shape), net, normalize))
        return (x - y).abs().mean()

    monkeypatch.setattr(functional, "learned_perceptual_image_patch_similarity", stand_in)
    (metric,), about = load_metrics(["lpips-alex"])
    a, b = torch.zeros(2, 3, 32, 32), torch.stack([torch.full((3, 32, 32), v) for v in (0.25, 0.5)])
    assert metric.compare(metric.features(a), metric.features(b)).tolist() == [0.25, 0.5]
    assert asked == [((1, 3, 32, 32), "alex", True)] * 2 and metric.key == "lpips_alex"
    assert about["lpips-alex"]["library"].startswith("torchmetrics ")
    assert about["lpips-alex"]["net"] == "LPIPS alex" and len(about["lpips-alex"]["weights"]) == 16


@pytest.mark.slow
def test_clip_similarity_is_the_cosine_of_its_embeddings(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs dd3g[data]")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    text = vision | {"vocab_size": 20, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    image = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path)
    image.save_pretrained(tmp_path)
    from transformers import CLIPProcessor

    class Images:
        image_processor = image

    monkeypatch.setattr(CLIPProcessor, "from_pretrained", lambda *_, **__: Images)
    monkeypatch.setattr(learned, "CLIP", str(tmp_path))
    (metric,), about = load_metrics(["clip"])
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 3, 32, 32, generator=g), torch.rand(3, 3, 32, 32, generator=g)
    got = metric.compare(metric.features(a), metric.features(b))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.inference_mode():
        pooled = [model.vision_model((x - mean) / std).pooler_output for x in (a, b)]
        x, y = (model.visual_projection(p) for p in pooled)
    assert got.tolist() == pytest.approx(torch.cosine_similarity(x, y).tolist(), abs=2e-3)  # it rounds
    assert metric.compare(metric.features(a), metric.features(a)).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert about["clip"]["net"] == str(tmp_path) and os.fspath(tmp_path)


def test_st_lpips_is_named_with_its_weights():
    found, about = load_metrics(["st-lpips", "fd-stlpips"])
    if not found:
        assert about["st-lpips"]["missing"] == "its weights are not here: dd3g models fetch stlpips_alex"
        pytest.skip("needs `dd3g models fetch stlpips_alex`")
    assert about["st-lpips"]["net"] == "AlexNet" and len(about["st-lpips"]["weights"]) == 16
    distance, sets = found
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert distance.compare(distance.features(picture), distance.features(picture)).tolist() == [0, 0]
    assert sets.compare is None and sets.features(picture).shape == (2, 256)


def test_unknown_metrics_are_refused():
    with pytest.raises(KeyError):
        load_metrics(["psnr2"])
    assert issubclass(learned.Missing, UserError)


# ---- paired differences ----------------------------------------------------------------------------------


def test_a_sign_flip_test_counts_all_patterns():
    x = [0.3, -0.1, 0.5, 0.2, 0.4]
    means = [abs(np.mean([s * v for s, v in zip(signs, x)])) for signs in product((1, -1), repeat=5)]
    assert sign_flip_p(x) == pytest.approx(np.mean([m >= abs(np.mean(x)) - 1e-12 for m in means]))
    assert sign_flip_p([1.0] * 5) == pytest.approx(2 / 32)
    assert sign_flip_p([0.0, 0.0]) == 1 and sign_flip_p([]) is None
    g = np.random.default_rng(0)
    many = g.normal(0.2, 1, 40)
    from scipy.stats import ttest_1samp

    assert sign_flip_p(many.tolist()) == pytest.approx(ttest_1samp(many, 0).pvalue, abs=0.02)
    assert sign_flip_p((many + 5).tolist()) == pytest.approx(1 / 10_001, abs=1e-5)


def test_paired_differences_leave_out_what_is_missing():
    got = paired_difference([3.0, None, 5.0, 4.0], [1.0, 2.0, math.nan, 3.0])
    assert (
        got["n"] == 2 and got["mean"] == 1.5 and got["low"] == 1.0 and got["high"] == 2.0 and got["p"] == 0.5
    )
    assert paired_difference([], [])["p"] is None
