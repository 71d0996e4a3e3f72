"""What readers of other projects make of our files; each skips where it is not installed."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins.shown import toy
from stand_ins.splat_files import covariances, example

from dd3g.io import splats
from dd3g.pepd.mesh import mesh_of

NODE = shutil.which("node")
MODULES = Path(__file__).parents[2] / "foreign/node_modules"
TRANSFORM = MODULES / "@playcanvas/splat-transform/bin/cli.mjs"
VALIDATE = """
const validator = require(process.argv[1]);
validator.validateBytes(new Uint8Array(require("fs").readFileSync(process.argv[2])))
  .then((report) => console.log(JSON.stringify(report.issues)));
"""


def needs(path: Path):
    return pytest.mark.skipif(
        NODE is None or not path.exists(),
        reason="node or its packages are not installed: npm install --prefix tests/foreign",
    )


def table(source: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """The columns that splat-transform reads, in the frame of a .ply."""
    target = tmp_path / "read.csv"
    subprocess.run([NODE, TRANSFORM, "-w", "-q", source, target], check=True, capture_output=True)
    names, *rows = target.read_text().split()
    values = np.array([[float(v.replace("Infinity", "inf")) for v in row.split(",")] for row in rows])
    return dict(zip(names.split(","), values.T, strict=True))


@needs(TRANSFORM)
@pytest.mark.parametrize("format", [f for f in splats.FORMATS if f != "glb"])
def test_splat_transform_reads(tmp_path, format):
    kept = example().pruned()
    read = table(kept.save(tmp_path / f"x.{format}"), tmp_path)
    places = np.stack([read[axis] for axis in "xyz"], -1)
    wanted = kept.means.numpy() * [1, -1, -1]
    order = np.linalg.norm(wanted[:, None] - places, axis=-1).argmin(1)
    np.testing.assert_allclose(places[order], wanted, atol=1e-3)
    for name, column, atol in (
        ("f_dc_", (kept.colors.numpy() - 0.5) / 0.28209479177387814, 0.03),
        ("scale_", np.log(kept.scales.numpy()), 0.04),
    ):
        got = np.stack([read[f"{name}{i}"] for i in range(3)], -1)
        np.testing.assert_allclose(got[order], column, atol=atol)
    turns = torch.tensor(np.stack([read[f"rot_{i}"] for i in range(4)], -1)[order]).float()
    turned = covariances(replace(kept, quats=torch.nn.functional.normalize(turns, dim=-1)))
    flip = torch.tensor([1.0, -1, -1])
    torch.testing.assert_close(turned, covariances(kept) * flip[:, None] * flip, atol=1e-3, rtol=0)
    opacity = 1 / (1 + np.exp(-read["opacity"][order]))
    np.testing.assert_allclose(opacity, kept.opacities.numpy(), atol=0.003)


@needs(TRANSFORM)
@pytest.mark.parametrize("format", ["sog", "compressed.ply", "spz"])
def test_we_read_what_splat_transform_writes(tmp_path, format):
    kept = example().pruned()
    source, target = kept.save(tmp_path / "x.ply"), tmp_path / f"y.{format}"
    version = ("--spz-version", "3") if format == "spz" else ()
    subprocess.run([NODE, TRANSFORM, "-w", "-q", *version, source, target], check=True, capture_output=True)
    got = splats.load(target)
    order = np.linalg.norm(kept.means.numpy()[:, None] - got.means.numpy(), axis=-1).argmin(1)
    np.testing.assert_allclose(got.means.numpy()[order], kept.means.numpy(), atol=1e-3)
    np.testing.assert_allclose(got.opacities.numpy()[order], kept.opacities.numpy(), atol=0.005)
    np.testing.assert_allclose(got.colors.numpy()[order], kept.colors.numpy(), atol=0.006)


def issues(path: Path) -> list[dict]:
    """Errors and warnings of Khronos' validator."""
    said = subprocess.run(
        [NODE, "-e", VALIDATE, MODULES / "gltf-validator", path], check=True, capture_output=True, text=True
    )
    return [m for m in json.loads(said.stdout)["messages"] if m["severity"] < 2]


@needs(MODULES / "gltf-validator")
def test_the_mesh_is_valid_gltf(tmp_path):
    (path,) = mesh_of(toy(), resolution=32).save(tmp_path / "x.mesh.glb")
    assert issues(path) == []


