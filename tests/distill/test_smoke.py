"""The smoke test of CUDA, as far as a CPU can go it, and what it hands to gsplat."""

from __future__ import annotations

import inspect

import pytest
import torch

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.rasterizer import cpu, cuda
from distill import smoke

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@CPU_ONLY
@pytest.mark.slow
def test_it_goes_as_far_as_a_cpu_can_and_says_so(capsys, forked_workers):
    """Without words, as the recipe starts it."""
    assert smoke.main([]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "smoke test: " in line]
    parts = ("no CUDA here, so the CPU", "kernels are there", "rasteriser", "a pass", "a pass as one graph")
    parts += ("shape network was trained and scored", "resumed, precision no", "resumed, precision bf16")
    assert all(part in line for part, line in zip(parts, said, strict=False)) and len(said) == len(parts) + 1
    assert said[-1].startswith("error: smoke test: there is no CUDA here")


@CPU_ONLY
def test_a_difference_ends_it(monkeypatch, capsys):
    monkeypatch.setattr(smoke, "drawn", lambda gaussians, device: torch.rand(4))
    assert smoke.main([]) == 2
    assert "error: smoke test: rasteriser differs by 0." in capsys.readouterr().err


@pytest.mark.parametrize("antialiased", [False, True])
def test_what_gsplat_is_asked_for_is_what_it_takes(monkeypatch, antialiased):
    """Names, shapes and layouts, by the signature of the version that is installed; its kernels need a GPU.

    The CPU's engine stands in for them, so that what comes back is known.
    """
    gsplat = pytest.importorskip("gsplat")
    signature = inspect.signature(gsplat.rasterization)
    gaussians = Gaussians(*(torch.rand(2, 5, *s) / 4 for s in ((3,), (4,), (3,), (), (7,))))
    rig = Cameras.default_rig(8, 4)
    cameras = Cameras(rig.viewmats.expand(2, 4, 4, 4), rig.Ks.expand(2, 4, 3, 3), 8, 6, 0.7, 2.2)
    expected = cpu.rasterize_batch(gaussians, cameras, antialiased)

    def stand_in(*args, **options):
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        given = bound.arguments
        parts = ("means", "quats", "scales", "opacities", "colors")
        assert all(torch.equal(given[name], getattr(gaussians, name)) for name in parts)
        assert all(given[name].dtype == torch.float32 for name in (*parts, "viewmats", "Ks"))
        assert given["viewmats"].shape == (2, 4, 4, 4) and given["Ks"].shape == (2, 4, 3, 3)
        assert (given["width"], given["height"]) == (8, 6)
        assert (given["near_plane"], given["far_plane"], given["eps2d"]) == (0.7, 2.2, 0.3)
        assert given["packed"] is False and given["render_mode"] == "RGB+D" and given["sh_degree"] is None
        assert given["rasterize_mode"] == ("antialiased" if antialiased else "classic")
        assert given["backgrounds"] is None and given["camera_model"] == "pinhole"
        return *(part.movedim(-3, -1) for part in expected), {}  # (B, V, H, W, C + 1), (B, V, H, W, 1)

    monkeypatch.setattr(gsplat, "rasterization", stand_in)
    monkeypatch.setattr(cuda, "load_kernels", lambda: None)
    found = cuda.rasterize_batch(gaussians, cameras, antialiased)
    assert [part.shape for part in found] == [(2, 4, 8, 6, 8), (2, 4, 1, 6, 8)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and found[1].any()
