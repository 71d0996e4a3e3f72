import hashlib
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from stand_ins.lgm_reference import twin
from stand_ins.tiny_lgm import LAYOUT, save_lgm, tiny_lgm

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.hub_models import HUB_MODELS
from distill.lgm import BIG, LGM, SMALL, TINY, Layout, lgm_input, load_lgm

RIG = Cameras.orbit([0, 90, 180, 270], 0.0, 32)


def rows(g):
    return torch.cat([g.means, g.opacities[..., None], g.scales, g.quats, g.colors], -1)


@pytest.mark.parametrize(
    ("layout", "views", "size"),
    [
        (LAYOUT, 4, 32),
        (LAYOUT, 3, 16),
        (Layout((32, 64), (64,), (False, True), (True,)), 2, 16),
        (Layout((32, 32, 32), (32, 32, 32), (False,) * 3, (False,) * 3), 1, 8),
        (Layout((32, 64), (64, 32), (False, True), (True, False), 1, mid_attention=False), 2, 8),
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


def test_values_far_from_zero_are_its_plain_twins():
    """Scales above one, opacities of both ends, positions out of the cube."""
    model = tiny_lgm(1).double()
    model.conv.weight *= 20
    x = torch.randn(1, 4, 9, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    found = rows(model(x))[0]
    assert found[:, 4:7].max() > 1 and found[:, 3].min() < 1e-3 and found[:, :3].abs().max() == 1
    assert (found - twin(model.state_dict(), x[0])).abs().max() < 1e-8


def test_views_see_each_other():
    """Changing one view changes the Gaussians of another."""
    x = torch.randn(1, 4, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    model = tiny_lgm()
    before = rows(model(x)).unflatten(1, (4, -1))
    x[:, 3] = 0
    assert (rows(model(x)).unflatten(1, (4, -1))[:, 0] - before[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layout", "tensors", "parameters", "shrink"),
    [(BIG, 376, 415_042_848, 2), (SMALL, 344, 412_958_240, 4), (TINY, 244, 59_743_360, 4)],
)
def test_published_layouts(layout, tensors, parameters, shrink):
    with torch.device("meta"):
        state = LGM(layout).state_dict()
    assert len(state) == tensors and layout.shrink == shrink
    for names in (list(state), sorted(state, reverse=True)):  # files have an order of their own
        assert Layout.of({k: tuple(state[k].shape) for k in names}) == layout
    assert sum(v.numel() for v in state.values()) == parameters
    if layout == BIG:  # two bytes a number, and a table of names: the size of the published file
        assert 0 < HUB_MODELS["lgm"].size - 2 * parameters < 60_000


def test_a_layout_is_that_of_its_file():
    for layers, attention in ((1, False), (3, True)):
        layout = Layout((32, 32), (32,), (False, True), (True,), layers, attention)
        with torch.device("meta"):
            state = LGM(layout).state_dict()
        assert Layout.of({k: tuple(v.shape) for k, v in state.items()}) == layout
    with pytest.raises(ValueError, match="2 blocks down and 0 up"):
        Layout((32, 32), (), (False, False), ())


def test_norms_see_contiguous_maps():
    """On other strides the CPU's group norm sums naively, which costs three digits."""
    model, seen = tiny_lgm(), []
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    views = torch.rand(1, 4, 32, 32, 3).movedim(-1, 2)  # as pictures lie on a disk
    assert not views.is_contiguous() and lgm_input(views, RIG, 32).is_contiguous()
    model(torch.rand(1, 4, 32, 32, 9).movedim(-1, 2))
    assert len(seen) > 30 and all(seen)


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


def test_pixels_need_not_be_square():
    """Views with every column twice, under the same field of view, give the same."""
    model, high = tiny_lgm(), Cameras.orbit([20, 110, 200, 290], 30.0, 32)
    views = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    wide = replace(high, width=64, Ks=high.Ks * torch.tensor([2.0, 1, 1])[:, None])
    found = model.reconstruct(views.repeat_interleave(2, -1), wide, 32)
    torch.testing.assert_close(rows(found), rows(model.reconstruct(views, high, 32)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("rig", "word"),
    [
        (Cameras.orbit([0, 60, 120, 180, 240, 300], 0.0, 32), "6 views"),
        (Cameras.orbit([0, 90, 180, 200], 0.0, 32), "200"),
        (Cameras.orbit([0, 90, 180, 265], 0.0, 32), "265"),
        (Cameras.orbit([0, 90, 180, 270], 0.0, 32, radius=1.6), "1.60"),
        (Cameras.orbit([0, 90, 180, 270], [0, 0, 20, 0], 32), "4 views"),
        (Cameras.orbit([0, 90, 180, 270], 0.0, 32, radius=2.557, fovy=30), "2.56"),
        (Cameras.orbit([0, 90, 180, 270], 0.0, 32, fovy=30), "30.0 degrees"),
    ],
)
def test_other_rigs_are_refused(rig, word):
    with pytest.raises(UserError, match=word):
        tiny_lgm().reconstruct(torch.rand(1, len(rig), 3, 32, 32), rig, 32)


def test_weights_are_read_in_the_published_layout(tmp_path, monkeypatch):
    model = tiny_lgm(4)
    file = save_lgm(tmp_path / "lgm", model)
    for source in (file, tmp_path / "lgm", str(file)):
        read = load_lgm(source)
        assert read.layout == LAYOUT
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(read.state_dict()[name], tensor.half().float(), atol=0, rtol=0)
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in read.parameters())
    assert load_lgm(file, "meta").conv.weight.is_meta
    monkeypatch.chdir(tmp_path)
    assert load_lgm("lgm").layout == LAYOUT  # a folder of that name goes before the hub


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


def published(monkeypatch, file, sha256=None):
    """The hub's page says that the right file is `file`."""
    digest = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
    right = replace(HUB_MODELS["lgm"], size=file.stat().st_size, sha256={HUB_MODELS["lgm"].files[0]: digest})
    monkeypatch.setitem(HUB_MODELS, "lgm", right)


def test_the_file_with_wrong_rotations_is_refused_by_its_hash(tmp_path, monkeypatch):
    file = save_lgm(tmp_path, tiny_lgm(), "model_fp16.safetensors")
    published(monkeypatch, file, "0" * 64)
    with pytest.raises(UserError, match="rotations are wrong"):
        load_lgm(file)
    published(monkeypatch, file)
    assert load_lgm(file).layout == LAYOUT


def test_the_name_is_what_the_hub_gives(tmp_path, monkeypatch):
    file = save_lgm(tmp_path, tiny_lgm())
    monkeypatch.setattr("dd3g.hub_models._download", lambda model, offline: str(tmp_path))
    with pytest.raises(UserError, match="expected 744d6324656342c6"):
        load_lgm("lgm")
    published(monkeypatch, file)
    assert load_lgm("lgm").layout == LAYOUT
