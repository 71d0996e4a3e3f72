from __future__ import annotations

import math

import pytest
import torch

from dd3g.cameras import RADIUS, Cameras
from dd3g.nn.blocks import (
    Attention,
    MultiViewTransformer,
    MultiViewTrunk,
    PictureEncoder,
    ResidualBlock,
    camera_code,
    correspond,
    correspond_rgba,
    fourier,
    timestep_embedding,
)
from dd3g.pepd.point_transformer import PointTransformer, nearest


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_correspond_at_right_angles_and_between():
    features = torch.rand(2, 3, 4, 4)
    rig = torch.deg2rad(torch.tensor([[0.0, 90, 180, 270], [45.0, -90, -180, 135]]))
    spread = correspond(features, rig)
    mean = features.mean(-1, keepdim=True).expand_as(features)
    assert spread.shape == (2, 4, 3, 4, 4)
    for v, wanted in ((0, features), (1, mean), (2, features.flip(-1)), (3, mean)):
        assert torch.allclose(spread[0, v], wanted[0], atol=1e-6)
    assert torch.allclose(spread[1, 0], (features[1] + mean[1]) / 2, atol=1e-6)
    assert torch.allclose(spread[1, 3], (features[1].flip(-1) + mean[1]) / 2, atol=1e-6)


def test_correspond_rgba_mixes_colours_by_alpha():
    rgba = torch.zeros(1, 4, 1, 4)
    rgba[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    rgba[0, :, 0, 3] = torch.tensor([0.0, 1.0, 0.0, 0.5])
    rgba[0, :3, 0, 1] = 0.7  # colour without alpha counts for nothing
    side = correspond_rgba(rgba, torch.tensor([[math.pi / 2]]))[0, 0, :, 0, 0]
    assert torch.allclose(side, torch.tensor([2 / 3, 1 / 3, 0, 1.5 / 4]), atol=2e-3)
    back = correspond_rgba(rgba, torch.tensor([[math.pi]]))[0, 0]
    assert torch.allclose(back[:, 0, 0], rgba[0, :, 0, 3], atol=2e-2)
    # Where nothing corresponds: no alpha, the mean colour.
    assert torch.allclose(back[:, 0, 1], torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=5e-3)
    empty = correspond_rgba(torch.zeros(1, 4, 2, 2), torch.tensor([[0.3]]))[0, 0]
    assert torch.allclose(empty, torch.tensor([0.5, 0.5, 0.5, 0])[:, None, None].expand(4, 2, 2))


def brute_attention(layer, x, context):
    heads, D = layer.heads, x.shape[-1]
    q, kv = layer.to_q(x), layer.to_kv(context)
    k, v = kv[..., :D], kv[..., D:]
    out = torch.zeros_like(q)
    size = D // heads
    for b in range(len(x)):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[b, :, part] @ k[b, :, part].T / size**0.5
            out[b, :, part] = scores.softmax(-1) @ v[b, :, part]
    return layer.to_out(out)


def test_attention_by_brute_force():
    own, cross = Attention(12, 3).double(), Attention(12, 2, context_dim=5).double()
    x, context = torch.randn(2, 7, 12).double(), torch.randn(2, 4, 5).double()
    assert torch.allclose(own(x), brute_attention(own, x, x), atol=1e-12)
    assert torch.allclose(cross(x, context), brute_attention(cross, x, context), atol=1e-12)


def test_transformer_block_by_brute_force():
    block = MultiViewTransformer(8, 2, context_dim=6).double()
    x, context = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 6).double()
    y = x + brute_attention(block.attn1, block.norm1(x), block.norm1(x))
    y = y + brute_attention(block.attn2, block.norm2(y), context)
    y = y + block.ff(block.norm3(y))
    assert torch.allclose(block(x, context), y, atol=1e-12)
    alone = MultiViewTransformer(8, 2)
    assert alone.attn2 is None and not any(n.startswith("norm2") for n, _ in alone.named_parameters())


def test_residual_block_starts_as_identity_and_follows_the_embedding():
    block = ResidualBlock(16, 6, 8)
    x, emb = torch.randn(3, 16, 4, 4), torch.randn(3, 6)
    assert torch.equal(block(x, emb), x)
    torch.nn.init.normal_(block.conv2.weight)
    assert not torch.allclose(block(x, emb), block(x, emb + 1), atol=1e-3)


def trunk():
    made = MultiViewTrunk(16, 2, 2, context_dim=16, hidden=8)
    for block in made.residual:
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    return made


