"""Threads, CUDA, and what a caller is told."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numba
import pytest
import torch
from stand_ins.balls import FIELDS, ball, gradients, leaves, parts, rig

import dd3g
from dd3g.errors import UserError
from dd3g.io.atomic import only_user
from dd3g.rasterizer import Render, cuda, rasterize


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

    rasterizer.get_ready(torch.device("cpu"))

    def fails(error):
        def draw(*args, **options):
            raise error

        return draw

    foreign = RuntimeError("CUDA error: no kernel image is\nand more")
    monkeypatch.setattr(rasterizer, "rasterize", fails(foreign))
    with pytest.raises(UserError, match=r"not work on cpu \(CUDA error: no kernel image is\): .*GPU"):
        rasterizer.get_ready(torch.device("cpu"))
    monkeypatch.setattr(rasterizer, "rasterize", fails(UserError("no compiler: install one")))
    with pytest.raises(UserError, match="^no compiler: install one$"):
        rasterizer.get_ready(torch.device("cpu"))


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """gsplat's, as if they were being built; gives what happens then, and the folder."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    building = []

    def build(name):
        assert name == "gsplat.cuda._backend"
        print("Setting up CUDA")
        return building.pop(0)()

    monkeypatch.setattr(cuda, "import_module", build)
    cuda.load_kernels.cache_clear()
    yield building, tmp_path / "extensions"
    cuda.load_kernels.cache_clear()


def test_one_process_builds_kernels_at_a_time(kernels, capsys):
    """As gsplat empties the folder before it builds, whoever is building there."""
    building, folder = kernels

    def alone():
        with pytest.raises(UserError, match="in use by process"), only_user(folder):
            pass
        return SimpleNamespace(_C="kernels")

    building.append(alone)
    cuda.load_kernels()
    cuda.load_kernels()
    assert building == [] and list(folder.iterdir()) == []
    assert capsys.readouterr() == ("", "Setting up CUDA\n")  # JSON may be due on stdout


def test_kernels_that_are_there_need_no_folder_to_write_to(kernels):
    building, folder = kernels
    folder.write_text("is a file")
    building.append(lambda: SimpleNamespace(_C="kernels"))
    cuda.load_kernels()
    assert building == []


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(None, "there is no CUDA toolkit"), (RuntimeError("Error building\nand more"), "Error building")],
)
def test_kernels_that_cannot_be_built(kernels, failure, reason):
    building, folder = kernels

    def build():
        if failure:
            raise failure
        return SimpleNamespace(_C=None)

    building += [build, build]
    for _ in range(2):  # it is not taken for done
        with pytest.raises(UserError, match=rf"for CUDA \({reason}\): install nvcc .*--device cpu"):
            cuda.load_kernels()
    assert building == []
