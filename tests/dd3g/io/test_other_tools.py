"""Splat files as other tools write them: columns, elements, versions, nodes."""

import gzip
import json
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from stand_ins.splat_files import TOLERANCE, assert_same, covariances, example, nearest, ply_table

from dd3g.errors import UserError
from dd3g.gaussians import Gaussians, quaternion_to_matrix
from dd3g.info import described
from dd3g.io import ply, sog, splats

KINDS = {"<f4": "float", "u1": "uchar", "<f8": "double"}


def columns() -> dict[str, np.ndarray]:
    return dict(zip(ply.FIELDS, ply_table(splats.encode(example(), "ply")).T, strict=True))


def encoded(values: dict[str, np.ndarray], before: str = "", first: bytes = b"", kind: str = "") -> bytes:
    """A .ply of these columns, with an element in front of them."""
    types = [(name, "u1" if column.dtype == "u1" else "<f4") for name, column in values.items()]
    table = np.empty(3, types)
    for name, column in values.items():
        table[name] = column
    header = f"ply\nformat {kind or 'binary_little_endian'} 1.0\n{before}element vertex 3\n"
    header += "".join(f"property {KINDS[kind]} {name}\n" for name, kind in types)
    body = "\n".join(" ".join(map(str, row)) for row in table.tolist()) if kind else ""
    return f"{header}end_header\n".encode() + first + (body.encode() or table.tobytes())


CAMERA = "element camera 2\nproperty float fx\nproperty uchar id\n"


@pytest.mark.parametrize("kind", ["", "ascii"])
def test_other_elements_may_come_first(kind):
    first = b"1.5 3\n2 4\n" if kind else struct.pack("<fBfB", 1.5, 3, 2, 4)
    read = splats.decode(encoded(columns(), CAMERA, first, kind), "ply").gaussians
    assert_same(read, example().pruned(), atol=1e-6, rtol=1e-5)
    faces = "element face {}\nproperty list uchar int vertex_indices\n"
    read = splats.decode(encoded(columns(), faces.format(0), b"", kind), "ply").gaussians
    assert_same(read, example().pruned(), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="its element 'face' has columns that are not plain numbers"):
        splats.decode(encoded(columns(), faces.format(1), b"", kind), "ply")


def test_headers_of_any_length_and_spacing():
    data = encoded(columns(), "comment " + "long " * 20_000 + "end_header\n")
    data = data.replace(b"1.0\n", b"1.0 \n", 1).replace(b"property float x", b"property  float\tx ")
    data = data.replace(b"\nend_header\n", b"\nend_header \r\n", 1)
    assert_same(splats.decode(data, "ply").gaussians, example().pruned(), atol=1e-6, rtol=1e-5)


def test_discs_have_two_scales():
    values = columns()
    del values["scale_2"]
    read = splats.decode(encoded(values), "ply").gaussians
    torch.testing.assert_close(read.scales[:, :2], example().pruned().scales[:, :2])
    torch.testing.assert_close(read.scales[:, 2], torch.full((3,), 1e-6))
    for format in splats.FORMATS:  # and are written as other Gaussians are
        again = splats.decode(splats.encode(read, format), format).gaussians
        again = again.select(nearest(read.means, again.means))
        torch.testing.assert_close(covariances(again), covariances(read), **TOLERANCE[format])
    del values["scale_1"]
    with pytest.raises(ValueError, match="the columns scale_1, scale_2 are missing"):
        splats.decode(encoded(values), "ply")


@pytest.mark.parametrize("levels", ["u1", "f4"])
def test_levels_stand_in_for_harmonics(levels):
    values, colors = columns(), example().pruned().colors.numpy()
    for i, name in enumerate(("red", "green", "blue")):
        del values[f"f_dc_{i}"]
        values[name] = np.rint(255 * colors[:, i]).astype("u1") if levels == "u1" else colors[:, i]
    read = splats.decode(encoded(values), "ply").gaussians
    torch.testing.assert_close(read.colors, torch.from_numpy(colors), atol=2e-3, rtol=0)
    del values["blue"]
    with pytest.raises(ValueError, match="the columns f_dc_0, f_dc_1, f_dc_2 are missing"):
        splats.decode(encoded(values), "ply")