def test_attention_crosses_views_but_not_objects():
    model, x = trunk(), torch.randn(2, 3, 16, 4, 4)
    emb, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    changed = x.clone()
    changed[0, 1] += torch.randn(16, 4, 4)
    difference = (model(changed, emb, context) - model(x, emb, context)).abs().amax((2, 3, 4))  # (B, V)
    assert (difference[0] > 1e-4).all() and (difference[1] == 0).all()


def test_cross_attention_sees_the_picture():
    model, x = trunk(), torch.randn(2, 3, 16, 4, 4)
    emb, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    changed = context.clone()
    changed[1, 2] += torch.randn(16)
    difference = (model(x, emb, changed) - model(x, emb, context)).abs().amax((2, 3, 4))
    assert (difference[0] == 0).all() and (difference[1] > 1e-5).all()


def test_a_trunk_of_depth_zero_does_nothing():
    x = torch.randn(1, 2, 8, 4, 4)
    assert torch.equal(MultiViewTrunk(8, 0, 2, 8, 8)(x, torch.zeros(1, 2, 8), torch.zeros(1, 1, 8)), x)


def test_picture_encoder():
    encoder = PictureEncoder(16, 32, fine=8, mid=16)
    rgba = torch.rand(2, 4, 32, 32)
    rgba[:, 3, :, :16] = 0
    shapes = [tuple(m.shape) for m in encoder(rgba)]
    assert shapes == [(2, 8, 32, 32), (2, 16, 8, 8), (2, 16, 4, 4), (2, 16)]
    hidden = rgba.clone()
    hidden[:, :3, :, :16] = 0.9  # colours under alpha 0 are not seen
    for a, b in zip(encoder(rgba), encoder(hidden), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_timestep_embedding_has_cosines_first():
    emb = timestep_embedding(torch.tensor([0, 7, 999]), 6)
    assert torch.equal(emb[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    for i, t in enumerate((0, 7, 999)):
        for k in range(3):
            angle = t / 10_000 ** (k / 3)
            assert emb[i, k].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert emb[i, 3 + k].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_fourier_by_hand():
    out = fourier(torch.tensor([[0.25, -1.0]]), 2)[0]
    assert out.shape == (10,)
    wanted = [0.25, -1.0]
    for f in (math.sin, math.cos):
        wanted += [f(math.pi * x * 2**b) for x in (0.25, -1.0) for b in range(2)]
    assert torch.allclose(out, torch.tensor(wanted), atol=1e-6)


def test_camera_code():
    rig = Cameras.orbit([0, 90], 0)
    code = camera_code(rig)
    assert code.shape == (2, 16)
    # Columns of the front camera: right +x, down -y, forward -z; its centre one radius along z.
    wanted = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, RADIUS / RADIUS], [0, 0, 0, 1]])
    assert torch.allclose(code[0].reshape(4, 4), wanted, atol=1e-6)
    assert torch.equal(rig.viewmats, Cameras.orbit([0, 90], 0).viewmats)  # left as it was


def test_nearest_by_brute_force():
    positions = torch.randn(2, 9, 3, requires_grad=True)
    index, offsets = nearest(positions, 4)
    assert index.shape == (2, 9, 4) and offsets.shape == (2, 9, 4, 3)
    for b in range(2):
        for i in range(9):
            distance = (positions[b] - positions[b, i]).norm(dim=-1)
            assert set(index[b, i].tolist()) == set(distance.argsort()[:4].tolist())
            for j, n in enumerate(index[b, i]):
                assert torch.equal(offsets[b, i, j], positions[b, i] - positions[b, n])
    assert offsets.requires_grad
    assert nearest(positions, 99)[0].shape == (2, 9, 9)


def test_point_transformer_by_brute_force():
    block = PointTransformer(8, hidden=4).double()
    x, positions = torch.randn(2, 6, 8).double(), torch.randn(2, 6, 3).double()
    index, offsets = nearest(positions, 3)
    q, k, v = block.to_qkv(block.norm1(x)).split(8, -1)
    y = torch.zeros_like(x)
    for b in range(2):
        for i in range(6):
            around = index[b, i].tolist()
            delta = [block.theta(positions[b, i] - positions[b, j]) for j in around]
            logits = torch.stack(
                [block.gamma(q[b, i] - k[b, j] + d) for j, d in zip(around, delta, strict=True)]
            )
            weight = logits.exp() / logits.exp().sum(0)
            values = torch.stack([v[b, j] + d for j, d in zip(around, delta, strict=True)])
            y[b, i] = x[b, i] + block.to_out((weight * values).sum(0))
    y = y + block.ff(block.norm3(y))
    assert torch.allclose(block(x, index, offsets), y, atol=1e-12)
