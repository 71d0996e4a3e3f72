"""Splat files: golden bytes, foreign readers, orientation."""

import gzip
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dd3g.gaussians import Gaussians
from dd3g.io import splats
from dd3g.quaternions import quaternion_to_matrix

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
    assert written == golden


def test_ply_holds_raw_values_in_rdf():
    data = splats.encode(example(), "ply")
    header = data[: data.index(b"end_header\n")].decode().splitlines()
    names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    assert header == [
        "ply",
        "format binary_little_endian 1.0",
        "comment dd3g axes: opencv",
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
@pytest.mark.parametrize("format", ["ply", "splat"])
def test_axes_turn_places_and_shapes(tmp_path, axes, matrix, format):
    kept = example().pruned()
    path = splats.save(kept, tmp_path / f"x.{format}", axes=axes)
    turned = splats.load(path, axes="opengl")  # read as if the file's axes were ours
    R = torch.tensor(matrix).float()
    order = [0, 1, 2] if format == "ply" else [1, 2, 0]
    expected = kept.select(torch.tensor(order))
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if format == "ply" else {"atol": 2e-3, "rtol": 1e-2}
    torch.testing.assert_close(turned.means, expected.means @ R.T)
    torch.testing.assert_close(covariances(turned), R @ covariances(expected) @ R.T, **tolerance)
    back = splats.load(path) if format == "ply" else splats.load(path, axes=axes)
    assert_same(back, expected, **tolerance)


@pytest.mark.parametrize(("format", "atol"), [("ply", 1e-6), ("glb", 1e-6), ("spz", 0.02), ("splat", 0.005)])
def test_round_trip(tmp_path, format, atol):
    kept = example().pruned()
    path = kept.save(tmp_path / f"x.{format}")
    loaded = Gaussians.load(path)
    if format == "splat":
        kept = kept.select(torch.tensor([1, 2, 0]))  # most volume times opacity first
    assert_same(loaded, kept, atol=atol, rtol=0.07 if format == "spz" else 0.01)
    torch.testing.assert_close(loaded.quats.norm(dim=-1), torch.ones(3))
    assert loaded.means.dtype == torch.float32 and len(loaded) == 3


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


def test_ply_of_other_tools(tmp_path):
    """Normals, extra harmonics, doubles, another column order and a second element do no harm."""
    rows = ply_table(splats.encode(example(), "ply"))
    names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    columns = [("<f8" if name == "x" else "<f4", name) for name in reversed(names)]
    columns = [("<f4", "nx"), *columns, ("u1", "red"), ("<f4", "f_rest_0")]
    table = np.zeros(3, [(name, kind) for kind, name in columns])
    for i, name in enumerate(names):
        table[name] = rows[:, i]
    kinds = {"<f8": "double", "<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", "comment Vertical Axis: y", "element vertex 3"]
    header += [f"property {kinds[kind]} {name}" for kind, name in columns]
    header += ["element extrinsic 1", "property float extrinsic", "end_header\n"]
    path = tmp_path / "x.ply"
    path.write_bytes("\n".join(header).encode() + table.tobytes() + bytes(4))
    assert_same(splats.load(path), example().pruned(), atol=1e-6, rtol=1e-5)
