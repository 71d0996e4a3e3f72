from __future__ import annotations

import pytest
import torch

from dd3g.errors import UserError
from distill.perceptual import MEAN_BGR, VggDistance

h5py = pytest.importorskip("h5py")
WIDTHS = ((3, 4, 4), (4, 5, 5), (5, 6, 6, 6), (6, 3, 3, 3), (3, 2, 2, 2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of HED's layout with a few channels, and its arrays by block."""
    path = tmp_path_factory.mktemp("vgg") / "hed.weights.h5"
    g = torch.Generator().manual_seed(0)
    arrays = []
    with h5py.File(path, "w") as file:
        for b, widths in enumerate(WIDTHS, 1):
            arrays.append([])
            for i, (low, high) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
                kernel, bias = torch.randn(3, 3, low, high, generator=g) / 5, torch.randn(high, generator=g)
                name = "conv2d" if i == 0 else f"conv2d_{i}"
                file[f"block{b}/layers/{name}/vars/0"] = kernel.numpy()
                file[f"block{b}/layers/{name}/vars/1"] = bias.numpy()
                arrays[-1].append((kernel.double(), bias.double()))
        file["fuse/vars/0"] = [1.0]
    return path, arrays


def brute_features(image, arrays):
    """RGB (3, H, W) float64 -> unit-length activations of each block, pixel by pixel."""
    x = 255 * image[[2, 1, 0]] - torch.tensor(MEAN_BGR, dtype=torch.float64)[:, None, None]
    found = []
    for b, block in enumerate(arrays):
        if b:
            C, H, W = x.shape
            x = x.reshape(C, H // 2, 2, W // 2, 2).amax((2, 4))
        for kernel, bias in block:
            _, H, W = x.shape
            padded = torch.zeros(len(x), H + 2, W + 2, dtype=torch.float64)
            padded[:, 1:-1, 1:-1] = x
            x = torch.zeros(len(bias), H, W, dtype=torch.float64)
            for i in range(H):
                for j in range(W):
                    x[:, i, j] = torch.einsum("chw,hwco->o", padded[:, i : i + 3, j : j + 3], kernel) + bias
            x = x.clamp(min=0)
        found.append(x / x.norm(dim=0).clamp(min=1e-3))
    return found


def test_distance_by_brute_force(weights):
    path, arrays = weights
    g = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 3, 16, 16, generator=g), torch.rand(2, 3, 16, 16, generator=g)
    found = VggDistance(path)(a, b)
    assert found.shape == (2,)
    for n in range(2):
        pairs = zip(brute_features(a[n].double(), arrays), brute_features(b[n].double(), arrays), strict=True)
        wanted = sum(float((x - y).square().sum(0).mean()) for x, y in pairs)
        assert wanted > 0.1 and float(found[n]) == pytest.approx(wanted, rel=1e-4)


def test_distance_is_zero_at_home_and_has_a_gradient(weights):
    distance = VggDistance(weights[0])
    a, b = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16, requires_grad=True)
    assert float(distance(a, a)) == 0
    distance(a, b).sum().backward()
    assert b.grad.isfinite().all() and b.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("no")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["block1/weights"] = [1.0]
    for name in ("text.h5", "other.h5", "missing.h5"):
        with pytest.raises(UserError, match="holds no VGG16"):
            VggDistance(tmp_path / name)


def test_missing_weights_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="dd3g models fetch hed_vgg16"):
        VggDistance()
