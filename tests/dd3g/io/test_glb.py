""".glb with KHR_gaussian_splatting: its extension, its one orientation, its way into other programs."""

import json
import struct

import numpy as np
import pytest
from stand_ins.splat_files import example

from dd3g.errors import UserError
from dd3g.io import splats


@pytest.mark.parametrize("axes", ["opencv", "zup"])
def test_glb_has_one_orientation_and_says_why(tmp_path, axes):
    with pytest.raises(UserError, match=f"a .glb is y up by its standard and cannot have the axes '{axes}'"):
        splats.save(example(), tmp_path / "x.glb", axes=axes)
    assert list(tmp_path.iterdir()) == []
    kept = splats.save(example(), tmp_path / "x.glb", axes="opengl").read_bytes()
    assert kept == splats.encode(example(), "glb")
    with pytest.raises(UserError, match="leave --axes out"):
        splats.load(tmp_path / "x.glb", axes=axes)


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
