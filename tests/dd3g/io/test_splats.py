"""Splat files: golden bytes, foreign readers, orientation."""

import gzip
import io
import json
import math
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians, quaternion_to_matrix
from dd3g.io import splats

GOLDEN = Path(__file__).parents[2] / "golden"
DATA = os.environ.get("DD3G_DATA")
FOREIGN = sorted(Path(DATA, "splats").glob("*.splat")) if DATA else []


def example() -> Gaussians:
    """Three Gaussians to keep, one too faint, one not finite; the second has a quaternion of length 2."""
    return Gaussians(
        means=torch.tensor(
            [[0, 1, 0], [0.5, -0.25, 0.125], [-1, 0, 0.75], [0, 0, 0], [math.nan, 0, 0]]
        ).float(),
        quats=torch.tensor(
            [[1, 0, 0, 0], [1, 1, 1, 1], [0.6, 0, 0.8, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
        ).float(),
        scales=torch.tensor([[0.01, 0.02, 0.04], [0.1, 0.1, 0.3], [0.05, 0.2, 0.1], [1, 1, 1], [1, 1, 1]]),
        opacities=torch.tensor([1.0, 0.75, 0.25, 0.004, 0.5]),
        colors=torch.tensor([[1, 0.5, 0], [0.2, 0.4, 0.6], [0, 1, 0.1], [1, 1, 1], [1, 1, 1]]),
    )


def covariances(gaussians: Gaussians) -> torch.Tensor:
    """(N, 3, 3): what a rotation and its scales mean, whichever quaternion was chosen."""
    factor = quaternion_to_matrix(gaussians.quats) * gaussians.scales[:, None, :]
    return factor @ factor.transpose(-1, -2)


def assert_same(got: Gaussians, want: Gaussians, **tolerance: float) -> None:
    torch.testing.assert_close(got.means, want.means, **tolerance)
    torch.testing.assert_close(covariances(got), covariances(want), **tolerance)
    torch.testing.assert_close(got.opacities, want.opacities, **tolerance)
    torch.testing.assert_close(got.colors, want.colors, **tolerance)


def ply_table(data: bytes) -> np.ndarray:
    """(N, 14) by a reader that knows only the 3DGS column order."""
    return np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4").reshape(-1, 14)


@pytest.mark.parametrize("format", splats.FORMATS)
def test_golden_bytes(format):
    golden = (GOLDEN / f"gaussians.{format}").read_bytes()
    written = splats.encode(example(), format)
    if format == "spz":
        # zlib versions compress differently; what is inside must not differ, nor the clock be written.
        assert written[4:8] == bytes(4)
        golden, written = gzip.decompress(golden), gzip.decompress(written)
    if format == "sog":
        golden, written = unzipped(golden), unzipped(written)  # libwebp, too
    assert written == golden


def unzipped(data: bytes) -> dict[str, bytes]:
    """Name -> the pixels of a .webp, or the bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    return {
        name: Image.open(io.BytesIO(content)).tobytes() if name.endswith(".webp") else content
        for name, content in inside.items()
    }


def test_ply_holds_raw_values_in_rdf():
    data = splats.encode(example(), "ply")
    header = data[: data.index(b"end_header\n")].decode().splitlines()
    names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    assert header == [
        "ply",
        "format binary_little_endian 1.0",
        "comment dd3g axes: opencv",
        "comment SplatRenderMode: mip",
        "element vertex 3",
        *(f"property float {name}" for name in names),
    ]
    rows = ply_table(data)
    # Up in our world (y = +1) is y = -1 in the file; towards the viewer (z > 0) is z < 0.
    np.testing.assert_array_equal(rows[:, :3], [[0, -1, 0], [0.5, 0.25, -0.125], [-1, 0, -0.75]])
    np.testing.assert_allclose(rows[0, 3:6], [0.5 / 0.28209479177387814, 0, -0.5 / 0.28209479177387814])
    np.testing.assert_allclose(
        rows[:, 6], [math.log((1 - 1e-6) / 1e-6), math.log(3), -math.log(3)], rtol=1e-6
    )
    np.testing.assert_allclose(rows[1, 7:10], np.log([0.1, 0.1, 0.3]), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows[:, 10:], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "matrix"),
    [
        ("opengl", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("opencv", [[1, 0, 0], [0, -1, 0], [0, 0, -1]]),
        ("zup", [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
    ],
)
@pytest.mark.parametrize("format", [f for f in splats.FORMATS if f != "glb"])
def test_axes_turn_places_and_shapes(tmp_path, axes, matrix, format):
    kept = example().pruned()
    path = splats.save(kept, tmp_path / f"x.{format}", axes=axes)
    turned = splats.load(path, axes="opengl")  # read as if the file's axes were ours
    R = torch.tensor(matrix).float()
    expected = kept.select(torch.tensor([1, 2, 0])) if format == "splat" else kept
    tolerance = TOLERANCE[format]
    if format in ("sog", "compressed.ply"):  # their order follows the places in the file
        turned = turned.select(nearest(expected.means @ R.T, turned.means))
    torch.testing.assert_close(turned.means, expected.means @ R.T, **tolerance)
    torch.testing.assert_close(covariances(turned), R @ covariances(expected) @ R.T, **tolerance)
    told = format in ("ply", "compressed.ply", "sog")
    back = splats.load(path) if told else splats.load(path, axes=axes)
    assert_same(back.select(nearest(expected.means, back.means)), expected, **tolerance)


TOLERANCE = {
    "ply": {"atol": 1e-6, "rtol": 1e-5},
    "splat": {"atol": 5e-3, "rtol": 1e-2},
    "compressed.ply": {"atol": 3e-3, "rtol": 1e-2},
    "spz": {"atol": 1e-2, "rtol": 0.14},
    "sog": {"atol": 6e-3, "rtol": 2e-2},
    "glb": {"atol": 1e-6, "rtol": 1e-5},
}


def nearest(wanted: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """For each place (N, 3), the index of the mean that lies nearest."""
    return torch.cdist(wanted, means).argmin(1)


@pytest.mark.parametrize("axes", ["opencv", "zup"])
def test_glb_has_one_orientation_and_says_why(tmp_path, axes):
    with pytest.raises(UserError, match=f"a .glb is y up by its standard and cannot have the axes '{axes}'"):
        splats.save(example(), tmp_path / "x.glb", axes=axes)
    assert list(tmp_path.iterdir()) == []
    kept = splats.save(example(), tmp_path / "x.glb", axes="opengl").read_bytes()
    assert kept == splats.encode(example(), "glb")
    with pytest.raises(UserError, match="leave --axes out"):
        splats.load(tmp_path / "x.glb", axes=axes)


@pytest.mark.parametrize("format", splats.FORMATS)
def test_round_trip(tmp_path, format):
    kept = example().pruned()
    path = kept.save(tmp_path / f"x.{format}")
    loaded = Gaussians.load(path)
    torch.testing.assert_close(loaded.quats.norm(dim=-1), torch.ones(3))
    assert loaded.means.dtype == torch.float32 and len(loaded) == 3
    assert_same(loaded.select(nearest(kept.means, loaded.means)), kept, **TOLERANCE[format])


def test_what_a_file_says_about_itself(tmp_path):
    for format in ("ply", "compressed.ply", "sog"):
        for antialiased, axes in ((True, "zup"), (False, "opencv")):
            path = splats.save(example(), tmp_path / f"x.{format}", axes=axes, antialiased=antialiased)
            told = splats.read(path)
            assert told.axes == axes and told.antialiased is antialiased and not told.harmonics
            assert told.drawn_antialiased is antialiased
    data = splats.encode(example(), "ply")
    ours, mode = b"comment dd3g axes: opencv\n", b"comment SplatRenderMode: mip\n"
    assert splats.decode(data.replace(mode, b""), "ply").antialiased is True  # of older versions
    assert splats.decode(data.replace(ours, b""), "ply").antialiased is True
    foreign = splats.decode(data.replace(ours + mode, b""), "ply")
    assert foreign.antialiased is False and foreign.axes == "opencv"
    spz = splats.decode(splats.encode(example(), "spz"), "spz")
    assert spz.antialiased is None and spz.drawn_antialiased is True
    assert [splats.decode(splats.encode(example(), f), f).axes for f in ("spz", "glb", "splat")] == [
        "opengl",
        "opengl",
        "opencv",
    ]


def test_the_first_layout_has_62_columns():
    data = splats.encode(example(), "ply", layout="inria")
    header, _, body = data.partition(b"end_header\n")
    names = [line.split()[-1].decode() for line in header.splitlines() if line.startswith(b"property float")]
    rest = [f"f_rest_{i}" for i in range(45)]
    assert len(names) == 62 and names == (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split()
        + rest
        + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    )
    rows = np.frombuffer(body, "<f4").reshape(3, 62)
    plain = ply_table(splats.encode(example(), "ply"))
    np.testing.assert_array_equal(rows[:, [0, 1, 2, 6, 7, 8, *range(54, 62)]], plain)
    assert not rows[:, 3:6].any() and not rows[:, 9:54].any()
    read = splats.decode(data, "ply")
    assert_same(read.gaussians, splats.decode(splats.encode(example(), "ply"), "ply").gaussians)
    assert not read.harmonics
    table = np.array(rows)
    table[1, 20] = 0.1
    assert splats.decode(header + b"end_header\n" + table.tobytes(), "ply").harmonics
    with pytest.raises(UserError, match="unknown layout 'wide' of .ply: use one of compact, inria"):
        splats.encode(example(), "ply", layout="wide")


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


def test_spz_cells_by_hand():
    """Unpacked by the published layout: 24-bit positions, then alphas, colours, log scales, rotations."""
    raw = gzip.decompress(splats.encode(example(), "spz"))
    magic, version, count, degree, bits, flags, _ = struct.unpack_from("<4sIIBBBB", raw)
    assert (magic, version, count, degree, bits, flags) == (b"NGSP", 3, 3, 0, 12, 0)
    positions = [int.from_bytes(raw[16 + 3 * i : 19 + 3 * i], "little", signed=True) / 4096 for i in range(9)]
    assert positions == [0, 1, 0, 0.5, -0.25, 0.125, -1, 0, 0.75]  # RUB: our own axes, up stays up
    alphas, colors, scales = raw[43:46], raw[46:55], raw[55:64]
    assert list(alphas) == [255, 191, 64]
    assert [round(((c / 255 - 0.5) / 0.15) * 0.28209479 + 0.5, 2) for c in colors[3:6]] == [0.2, 0.4, 0.6]
    assert [round(math.exp(s / 16 - 10), 2) for s in scales[3:6]] == [0.1, 0.1, 0.3]
    largest = (
        struct.unpack_from("<I", raw, 64 + 8)[0] >> 30
    )  # third: (w, x, y, z) = (.6, 0, .8, 0); stored xyzw
    assert largest == 1


def test_splat_is_sorted_by_importance():
    data = splats.encode(example(), "splat")
    assert len(data) == 3 * 32
    scales = np.frombuffer(data, "<f4").reshape(3, 8)[:, 3:6]
    np.testing.assert_array_equal(scales, np.float32([[0.1, 0.1, 0.3], [0.05, 0.2, 0.1], [0.01, 0.02, 0.04]]))
    assert list(data[24:28]) == [51, 102, 153, 191]  # rgb .2 .4 .6, opacity .75
    # (1, 1, 1, 1) / 2 after a half turn about x is (-1, 1, -1, 1) / 2.
    assert list(data[28:32]) == [64, 192, 64, 192]


def test_gsply_reads_ply_and_spz(tmp_path):
    gsply = pytest.importorskip("gsply")
    kept = example().pruned()
    rows = ply_table(splats.encode(kept, "ply"))
    read = gsply.plyread(kept.save(tmp_path / "x.ply"))
    np.testing.assert_array_equal(read.means, rows[:, 0:3])
    np.testing.assert_array_equal(read.sh0, rows[:, 3:6])
    np.testing.assert_array_equal(np.ravel(read.opacities), rows[:, 6])
    np.testing.assert_array_equal(read.scales, rows[:, 7:10])
    np.testing.assert_array_equal(read.quats, rows[:, 10:14])
    packed = gsply.read_spz(kept.save(tmp_path / "x.spz"))
    np.testing.assert_allclose(packed.means, kept.means, atol=1.3e-4)
    np.testing.assert_allclose(packed.scales, kept.scales.log(), atol=1 / 32 + 1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.ravel(packed.opacities))), kept.opacities, atol=0.003)


def test_gsply_writes_what_we_read(tmp_path):
    gsply = pytest.importorskip("gsply")
    raw = np.random.default_rng(0).normal(size=(50, 14)).astype(np.float32)
    quats = raw[:, 10:] / np.linalg.norm(raw[:, 10:], axis=1, keepdims=True)
    gsply.plywrite(tmp_path / "x.ply", raw[:, :3], raw[:, 7:10], quats, raw[:, 6], raw[:, 3:6])
    loaded = splats.load(tmp_path / "x.ply")  # no comment: taken as RDF
    np.testing.assert_allclose(loaded.means, raw[:, :3] * [1, -1, -1], rtol=1e-6)
    np.testing.assert_allclose(loaded.scales, np.exp(raw[:, 7:10]), rtol=1e-5)
    np.testing.assert_allclose(loaded.opacities, 1 / (1 + np.exp(-raw[:, 6])), rtol=1e-5)
    np.testing.assert_array_equal(ply_table(splats.encode(loaded, "ply", min_opacity=0))[:, :3], raw[:, :3])


def test_glb_opens_as_a_point_cloud(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    kept = example().pruned()
    (cloud,) = trimesh.load(kept.save(tmp_path / "x.glb")).geometry.values()
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_array_equal(cloud.vertices, kept.means)  # y up, as the standard asks
    linear = [[255, 55, 0, 255], [8, 34, 81, 191], [0, 255, 3, 64]]  # IEC 61966-2-1 by hand
    assert np.abs(cloud.colors.astype(int) - linear).max() <= 1


def test_glb_follows_the_extension():
    data = splats.encode(example(), "glb")
    magic, version, length, size = struct.unpack_from("<4sIII", data)
    assert (magic, version, length, length % 4, size % 4) == (b"glTF", 2, len(data), 0, 0)
    document = json.loads(data[20 : 20 + size])
    primitive = document["meshes"][0]["primitives"][0]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"] and primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"] == {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
    }

    def column(name: str) -> np.ndarray:
        accessor = document["accessors"][primitive["attributes"][name]]
        view = document["bufferViews"][accessor["bufferView"]]
        assert accessor["componentType"] == 5126 and view["byteOffset"] % 4 == 0
        return np.frombuffer(data, "<f4", view["byteLength"] // 4, 28 + size + view["byteOffset"]).reshape(
            3, -1
        )

    kept = example().pruned()
    np.testing.assert_array_equal(column("KHR_gaussian_splatting:SCALE"), kept.scales)
    np.testing.assert_array_equal(column("KHR_gaussian_splatting:OPACITY")[:, 0], kept.opacities)
    np.testing.assert_allclose(column("KHR_gaussian_splatting:ROTATION")[2], [0, 0.8, 0, 0.6], rtol=1e-6)
    sh0 = column("KHR_gaussian_splatting:SH_DEGREE_0_COEF_0")
    np.testing.assert_allclose(sh0 * 0.28209479177387814 + 0.5, kept.colors, atol=1e-6)
    assert document["accessors"][0]["min"] == [-1, -0.25, 0] and document["accessors"][0]["max"] == [
        0.5,
        1,
        0.75,
    ]


@pytest.mark.skipif(not FOREIGN, reason="the folder of foreign .splat files is not here (set DD3G_DATA)")
def test_foreign_splat_files_survive_a_round_trip():
    assert len(FOREIGN) == 8
    for path in FOREIGN:
        loaded = splats.load(path)
        assert len(loaded) == 10_000 and loaded.means.abs().max() < 100, path.name
        again = np.frombuffer(splats.encode(loaded, "splat", min_opacity=0), np.uint8).reshape(-1, 32)
        original = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 32)
        # Places, scales and colours come back bit for bit; row order and quaternion length are ours.
        assert sorted(map(bytes, again[:, :28])) == sorted(map(bytes, original[:, :28])), path.name


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_ply_of_other_tools(tmp_path, kind, end):
    """Normals, extra harmonics, doubles, another column order and a second element do no harm."""
    rows = ply_table(splats.encode(example(), "ply"))
    names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    columns = [("<f8" if name == "x" else "<f4", name) for name in reversed(names)]
    columns = [("<f4", "nx"), *columns, ("u1", "red"), ("<f4", "f_rest_0")]
    table = np.zeros(3, [(name, kind) for kind, name in columns])
    for i, name in enumerate(names):
        table[name] = rows[:, i]
    kinds = {"<f8": "double", "<f4": "float", "u1": "uchar"}
    header = ["ply", f"format {kind} 1.0", "comment Vertical Axis: y", "element vertex 3"]
    header += [f"property {kinds[kind]} {name}" for kind, name in columns]
    header += ["element extrinsic 1", "property float extrinsic", "end_header\n"]
    path = tmp_path / "x.ply"
    if kind == "binary_big_endian":
        table = table.astype(table.dtype.newbyteorder(">"))
    values = table.tobytes() + bytes(4)
    if kind == "ascii":
        values = end.join(" ".join(map(str, row)) for row in [*table.tolist(), (1.5,)]).encode()
    path.write_bytes(end.join(header).encode() + values)
    assert_same(splats.load(path), example().pruned(), atol=1e-6, rtol=1e-5)
