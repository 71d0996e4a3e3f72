"""The generator as a user has it: generated, saved, loaded, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from stand_ins.tiny_generator import TINY, generator, inputs, same

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator
from dd3g.pepd.config import Bounds
from dd3g.pepd.frustum import resize
from dd3g.pepd.occupancy import OccupancyConfig, OccupancyNet, Shape
from dd3g.picture import Picture

SHAPE = OccupancyConfig(32, 8, 8, (8, 16), 16, 1, 2, 8, 4)


def test_the_default_names_stay():
    names = set(Generator(TINY).state_dict())
    assert {
        "type_embedding",
        "picture.place",
        "extraction.stem.0.weight",
        "decoding.heads.2.1.out.bias",
    } <= names
    assert {n.split(".")[2] for n in names if n.startswith("decoding.feedback")} == {"0", "1"}
    assert names == set(Generator(replace(TINY, latent_shape=(4, 8, 4, 4))).state_dict())


def test_older_names_are_read():
    model = generator(shape=SHAPE, shape_networks=2)
    state = {k.replace("shape.0.", "shape."): torch.ones_like(v) for k, v in model.state_dict().items()}
    state["kind"] = state.pop("type_embedding")
    nested = torch.nn.ModuleDict({"inner": model})
    nested.load_state_dict({f"inner.{k}": v for k, v in state.items()})
    assert all(p.eq(1).all() for p in model.parameters()) and "type_embedding" not in state


def test_generate_checks_what_it_is_given():
    model, shown = generator(), torch.rand(4, 32, 32)
    noise = torch.zeros(TINY.latent_shape)
    assert same(model.generate(shown, noise=noise), model.generate(shown, noise=noise.double().numpy()))
    with pytest.raises(UserError, match=r"noise of shape \(1, 4, 8, 8, 8\): this generator takes \(4, 8"):
        model.generate(shown, noise=noise[None])
    for rgba, message in (
        (torch.rand(3, 8, 8), r"holds floats \(4, S, S\), got torch.float32 \(3, 8, 8\)"),
        ((255 * shown).byte(), "got torch.uint8"),
        (torch.full((4, 8, 8), torch.nan), "in 0..1, this one other numbers"),
        (torch.zeros(4, 8, 8), "is fully transparent"),
    ):
        with pytest.raises(UserError, match=message):
            model.generate(Picture(rgba))
    with pytest.raises(UserError, match="weights are torch.float16, and it works in float32"):
        model.half().generate(shown)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match="torch's default is torch.float64, and .* works in float32"):
            model.float().generate(shown)
    finally:
        torch.set_default_dtype(torch.float32)


def test_loading_and_fitting_leave_the_callers_state_alone(tmp_path):
    folder = generator().save_pretrained(tmp_path)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    with torch.inference_mode():
        model = Generator.from_pretrained(folder)
    assert torch.equal(torch.rand(3), wanted) and not any(p.is_inference() for p in model.parameters())
    with torch.inference_mode():
        fitted = model.generate(torch.rand(4, 32, 32), refine=0.05)
    assert fitted.means.isfinite().all() and len(fitted) > 100


def test_generate_is_deterministic_and_follows_the_seed(tmp_path):
    model = generator()
    picture = torch.rand(4, 50, 50, generator=torch.Generator().manual_seed(3))
    first = model.generate(picture, seed=4)
    files = []
    for i in range(2):
        again = model.generate(picture, seed=4)
        assert isinstance(again, Gaussians) and same(first, again)
        files.append(again.save(tmp_path / f"{i}.ply").read_bytes())
    assert files[0] == files[1]
    raw = model.generate(picture, seed=4, raw=True)
    assert not same(raw, model.generate(picture, seed=5, raw=True), 1e-5)
    noise = torch.randn(model.config.latent_shape, generator=torch.Generator().manual_seed(4))
    assert same(first, model.generate(picture, noise=noise), 1e-6)
    assert not same(raw, model.generate(picture, seed=4, raw=True, elevation=30.0), 1e-5)
    first.means.requires_grad_()  # what comes out can be optimised further
    first.means.sum().backward()


def test_pretrained_round_trip(tmp_path):
    model = generator(order="swapped", bounds=Bounds(offset=0.02))
    again = Generator.from_pretrained(model.save_pretrained(tmp_path))
    assert again.config == replace(model.config, latent_shape=[4, 8, 8, 8], blocks=[1, 1, 1])
    with torch.no_grad():
        assert same(model(*inputs()), again(*inputs()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, "size 30 must be a multiple of 8"),
        ({"latent_shape": (4, 8, 9, 9)}, "with side 4 or 8 for size 32"),
        ({"latent_shape": (4, 0, 8, 8)}, "with side 4 or 8 for size 32"),
        ({"width": 30}, "width 30"),
        ({"heads": 5}, "heads 5"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"fine": 0}, "fine must be at least 1, got 0"),
        ({"expansion": 3}, "expansion 3"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"blocks": (1, -1, 1)}, "must be 0 or more"),
        ({"pt_mode": "knn", "neighbours": 0}, "neighbours must be at least 1, got 0"),
        ({"bounds": Bounds(scale_max=0.02)}, "bounds.scale_max 0.02 must lie on either side of 0.0514"),
        ({"bounds": Bounds(scale_min=0.03)}, "bounds.scale_min 0.03 .* must lie on either side of 0.0257"),
        ({"bounds": Bounds(depth_start=2.5)}, "bounds.depth_far 2.2 must lie on either side of 2.5"),
        ({"bounds": Bounds(stretch=0.05)}, "bounds.scale_min 0.003 .* must lie on either side of 0.00257"),
        ({"order": "reverse"}, "order must be one of"),
        ({"order": "swapped", "pt_mode": "knn"}, "order progressive, got swapped"),
    ],
)
def test_wrong_shapes_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Generator(replace(TINY, **changes))


def test_a_config_that_builds_nothing(tmp_path):
    path = Generator(TINY).save_pretrained(tmp_path) / "config.json"
    path.write_text(path.read_text().replace('"width": 32', '"width": 30'))
    with pytest.raises(UserError, match="does not build a generator .*width 30"):
        Generator.from_pretrained(tmp_path)


def test_straight_alpha_is_resized_premultiplied():
    rgba = torch.zeros(1, 4, 2, 2)
    rgba[0, :, 0, 0] = torch.tensor([0.8, 0.2, 0.0, 1.0])
    small = resize(rgba, 1)[0, :, 0, 0]
    assert torch.allclose(small, torch.tensor([0.8, 0.2, 0.0, 0.25]), atol=1e-5)
    assert resize(rgba, 2) is rgba


def test_a_shape_network_is_part_of_the_generator(tmp_path):
    whole, plain = generator(shape=SHAPE), generator()
    assert sum(name.startswith("shape.") for name in whole.state_dict()) > 50
    plain.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("shape.")})
    again = Generator.from_pretrained(whole.save_pretrained(tmp_path / "whole"))
    own, read = whole.state_dict(), again.state_dict()
    assert own.keys() == read.keys() and all(torch.equal(own[name], read[name]) for name in own)
    y, x = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(48) - 23.5, indexing="ij")
    disc = ((x**2 + y**2).sqrt() < 14).float()
    picture = torch.cat([torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)), disc[None]])
    with torch.no_grad():
        whole.shape[0].occupancy[-1].bias.fill_(1.0)  # matter, where the untrained splats leave none
        soft, solid, hull = (
            whole.generate(picture, raw=True),
            whole.generate(picture),
            plain.generate(picture),
        )
    assert torch.equal(soft.means, plain.generate(picture, raw=True).means)
    assert len(solid.means) != len(hull.means) and solid.means.isfinite().all()
    whole.config.surface = "off"
    assert torch.equal(whole.generate(picture).means, soft.means)


def test_an_older_name_of_another_size_is_told(tmp_path):
    whole = generator(shape=SHAPE)
    old = {name.replace("shape.0.", "shape."): t for name, t in whole.state_dict().items()}
    old["shape.stem.weight"] = old["shape.stem.weight"][:, 1:].contiguous()
    save_file(old, whole.save_pretrained(tmp_path) / "model.safetensors")
    with pytest.raises(
        UserError, match="does not fit its config: 1 tensors differ, first 'shape.0.stem.weight'"
    ):
        Generator.from_pretrained(tmp_path)


def test_answers_of_networks_trained_apart_are_averaged(tmp_path):
    torch.manual_seed(5)
    whole, networks = generator(), [OccupancyNet(SHAPE).eval() for _ in range(2)]
    with torch.no_grad():
        for network, bias in zip(networks, (-3.0, 5.0), strict=True):
            network.occupancy[-1].bias.fill_(bias)
    picture = torch.zeros(4, 48, 48)
    picture[:, 12:36, 12:36] = 1
    found = [network.shape(picture, torch.tensor(0.1)) for network in networks]
    mean = Shape.mean(found)
    torch.testing.assert_close(mean.logits, (found[0].logits + found[1].logits) / 2)
    torch.testing.assert_close(mean.volume, (found[0].volume + found[1].volume) / 2)
    assert mean.elevation is found[0].elevation
    volume = []
    for some in ([networks[0]], networks, [networks[1]]):
        made = whole.with_shape(*some)
        again = Generator.from_pretrained(made.save_pretrained(tmp_path / "mean"))
        assert made is whole and again.config.shape_networks == len(again.shape) == len(some)
        bodies = [g.generate(picture, elevation=5.0).means for g in (made, again)]
        assert torch.equal(*bodies)
        volume.append(float(bodies[0][:, 2].amax() - bodies[0][:, 2].amin()))
    assert volume[0] < volume[1] < volume[2]
    with pytest.raises(UserError, match="2 shape networks, not all of one config"):
        whole.with_shape(networks[0], OccupancyNet(replace(SHAPE, depth=2)))
    with pytest.raises(UserError, match="0 shape networks"):
        whole.with_shape()


def test_a_large_model_is_kept_in_several_files(tmp_path):
    whole = generator(shape=SHAPE)
    folder = whole.save_pretrained(tmp_path / "parts", torch.float16, 100_000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and max(f.stat().st_size for f in files[1:]) < 210_000
    again, single = Generator.from_pretrained(folder), whole.half().float()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), single.parameters(), strict=True))
    whole.save_pretrained(folder, torch.float16)  # in one: the index of before must not be read
    files[-1].unlink()
    assert Generator.from_pretrained(folder).config == again.config
    folder = whole.save_pretrained(tmp_path / "torn", torch.float16, 100_000)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match="model-00002-of-.*: missing"):
        Generator.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(UserError, match="torn/secret.safetensors: missing"):
        Generator.from_pretrained(folder)