def first_sog() -> dict[str, bytes]:
    """The files of a .sog of version 1: scales, colours and logits between bounds, and no codebook."""
    raw = ply_table(splats.encode(example(), "ply")).astype(np.float64)
    places = np.sign(raw[:, :3]) * np.log1p(np.abs(raw[:, :3]))
    opaque = np.full((3, 1), 255)

    def quantised(values: np.ndarray, most: int) -> tuple[np.ndarray, dict]:
        low, high = values.min(0), values.max(0)
        bounds = {"mins": low.tolist(), "maxs": high.tolist()}
        return np.rint(most * (values - low) / (high - low)).astype(int), bounds

    steps, means = quantised(places, 65535)
    sizes, scales = quantised(raw[:, 7:10], 255)
    levels, sh0 = quantised(raw[:, [3, 4, 5, 6]], 255)
    pictures = {
        "means_l": np.hstack([steps & 255, opaque]),
        "means_u": np.hstack([steps >> 8, opaque]),
        "scales": np.hstack([sizes, opaque]),
        "quats": sog._packed(raw[:, 10:14]),
        "sh0": levels,
    }
    meta = {
        "means": {"shape": [3, 3], "files": ["means_l.webp", "means_u.webp"], **means},
        "scales": {"shape": [3, 3], "files": ["scales.webp"], **scales},
        "quats": {"shape": [3, 4], "encoding": "quaternion_packed", "files": ["quats.webp"]},
        "sh0": {"shape": [3, 1, 4], "files": ["sh0.webp"], **sh0},
    }
    files = {f"{name}.webp": sog._webp(pixels.astype(np.uint8)) for name, pixels in pictures.items()}
    return files | {"meta.json": json.dumps(meta).encode()}


def test_a_sog_of_version_1_and_one_that_is_not_zipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.sog", "w") as archive:
        for name, content in first_sog().items():
            archive.writestr(name, content)
            (tmp_path / name).write_bytes(content)
    for name in ("x.sog", "meta.json"):
        read = splats.load(tmp_path / name)
        wanted = example().pruned()
        read = read.select(nearest(wanted.means, read.means))
        assert_same(replace(read, opacities=wanted.opacities), wanted, **TOLERANCE["sog"])
        torch.testing.assert_close(read.opacities, wanted.opacities, atol=2e-2, rtol=0)  # logits from 1e-6 on
    names = ["meta.json", *(f"{name}.webp" for name in ("means_l", "means_u", "scales", "quats", "sh0"))]
    (tmp_path / "stranger.webp").write_bytes(bytes(99))
    assert described(tmp_path / "meta.json")["bytes"] == sum((tmp_path / n).stat().st_size for n in names)
    with pytest.raises(UserError, match="unknown format 'json'"):
        splats.save(example(), tmp_path / "meta.json")
    (tmp_path / "sh0.webp").unlink()
    with pytest.raises(UserError, match="no item named 'sh0.webp'"):
        splats.load(tmp_path / "meta.json")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("flag", [0, 1])
def test_early_spz(version, flag):
    """Half floats, and three components of a quaternion whose first is positive."""
    kept = example().pruned()
    raw = ply.to_raw(splats._unit(kept)).astype(np.float64)
    head = struct.pack("<4sIIBBBB", b"NGSP", version, 3, 0, 12, flag, 0)
    if version == 1:
        head += raw[:, :3].astype("<f2").tobytes()
    else:
        steps = np.rint(raw[:, :3] * 4096).astype("<i4")
        head += b"".join(int(step).to_bytes(3, "little", signed=True) for step in steps.flat)
    levels = [
        255 * kept.opacities.numpy(),
        255 * (0.15 * raw[:, 3:6] + 0.5),
        16 * (raw[:, 7:10] + 10),
        127.5 * (raw[:, 11:14] + 1),
    ]
    body = b"".join(np.rint(values).clip(0, 255).astype("u1").tobytes() for values in levels)
    read = splats.decode(gzip.compress(head + body), "spz")
    assert_same(read.gaussians, kept, **TOLERANCE["spz"])
    assert read.antialiased is (True if flag else None)
    with pytest.raises(ValueError):
        splats.decode(gzip.compress(head + body[:-1]), "spz")


