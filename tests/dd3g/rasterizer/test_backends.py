"""Threads, CUDA, and what a caller is told."""

import threading
from dataclasses import replace

import numba
import pytest
import torch
from stand_ins.balls import FIELDS, ball, gradients, leaves, parts, rig

import dd3g
from dd3g.rasterizer import Render, rasterize


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread has nothing to disagree with")
def test_same_bits_from_any_number_of_threads():
    g, cameras = leaves(ball(2000, seed=60).to(torch.float32)), rig(64, 64, dtype=torch.float32)

    def once():
        render = rasterize(g, cameras)
        return (*render, *gradients(render, parts(g)))

    before, results = numba.get_num_threads(), []
    try:
        for count in {1, before}:
            numba.set_num_threads(count)
            results.append(once())
    finally:
        numba.set_num_threads(before)
    for a, b in zip(results[0], once(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(results[0], results[-1], strict=True):
        assert torch.equal(a, b)


def test_concurrent_calls():
    scenes = [leaves(ball(500, seed=s).to(torch.float32)) for s in range(4)]
    cameras = rig(64, 64, dtype=torch.float32)
    expected = [gradients(rasterize(g, cameras), parts(g)) for g in scenes]
    failures = []

    def work(k):
        for _ in range(10):
            got = gradients(rasterize(scenes[k], cameras), parts(scenes[k]))
            if not all(torch.equal(a, b) for a, b in zip(got, expected[k], strict=True)):
                failures.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_errors_say_what_to_do():
    g, cameras = ball(3, (2,)), rig()
    with pytest.raises(ValueError, match=r"\(V,\) or \(2, 'V'\)"):
        rasterize(g, replace(cameras, viewmats=cameras.viewmats[None], Ks=cameras.Ks[None]))
    with pytest.raises(ValueError, match="batch shape"):
        rasterize(g, cameras[0])
    with pytest.raises(ValueError, match="near"):
        rasterize(g, replace(cameras, near=0.0))
    with pytest.raises(ValueError, match="backend"):
        rasterize(g, cameras, backend="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA device"):
            rasterize(g, cameras, backend="cuda")


def test_the_public_name_is_the_function():
    assert dd3g.rasterize is rasterize


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("channels", [3, 9])
def test_cuda_equals_cpu(antialiased, channels):
    g = leaves(ball(2000, (2,), size=0.03, channels=channels, seed=70).to(torch.float32))
    on_cuda = leaves(g.to("cuda"))
    cameras = rig(75, 64, dtype=torch.float32)
    ours = rasterize(g, cameras, antialiased=antialiased)
    theirs = rasterize(on_cuda, cameras.to("cuda"), antialiased=antialiased)
    for a, b in zip(ours, theirs, strict=True):
        error = (a - b.cpu()).abs()
        # Single pixels may differ where alpha meets 1/255.
        assert error.mean() < 1e-5 and error.quantile(0.999) < 1e-3
    theirs_grads = [x.cpu() for x in gradients(Render(*(x.cpu() for x in theirs)), parts(on_cuda))]
    for a, b, name in zip(gradients(ours, parts(g)), theirs_grads, FIELDS, strict=True):
        assert (a - b).norm() / b.norm() < 1e-2, name


def test_get_ready_draws_or_says_what_is_needed(monkeypatch):
    from dd3g import rasterizer
    from dd3g.errors import UserError

    rasterizer.get_ready(torch.device("cpu"))

    def missing(*args, **options):
        raise RuntimeError("gsplat found no CUDA toolkit (nvcc)\nand more")

    monkeypatch.setattr(rasterizer, "rasterize", missing)
    with pytest.raises(
        UserError, match=r"not work on cpu \(gsplat found no CUDA toolkit \(nvcc\)\): .*ninja"
    ):
        rasterizer.get_ready(torch.device("cpu"))
