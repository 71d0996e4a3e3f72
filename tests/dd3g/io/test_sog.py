""".sog and compressed .ply by the letter of their specifications."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from stand_ins.splat_files import assert_same, example, nearest, unzipped

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import splats


def test_compressed_ply_is_read_by_its_content(tmp_path):
    gsply = pytest.importorskip("gsply")
    draw = torch.Generator().manual_seed(0)
    many = Gaussians(
        means=torch.rand(1000, 3, generator=draw),
        quats=torch.nn.functional.normalize(torch.randn(1000, 4, generator=draw), dim=-1),
        scales=torch.rand(1000, 3, generator=draw) * 0.05 + 0.01,
        opacities=torch.rand(1000, generator=draw) * 0.9 + 0.05,
        colors=torch.rand(1000, 3, generator=draw),
    )
    data = splats.encode(many, "compressed.ply", axes="opengl")
    assert len(data) < 1000 * 16 + 4 * 72 + 1000
    (tmp_path / "x.ply").write_bytes(data)
    loaded = splats.load(tmp_path / "x.ply")  # four chunks, the last one not full
    read = gsply.decompress_from_bytes(data)
    np.testing.assert_allclose(loaded.means, read.means, atol=1e-6)
    np.testing.assert_allclose(loaded.scales, np.exp(read.scales), rtol=1e-5)
    order = nearest(many.means, loaded.means)
    assert order.unique().numel() > 990
    assert_same(loaded.select(order), many, atol=0.02, rtol=0.02)
    header = data[: data.index(b"end_header\n")].replace(b"element chunk 4", b"element chunk 3")
    (tmp_path / "x.ply").write_bytes(header + data[len(header) :])
    with pytest.raises(UserError, match="its 3 chunks do not fit its 1000 Gaussians"):
        splats.load(tmp_path / "x.ply")


def test_sog_holds_what_its_specification_says():
    inside = unzipped(splats.encode(example(), "sog"))
    assert list(inside) == [*(f"{n}.webp" for n in "means_l means_u quats scales sh0".split()), "meta.json"]
    meta = json.loads(inside["meta.json"])
    assert (meta["version"], meta["count"], meta["model"]) == (2, 3, "antialiased")
    pixels = {
        n: np.frombuffer(inside[f"{n}.webp"], np.uint8).reshape(-1, 4)[:3].astype(int)
        for n in meta_files(meta)
    }
    low, high = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    steps = pixels["means_l"][:, :3] + 256 * pixels["means_u"][:, :3]
    places = low + steps / 65535 * (high - low)
    places = np.sign(places) * (np.exp(np.abs(places)) - 1)
    order = [2, 0, 1]  # along the Morton curve
    np.testing.assert_allclose(places, [[-1, 0, -0.75], [0, -1, 0], [0.5, 0.25, -0.125]], atol=2e-5)
    scales = np.exp(np.array(meta["scales"]["codebook"])[pixels["scales"][:, :3]])
    np.testing.assert_allclose(scales, example().scales[order], rtol=1e-4)
    colors = np.array(meta["sh0"]["codebook"])[pixels["sh0"][:, :3]] * 0.28209479177387814 + 0.5
    np.testing.assert_allclose(colors, example().colors[order], atol=1e-4)
    assert list(pixels["sh0"][:, 3]) == [64, 255, 191]
    # After a half turn about x, (.6, 0, .8, 0) is (0, .6, 0, .8): z is the largest and left out.
    assert list(pixels["quats"][0]) == [128, 236, 128, 255]


def meta_files(meta: dict) -> list[str]:
    """Names of the pictures that meta.json lists, without .webp."""
    return [
        f.removesuffix(".webp")
        for part in meta.values()
        if isinstance(part, dict)
        for f in part.get("files", [])
    ]


def test_many_scales_and_colours_lose_little_in_a_sog():
    draw = torch.Generator().manual_seed(0)
    many = Gaussians(
        means=torch.randn(5000, 3, generator=draw) * 0.3,
        quats=torch.nn.functional.normalize(torch.randn(5000, 4, generator=draw), dim=-1),
        scales=(torch.randn(5000, 3, generator=draw) - 4).exp(),
        opacities=torch.rand(5000, generator=draw) * 0.9 + 0.05,
        colors=torch.rand(5000, 3, generator=draw),
    )
    data = splats.encode(many, "sog")
    loaded = splats.decode(data, "sog").gaussians
    order = nearest(many.means, loaded.means)
    assert order.unique().numel() > 4990
    loaded = loaded.select(order)
    assert (loaded.means - many.means).abs().max() < 5e-5
    assert (loaded.scales / many.scales).log().abs().mean() < 0.01
    assert (loaded.colors - many.colors).abs().max() < 0.005
    assert (loaded.opacities - many.opacities).abs().max() < 0.0021
    assert len(data) * 3 < len(splats.encode(many, "ply"))  # of noise; objects shrink more
    assert splats.encode(many, "sog") == data


def test_a_damaged_member_is_told(tmp_path):
    """Also where another tool deflated it, and zlib stumbles before the checksum."""
    with zipfile.ZipFile(io.BytesIO(splats.encode(example(), "sog"))) as stored:
        contents = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / "x.sog", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        place = archive.getinfo("meta.json").header_offset + 30 + len("meta.json")
    data = bytearray((tmp_path / "x.sog").read_bytes())
    data[place : place + 20] = bytes([255]) * 20
    (tmp_path / "x.sog").write_bytes(data)
    with pytest.raises(UserError, match=r"x.sog is not a .sog file .* decompressing data"):
        splats.load(tmp_path / "x.sog")