@needs(MODULES / "gltf-validator")
def test_the_validator_misses_nothing_of_the_splats_but_their_extension(tmp_path):
    """It knows released extensions only, and takes the names of the attributes of others for errors."""
    found = issues(example().save(tmp_path / "x.glb"))
    assert {m["code"] for m in found} <= {"MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
    assert all("KHR_gaussian_splatting:" in m["pointer"] for m in found)


def test_usd_opens_the_mesh(tmp_path):
    pytest.importorskip("pxr", reason="usd-core is not installed: pip install usd-core")
    from pxr import Ar, Usd, UsdGeom, UsdShade, UsdValidation

    mesh = mesh_of(toy(), 32)
    stage = Usd.Stage.Open(str(mesh.save(tmp_path / "x.mesh.usdz")[0]))
    assert stage.GetDefaultPrim().GetPath() == "/object" and UsdGeom.GetStageUpAxis(stage) == "Y"
    found = UsdGeom.Mesh(stage.GetPrimAtPath("/object/surface"))
    np.testing.assert_allclose(found.GetPointsAttr().Get(), mesh.points, atol=1e-5)
    np.testing.assert_allclose(found.GetNormalsAttr().Get(), mesh.normals, atol=1e-4)
    assert set(found.GetFaceVertexCountsAttr().Get()) == {4}
    np.testing.assert_array_equal(found.GetFaceVertexIndicesAttr().Get(), mesh.quads.reshape(-1))
    st = UsdGeom.PrimvarsAPI(found).GetPrimvar("st").Get()
    np.testing.assert_allclose(st, mesh.places.reshape(-1, 2) * [1, -1] + [0, 1], atol=1e-5)
    material, _ = UsdShade.MaterialBindingAPI(found).ComputeBoundMaterial()
    assert material.ComputeSurfaceSource()[0].GetShaderId() == "UsdPreviewSurface"
    picture = UsdShade.Shader(stage.GetPrimAtPath("/object/material/texture")).GetInput("file").Get()
    assert Ar.GetResolver().OpenAsset(Ar.ResolvedPath(picture.resolvedPath)).GetSize() > 1000
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 10 and UsdValidation.ValidationContext(validators).Validate(stage) == []


@pytest.mark.parametrize("format", ["ply", "splat", "spz"])
def test_open3d_reads(tmp_path, format):
    o3d = pytest.importorskip(
        "open3d", reason="open3d is 450 MB and is not installed in CI: pip install open3d"
    )
    kept = example().pruned()
    read = o3d.t.io.read_point_cloud(str(kept.save(tmp_path / f"x.{format}"))).point
    places = read.positions.numpy() * ([1, 1, 1] if format == "spz" else [1, -1, -1])
    order = np.linalg.norm(kept.means.numpy()[:, None] - places, axis=-1).argmin(1)
    assert sorted(order) == list(range(len(kept)))
    np.testing.assert_allclose(places[order], kept.means, atol=1e-3)
    np.testing.assert_allclose(read.scale.numpy()[order], kept.scales.numpy(), rtol=0.04)
    colors = 0.5 + 0.28209479177387814 * read.f_dc.numpy()[order]
    np.testing.assert_allclose(colors, kept.colors, atol=0.03)


def test_viser_takes_the_arrays_of_a_loaded_file(tmp_path):
    viser = pytest.importorskip("viser", reason="viser is not installed in CI: pip install viser")
    kept = splats.load(example().pruned().save(tmp_path / "x.ply"))
    server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        shown = server.scene.add_gaussian_splats(
            "/object",
            kept.means.numpy(),
            covariances(kept).numpy(),
            kept.colors.clamp(0, 1).numpy(),
            kept.opacities[:, None].numpy(),
        )
        np.testing.assert_allclose(shown.centers, kept.means, atol=1e-6)
        assert len(shown.buffer) == len(kept)
    finally:
        server.stop()


def test_blender_opens_the_mesh(tmp_path):
    bpy = pytest.importorskip("bpy", reason="bpy is 360 MB and is not installed in CI: pip install bpy")
    bmesh = pytest.importorskip("bmesh")
    formats = ("mesh.glb", "mesh.usdz", "mesh.obj")
    for path in (mesh_of(toy(), 32).save(tmp_path / f"x.{f}")[0] for f in formats):
        bpy.ops.wm.read_factory_settings(use_empty=True)
        if path.suffix == ".glb":
            bpy.ops.import_scene.gltf(filepath=str(path))
        elif path.suffix == ".usdz":
            bpy.ops.wm.usd_import(filepath=str(path))
        else:
            bpy.ops.wm.obj_import(filepath=str(path))
        (found,) = [o for o in bpy.data.objects if o.type == "MESH"]
        assert any(image.size[0] > 0 for image in bpy.data.images)
        mesh = bmesh.new()
        mesh.from_mesh(found.data)
        bmesh.ops.remove_doubles(mesh, verts=mesh.verts, dist=1e-6)
        assert all(edge.is_manifold for edge in mesh.edges) and mesh.calc_volume(signed=True) > 0
