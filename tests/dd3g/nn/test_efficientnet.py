from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dd3g.nn.efficientnet import EPSILON, EfficientNetLite0, SameConv2d

GOLDEN = Path(__file__).parents[2] / "golden"


def made_up(shapes):
    """Weights in the published layout that keep a picture's maps at about one."""
    g = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=g)
        kind = name.rpartition(".")[2]
        if len(shape) == 4:
            state[name] = noise * (2 / shape[1:].numel()) ** 0.5
        elif kind == "running_var":
            state[name] = 0.5 + noise.abs()
        else:
            state[name] = 0.1 * noise + (kind == "weight")
    return state


def picture():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(6)).clamp(-1, 1)


def test_the_maps_are_those_of_the_authors_code():
    """The arrays are those of efficientnet_lite_pytorch 0.1.0 with these weights, in evaluation mode."""
    golden = np.load(GOLDEN / "efficientnet_lite0.npz")
    shapes = {n: torch.Size(s) for n, s in json.loads(str(golden["shapes"])).items()}
    network = EfficientNetLite0()
    network.load_published(made_up(shapes))
    found = network(picture())
    assert [tuple(m.shape) for m in found] == [(2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]
    for maps, name in zip(found, ("eighth", "sixteenth", "last"), strict=True):
        want = torch.from_numpy(golden[name])
        assert want.std() > 0.1
        torch.testing.assert_close(maps.detach(), want, atol=2e-4 * float(want.std()), rtol=1e-4)


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(7, 3, 1), (8, 3, 2), (7, 5, 2), (9, 3, 2), (5, 1, 1)]
)
def test_padding_and_normalisation_as_published(side, kernel, stride):
    g = torch.Generator().manual_seed(side)
    state = {"c.weight": torch.randn(4, 3, kernel, kernel, generator=g)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"n.{name}"] = torch.rand(4, generator=g) + 0.1
    layer = SameConv2d(3, 4, kernel, stride)
    layer.fold(state, "c", "n")
    x = torch.randn(1, 3, side, side, generator=g)
    # Every output pixel by hand: its window starts where TensorFlow lets it.
    count = -(-side // stride)
    before = max((count - 1) * stride + kernel - side, 0) // 2
    padded = F.pad(x, (before, kernel, before, kernel))
    rows = [
        torch.stack(
            [
                (padded[..., i * stride :, j * stride :][..., :kernel, :kernel] * state["c.weight"]).sum(
                    (1, 2, 3)
                )
                for j in range(count)
            ],
            1,
        )
        for i in range(count)
    ]
    normal = F.batch_norm(
        torch.stack(rows, 1)[None], state["n.running_mean"], state["n.running_var"], state["n.weight"],
        state["n.bias"], eps=EPSILON,
    )  # fmt: skip
    torch.testing.assert_close(layer(x).detach(), normal, atol=1e-5, rtol=1e-5)