def with_document(change) -> bytes:
    """The .glb of the example with another JSON."""
    data = splats.encode(example(), "glb")
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, len(data) - size + len(text))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + data[20 + size :]


def test_a_glb_has_its_splats_where_its_nodes_place_them():
    turn = [0, 0, 0.5**0.5, 0.5**0.5]  # a quarter about z, xyzw: x becomes y

    def change(document):
        matrix = [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]  # by columns: the same turn, and 5 along x
        document["nodes"] = [
            {"children": [2], "translation": [1, 2, 3], "scale": [2, 2, 2]},
            {"mesh": 0},
            {"mesh": 0, "rotation": turn},
            {"mesh": 0, "matrix": matrix},
            {"mesh": 0},  # of no scene
            {"camera": 0, "scale": [1, 2, 3]},
        ]
        document["scenes"] = [{"nodes": [0, 1, 3, 5]}]

    read = splats.decode(with_document(change), "glb").gaussians
    kept = example().pruned()
    turned = kept.means @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    wanted = torch.cat(
        [2 * turned + torch.tensor([1.0, 2, 3]), kept.means, turned + torch.tensor([5.0, 0, 0])]
    )
    torch.testing.assert_close(read.means, wanted)
    torch.testing.assert_close(read.scales, torch.cat([2 * kept.scales, kept.scales, kept.scales]))
    quarter = quaternion_to_matrix(torch.tensor([0.5**0.5, 0, 0, 0.5**0.5]))
    for part in (read.select(slice(0, 3)), read.select(slice(6, 9))):
        size = (part.scales[0, 0] / kept.scales[0, 0]) ** 2
        torch.testing.assert_close(covariances(part), size * quarter @ covariances(kept) @ quarter.T)
    assert_same(read.select(slice(3, 6)), kept)


def test_a_glb_of_several_primitives_and_without_a_scene():
    def change(document):
        (mesh,) = document["meshes"]
        mesh["primitives"] += [*mesh["primitives"], {"attributes": {"POSITION": 0}, "mode": 4}]
        del document["scenes"], document["scene"]

    assert_same(
        splats.decode(with_document(change), "glb").gaussians,
        Gaussians.cat([example().pruned()] * 2),
        atol=1e-6,
        rtol=1e-5,
    )


def test_a_glb_of_linear_colours():
    def change(document):
        (primitive,) = document["meshes"][0]["primitives"]
        primitive["extensions"]["KHR_gaussian_splatting"]["colorSpace"] = "lin_rec709_display"

    read, linear = splats.decode(with_document(change), "glb").gaussians.colors, example().pruned().colors
    wanted = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    torch.testing.assert_close(read, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"]), "it needs KHR_draco_mesh"),
        (lambda d: d["bufferViews"][0].update(extensions={"EXT_meshopt_compression": {}}), "are compressed"),
        (lambda d: d["bufferViews"][0].update(buffer=1), "are compressed or in another file"),
        (lambda d: d["buffers"][0].update(uri="x.bin"), "are compressed or in another file"),
        (lambda d: d["accessors"][0].update(sparse={}), "its values are sparse or compressed"),
        (lambda d: d["accessors"][0].pop("bufferView"), "its values are sparse or compressed"),
        (lambda d: d["meshes"][0]["primitives"][0]["attributes"].popitem(), "its splats have no KHR_"),
        (lambda d: d["nodes"][0].update(scale=[1, 1, -1]), "its nodes mirror the splats, or stretch them"),
        (lambda d: d["nodes"][0].update(scale=[0, 0, 0]), "its nodes mirror the splats, or stretch them"),
        (lambda d: d["nodes"][0].update(children=[0]), "its node 0 has several places in the scene"),
        (lambda d: d.update(meshes=[]), "it has no primitive with KHR_gaussian_splatting"),
        (lambda d: d["nodes"][0].update(mesh=7), "its header is broken"),
    ],
)
def test_what_a_glb_may_need_and_is_not_read(change, message):
    with pytest.raises(ValueError, match=message):
        splats.decode(with_document(change), "glb")
