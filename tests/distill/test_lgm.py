import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from stand_ins.tiny_lgm import LAYOUT, save_lgm, tiny_lgm

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from distill.lgm import BIG, LGM, SMALL, TINY, Layout, lgm_input, load_lgm, weights

RIG = Cameras.orbit([0, 90, 180, 270], 0.0, 32)


def twin(w, x):
    """The network once more, in one function, softmax in the open: (V, 9, S, S) -> (N, 14)."""

    def conv(name, x, **how):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    def norm(name, x):
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def resnet(name, x):
        h = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1)
        h = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return (h + (conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)) / math.sqrt(2)

    def attention(name, x):
        if f"{name}.norm.weight" not in w:
            return x
        V, C, h, v = x.shape
        tokens = norm(f"{name}.norm", x).permute(0, 2, 3, 1).reshape(-1, C)  # all pixels of all views
        q, k, value = (tokens @ w[f"{name}.attn.qkv.weight"].T).split(C, 1)
        heads = []
        for i in range(16):
            part = slice(i * C // 16, (i + 1) * C // 16)
            score = (q[:, part] @ k[:, part].T / math.sqrt(C // 16)).softmax(1)
            heads.append(score @ value[:, part])
        out = torch.cat(heads, 1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        return (out.reshape(V, h, v, C).permute(0, 3, 1, 2) + x) / math.sqrt(2)

    x = conv("unet.conv_in", x, padding=1)
    skips = [x]
    blocks = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("unet.down_blocks"))
    for b in range(blocks):
        for i in range(2):
            x = resnet(f"unet.down_blocks.{b}.nets.{i}", x)
            x = attention(f"unet.down_blocks.{b}.attns.{i}", x)
            skips.append(x)
        if b < blocks - 1:
            x = conv(f"unet.down_blocks.{b}.downsample", x, stride=2, padding=1)
            skips.append(x)
    x = attention("unet.mid_block.attns.0", resnet("unet.mid_block.nets.0", x))
    x = resnet("unet.mid_block.nets.1", x)
    blocks = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("unet.up_blocks"))
    for b in range(blocks):
        for i in range(3):
            x = resnet(f"unet.up_blocks.{b}.nets.{i}", torch.cat([x, skips.pop()], 1))
            x = attention(f"unet.up_blocks.{b}.attns.{i}", x)
        if b < blocks - 1:
            x = conv(
                f"unet.up_blocks.{b}.upsample", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1
            )
    x = conv("conv", conv("unet.conv_out", F.silu(norm("unet.norm_out", x)), padding=1))
    r = x.permute(0, 2, 3, 1).reshape(-1, 14)
    return torch.cat(
        [
            r[:, :3].clamp(-1, 1),
            1 / (1 + torch.exp(-r[:, 3:4])),
            0.1 * torch.log1p(torch.exp(r[:, 4:7])),
            r[:, 7:11] / r[:, 7:11].norm(dim=1, keepdim=True),
            0.5 * torch.tanh(r[:, 11:]) + 0.5,
        ],
        1,
    )


def rows(g):
    return torch.cat([g.means, g.opacities[..., None], g.scales, g.quats, g.colors], -1)


@pytest.mark.parametrize(
    ("layout", "views", "size"),
    [
        (LAYOUT, 4, 32),
        (LAYOUT, 3, 16),
        (Layout((32, 64), (64,), (False, True), (True,)), 2, 16),
        (Layout((32, 32, 32), (32, 32, 32), (False,) * 3, (False,) * 3), 1, 8),
    ],
)
def test_the_network_is_its_plain_twin(layout, views, size):
    model = tiny_lgm(1, layout).double()
    x = torch.randn(2, views, 9, size, size, generator=torch.Generator().manual_seed(2)).double()
    found = rows(model(x))
    assert found.shape == (2, views * (size // layout.shrink) ** 2, 14)
    for b in range(2):  # a batch is its single runs
        assert (found[b] - twin(model.state_dict(), x[b])).abs().max() < 1e-9
    assert (rows(model.float()(x.float()))[1] - found[1]).abs().max() < 1e-3


def test_views_see_each_other():
    """Changing one view changes the Gaussians of another."""
    x = torch.randn(1, 4, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    model = tiny_lgm()
    before = rows(model(x)).unflatten(1, (4, -1))
    x[:, 3] = 0
    assert (rows(model(x)).unflatten(1, (4, -1))[:, 0] - before[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layout", "tensors", "parameters", "shrink"),
    [(BIG, 376, 415_042_848, 2), (SMALL, 344, None, 4), (TINY, 244, None, 4)],
)
def test_published_layouts(layout, tensors, parameters, shrink):
    with torch.device("meta"):
        state = LGM(layout).state_dict()
    assert len(state) == tensors and layout.shrink == shrink
    assert Layout.of({k: tuple(v.shape) for k, v in state.items()}) == layout
    if parameters:
        assert sum(v.numel() for v in state.values()) == parameters
        # Two bytes a number, and a table of names: the size of the published file.
        assert 0 < weights.SIZE - 2 * parameters < 60_000


def test_input_is_normalised_views_over_the_rays_of_their_pixels():
    views = torch.rand(1, 4, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    x = lgm_input(views, Cameras.orbit([0, 90, 180, 270], 0.0, 64), 32)
    assert x.shape == (1, 4, 9, 32, 32)
    white = views[:, :, :3] * views[:, :, 3:] + 1 - views[:, :, 3:]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixel = white[0, 2, :, 20:22, 8:10].mean((1, 2))  # bilinear at half the size: the mean of four
    torch.testing.assert_close(x[0, 2, :3, 10, 4], (pixel - mean) / std)
    # Row 10, column 4 of the view from behind, by hand; its camera stands at z = -1.5 and looks along +z.
    focal = 16 / math.tan(math.radians(49.1) / 2)
    d = torch.tensor([-(4.5 - 16) / focal, -(10.5 - 16) / focal, 1.0])
    d = d / d.norm()
    moment = torch.linalg.cross(torch.tensor([0.0, 0, -1.5]), d)
    torch.testing.assert_close(x[0, 2, 3:, 10, 4], torch.cat([moment, d]), atol=1e-6, rtol=0)


def test_reconstruct_turns_the_first_view_to_the_front_and_back():
    model = tiny_lgm()
    views = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    level = model.reconstruct(views, RIG, 32)
    torch.testing.assert_close(rows(level), rows(model(lgm_input(views, RIG, 32))), atol=1e-5, rtol=1e-4)
    high = Cameras.orbit([20, 110, 200, 290], 30.0, 32)
    found = model.reconstruct(views, high, 32)
    # Seen by the network: the front camera exactly, the one behind looks up at what was looked down at twice.
    front = Cameras.orbit([0.0], 0.0, 32).viewmats[0]
    turn = torch.linalg.inv(front) @ high.viewmats[0]
    seen = replace(high, viewmats=high.viewmats @ torch.linalg.inv(turn))
    torch.testing.assert_close(seen.viewmats[0], front, atol=1e-5, rtol=0)
    behind = seen.positions[2]
    assert behind[1].item() == pytest.approx(1.5 * math.sin(math.radians(60)), abs=1e-4)
    inner = model(lgm_input(views, seen, 32))
    place, depth = high[:1].project(found.means[0])
    expected, same = seen[:1].project(inner.means[0])
    torch.testing.assert_close(place, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(depth, same, atol=1e-4, rtol=1e-4)
    assert (found.means - inner.means).abs().max() > 0.1


@pytest.mark.parametrize(
    ("rig", "word"),
    [
        (Cameras.orbit([0, 60, 120, 180, 240, 300], 0.0, 32), "6 views"),
        (Cameras.orbit([0, 90, 180, 200], 0.0, 32), "200"),
        (Cameras.orbit([0, 90, 180, 270], [0, 0, 20, 0], 32), "4 views"),
        (Cameras.orbit([0, 90, 180, 270], 0.0, 32, radius=2.557, fovy=30), "2.56"),
        (Cameras.orbit([0, 90, 180, 270], 0.0, 32, fovy=30), "30.0 degrees"),
    ],
)
def test_other_rigs_are_refused(rig, word):
    with pytest.raises(UserError, match=word):
        tiny_lgm().reconstruct(torch.rand(1, len(rig), 3, 32, 32), rig, 32)


def test_weights_are_read_in_the_published_layout(tmp_path):
    model = tiny_lgm(4)
    file = save_lgm(tmp_path / "lgm", model)
    for source in (file, tmp_path / "lgm", str(file)):
        read = load_lgm(source)
        assert read.layout == LAYOUT
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(read.state_dict()[name], tensor.half().float(), atol=0, rtol=0)
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in read.parameters())


def test_what_is_no_lgm_is_refused_in_one_line(tmp_path):
    model = tiny_lgm()
    save_lgm(tmp_path / "two", model)
    save_lgm(tmp_path / "two", model, "model.safetensors")
    state = model.state_dict()
    save_file(state | {"unet.conv_out.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")
    save_file({k: v for k, v in state.items() if k != "conv.bias"}, tmp_path / "less.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(save_lgm(tmp_path / "x", model).read_bytes()[:5000])
    (tmp_path / "model.bin").write_bytes(b"pickle")
    for name, match in {
        "two": "2 safetensors files",
        "shape.safetensors": "unet.conv_out.bias",
        "less.safetensors": "conv.bias",
        "other.safetensors": "no weights of LGM",
        "cut.safetensors": "no weights of LGM",
        "model.bin": "no safetensors",
        "nothing": "no safetensors",
    }.items():
        with pytest.raises(UserError, match=match) as caught:
            load_lgm(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_file_with_wrong_rotations_is_refused_by_its_hash(tmp_path, monkeypatch):
    import hashlib

    file = save_lgm(tmp_path, tiny_lgm())
    monkeypatch.setattr(weights, "SIZE", file.stat().st_size)
    with pytest.raises(UserError, match="rotations are wrong"):
        load_lgm(file)
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    assert load_lgm(file).layout == LAYOUT


def test_first_use_says_size_and_licence_and_stays_offline_where_told(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=r"830 MB; code MIT.*HF_HUB_OFFLINE"):
        load_lgm("lgm")
    assert capsys.readouterr().err == ""

    file = save_lgm(tmp_path, tiny_lgm())
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *which: asked.append(which) or str(file))
    assert load_lgm("lgm").layout == LAYOUT
    assert asked == [("ashawkey/LGM", "model_fp16_fixrot.safetensors")]
    (line,) = capsys.readouterr().err.splitlines()
    assert "830 MB" in line and "MIT" in line and "https://huggingface.co/ashawkey/LGM" in line

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: str(file))
    load_lgm("lgm")  # there already: nothing is asked and nothing is said
    assert len(asked) == 1 and capsys.readouterr().err == ""

    def no_network(*_):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    with pytest.raises(UserError, match="could not be fetched .no route."):
        load_lgm("lgm")
