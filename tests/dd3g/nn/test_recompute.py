"""Gradient checkpointing of every network: less is kept, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dd3g.cameras import Cameras
from dd3g.nn.recompute import recompute_blocks
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.pepd.occupancy import OccupancyConfig, OccupancyNet


def generator():
    shape = {"size": 32, "latent_shape": (4, 4, 4, 4), "width": 32, "heads": 2, "depth": 2}
    shape |= {"residual_hidden": 8, "fine": 8, "mid": 16, "head_hidden": 8}
    model = Generator(GeneratorConfig(**shape))
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 4, 4, 4, generator=g)
    image = torch.rand(1, 4, 32, 32, generator=g)

    def loss():
        made = model(noise, Cameras.default_rig(32), image)
        return sum(getattr(made, n).square().mean() for n in ("means", "scales", "quats", "colors"))

    return model, loss


def occupancy():
    model = OccupancyNet(OccupancyConfig(size=16, bins=8, fine=8, widths=(8, 16), width=16, depth=2, heads=2,
                                         residual_hidden=8, color_bins=2))  # fmt: skip
    image = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return model, lambda: sum(x.square().mean() for x in model(image, torch.tensor([0.2])))


@pytest.mark.parametrize("make", [generator, occupancy])
def test_values_and_gradients_stay(make):
    def run(recompute):
        torch.manual_seed(0)
        model, loss = make()
        blocks = recompute_blocks(model) if recompute else 0
        kept = []
        with saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            value = loss()
        value.backward()
        return value.item(), [p.grad for p in model.parameters()], sum(kept), blocks

    (a, plain, all_kept, _), (b, again, few_kept, blocks) = run(False), run(True)
    assert a == b and blocks > 6 and few_kept < 0.6 * all_kept
    assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(plain, again, strict=True))
