"""Splat files of all formats: golden bytes, foreign readers, orientation."""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins.splat_files import TOLERANCE, assert_same, covariances, example, nearest, ply_table, unzipped

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.io import splats

GOLDEN = Path(__file__).parents[2] / "golden"
DATA = os.environ.get("DD3G_DATA")
FOREIGN = sorted(Path(DATA, "splats").glob("*.splat")) if DATA else []


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


def test_spz_cells_by_hand():
    """Unpacked by the published layout: 24-bit positions, then alphas, colours, log scales, rotations."""
    data = splats.encode(example(), "spz")
    assert data[4:8] == bytes(4)  # no clock: the same Gaussians give the same file
    raw = gzip.decompress(data)
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


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_an_spz_of_more_than_one_colour_says_so(tmp_path, level):
    gsply = pytest.importorskip("gsply")
    raw = ply_table(splats.encode(example(), "ply"))
    arrays = raw[:, :3], raw[:, 7:10], raw[:, 10:], raw[:, 6], raw[:, 3:6]
    data = gsply.GSData.from_arrays(*arrays, shN=np.full((3, 3, 3), level, np.float32), format="ply")
    gsply.write_spz(tmp_path / "x.spz", data, version=3)
    read = splats.decode((tmp_path / "x.spz").read_bytes(), "spz")
    assert read.harmonics is (level > 0) and len(read.gaussians) == 3


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
