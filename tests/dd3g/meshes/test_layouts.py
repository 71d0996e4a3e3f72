"""Meshes in the exact layouts of public data sets."""

from __future__ import annotations

import base64
import os
import re
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.meshes.layouts import NAMES, find_objects
from dd3g.meshes.mesh import load_mesh, missing_materials
from dd3g.meshes.rendering import Light, render_mesh

EVEN = Light(1.0, np.zeros((0, 3)), np.zeros((0, 3)))
# A slab that is 3 wide, 2 high (z), 1 deep, its front (-y) red and the rest blue: z up.
CORNERS = np.array([[x, y, z] for x in (-1.5, 1.5) for y in (-0.5, 0.5) for z in (-1, 1)])
FACES = [(1, 2, 4, 3, 1), (5, 7, 8, 6, 1), (3, 4, 8, 7, 1), (1, 3, 7, 5, 1), (2, 6, 8, 4, 1), (1, 5, 6, 2, 0)]


def write_obj(path: Path, picture: str, z_up: bool = True) -> None:
    """The slab as a textured OBJ with its MTL; the texture's left half is red, the right one blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = CORNERS if z_up else CORNERS[:, [0, 2, 1]] * [1, 1, -1]
    lines = [
        f"mtllib {path.stem}.mtl",
        *(f"v {x} {y} {z}" for x, y, z in corners),
        "vt 0.25 0.5",
        "vt 0.75 0.5",
    ]
    lines.append("usemtl material_0")
    for *corner, blue in FACES:
        for triangle in ((0, 1, 2), (0, 2, 3)):
            lines.append("f " + " ".join(f"{corner[k]}/{blue + 1}" for k in triangle))
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text(f"newmtl material_0\nKd 1 1 1\nmap_Kd {picture}\n")


def write_texture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = (255, 0, 0)
    pixels[:, 4:] = (0, 0, 255)
    Image.fromarray(pixels).save(
        path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {})
    )


def write_gso(folder: Path) -> None:
    write_obj(folder / "meshes" / "model.obj", "texture.png")
    write_texture(folder / "materials" / "textures" / "texture.png")
    (folder / "metadata.pbtxt").write_text('name: "slab"\n')


def zip_folder(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))


def looks_right(mesh) -> bool:
    """Three wide, two high, one deep, and red from the front alone."""
    width, height, depth = np.ptp(mesh.vertices, 0)
    assert width / depth == pytest.approx(3, abs=1e-4) and height / depth == pytest.approx(2, abs=1e-4)
    rgba, _ = render_mesh(mesh, Cameras.orbit([0.0, 180.0], 0.0, 16, radius=4.0), EVEN, supersample=1)
    wanted = np.array([[255, 0, 0, 255], [0, 0, 255, 255]])
    return bool((abs(rgba[:, 8, 8].astype(int) - wanted) <= 2).all())  # JPEG rounds


def write_layout(name: str, root: Path) -> None:
    """One slab called `slab` (or a uid) as the data set has it."""
    if name == "gso":
        write_gso(root / "slab")
    elif name == "gso-zip":
        write_gso(root.parent / "unzipped")
        root.mkdir()
        zip_folder(root.parent / "unzipped", root / "slab.zip")
    elif name == "omniobject3d":
        write_obj(root / "raw_scans" / "box" / "slab" / "Scan" / "Scan.obj", "Scan.jpg", z_up=False)
        write_texture(root / "raw_scans" / "box" / "slab" / "Scan" / "Scan.jpg")
    elif name == "ycb":
        write_obj(root / "slab" / "google_16k" / "textured.obj", "texture_map.png")
        write_texture(root / "slab" / "google_16k" / "texture_map.png")
    elif name == "toys4k":
        write_obj(root / "toys4k_obj_files" / "box" / "slab" / "mesh.obj", "texture.png", z_up=False)
        write_texture(root / "toys4k_obj_files" / "box" / "slab" / "texture.png")
    else:
        import trimesh

        write_obj(root.parent / "made" / "slab.obj", "texture.png", z_up=False)
        write_texture(root.parent / "made" / "texture.png")
        places = {"abo": "3dmodels/original/B/slab.glb", "meshes": "any/slab.glb"}
        path = root / places.get(name, f"hf-objaverse-v1/glbs/000-023/{UID}.glb")
        path.parent.mkdir(parents=True)
        trimesh.load_scene(root.parent / "made" / "slab.obj", process=False).export(path)


UID = "0123456789abcdef0123456789abcdef"
MESH_LAYOUTS = ("gso", "gso-zip", "omniobject3d", "ycb", "toys4k", "abo", "objaverse", "meshes")


@pytest.mark.parametrize("name", MESH_LAYOUTS)
def test_meshes_of_each_data_set_stand_upright_in_their_colours(tmp_path, name):
    write_layout(name, tmp_path / "data")
    (found,), missing = find_objects(tmp_path / "data")
    wanted = {"objaverse": UID, "meshes": "any/slab"}.get(name, "slab")
    assert (found.id, found.layout.name, found.layout.holds, missing) == (wanted, name, "mesh", {})
    assert looks_right(found.mesh())
    assert find_objects(tmp_path / "data", name)[0] == [found]
    deeper, *_ = [p for p in sorted((tmp_path / "data").iterdir()) if p.is_dir()] or [tmp_path / "data"]
    assert find_objects(deeper)[0][0].path == found.path  # a folder of the layout may be named itself


def test_what_is_missing_is_named(tmp_path):
    write_gso(tmp_path / "whole")
    write_gso(tmp_path / "bare")
    (tmp_path / "bare" / "materials" / "textures" / "texture.png").unlink()
    found, missing = find_objects(tmp_path)
    assert [o.id for o in found] == ["whole"]
    assert missing == {"bare": "Google Scanned Objects: it lacks materials/textures/texture.png"}
    with pytest.raises(UserError, match=r"lacks 2 of 3 objects of the list: sofa, bare \(Google Scanned"):
        find_objects(tmp_path, wanted=["whole", "sofa", "bare"])
    assert [o.id for o in find_objects(tmp_path, wanted=["whole"])[0]] == ["whole"]
    (tmp_path / "whole" / "meshes" / "model.obj").unlink()
    with pytest.raises(
        UserError, match="no complete object .2 are not.: (whole|bare), .* lacks (mat|meshes/mod)"
    ):
        find_objects(tmp_path)


@pytest.mark.parametrize("name", ["gso", "gso-zip", "omniobject3d", "ycb", "toys4k"])
def test_a_scan_without_its_colours_is_no_grey_one(tmp_path, name):
    """A material or a texture that an OBJ names and that is not there."""
    write_layout(name, tmp_path / "data")
    home = tmp_path / ("unzipped" if name == "gso-zip" else "data")
    (library,) = home.rglob("*.mtl")
    lost = library.name

    def mesh():
        if name == "gso-zip":
            zip_folder(home, tmp_path / "data" / "slab.zip")
        return find_objects(tmp_path / "data")[0][0].mesh()

    words = library.read_text()
    library.unlink()
    with pytest.raises(ValueError, match=f"names {lost}, which is not there"):
        mesh()
    library.write_text(words.replace("map_Kd ", "map_Kd -s 1 1 1 lost_"))
    with pytest.raises(ValueError, match="names lost_.*, which is not there"):
        mesh()
    library.write_text(words)
    assert looks_right(mesh())


def test_a_glb_without_its_colours_is_no_grey_one(tmp_path):
    """Trimesh goes on without a picture that is not there, or that Pillow does not read."""
    import trimesh

    write_obj(tmp_path / "made/slab.obj", "texture.png", z_up=False)
    write_texture(tmp_path / "made/texture.png")
    scene = trimesh.load_scene(tmp_path / "made/slab.obj", process=False)
    picture = base64.b64encode((tmp_path / "made/texture.png").read_bytes()).decode()

    def mesh(place: dict, **more):
        change = partial(dict.update, **{"images": [place]} | more)
        (tmp_path / "data").mkdir(exist_ok=True)
        scene.export(tmp_path / "data/slab.glb", tree_postprocessor=change)
        return find_objects(tmp_path / "data")[0][0].mesh()

    for place, name in (
        ({"uri": "my%20wood.png"}, "my%20wood.png"),
        ({"bufferView": 0}, "the texture of mat"),
    ):
        with pytest.raises(
            ValueError, match=f"slab.glb names {name}.*, which is not there or cannot be read"
        ):
            mesh(place)
    assert looks_right(mesh({"uri": f"data:image/png;base64,{picture}"}))
    with pytest.raises(
        ValueError, match="^it needs KHR_texture_basisu, which is not read: export it without$"
    ):
        mesh({"uri": "my.ktx2"}, extensionsRequired=["KHR_texture_basisu"])
    write_texture(tmp_path / "data/my wood.png")
    assert looks_right(mesh({"uri": "my%20wood.png"}))
    # Of a material that nothing has, the picture is not missed.
    materials = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": k}}} for k in range(2)]
    lost = [{"uri": "my%20wood.png"}, {"uri": "lost.png"}]
    mesh({}, images=lost, textures=[{"source": 0}, {"source": 1}], materials=materials)


@pytest.mark.parametrize("name", ["POSITION", "TEXCOORD_0"])
def test_whole_numbers_that_stand_for_fractions_are_refused(tmp_path, name):
    """Trimesh takes 65535 for what 1 is meant by; whole numbers that stand for themselves are right."""
    import trimesh

    write_obj(tmp_path / "made/slab.obj", "texture.png", z_up=False)
    write_texture(tmp_path / "made/texture.png")
    scene = trimesh.load_scene(tmp_path / "made/slab.obj", process=False)

    def quantised(tree, normalised):
        accessor = tree["meshes"][0]["primitives"][0]["attributes"][name]
        tree["accessors"][accessor]["normalized"] = normalised
        tree["extensionsRequired"] = ["KHR_mesh_quantization"]

    scene.export(tmp_path / "a.glb", tree_postprocessor=partial(quantised, normalised=False))
    assert looks_right(load_mesh(tmp_path / "a.glb"))
    scene.export(tmp_path / "a.glb", tree_postprocessor=partial(quantised, normalised=True))
    with pytest.raises(ValueError, match=f"it needs {name} in normalised whole numbers, which is not read"):
        load_mesh(tmp_path / "a.glb")
    scene.export(tmp_path / "a.glb", tree_postprocessor=lambda tree: tree.update(accessors=[1, 2]))
    with pytest.raises(ValueError, match="it is damaged, or not a .glb"):
        load_mesh(tmp_path / "a.glb")


def test_a_texture_of_another_object_is_not_borrowed(tmp_path):
    for name in ("left", "right"):
        write_obj(tmp_path / name / "model.obj", "C:\\art\\wood.png")
    write_texture(tmp_path / "right" / "art" / "wood.png")
    assert missing_materials(tmp_path / "right" / "model.obj") == []
    assert missing_materials(tmp_path / "left" / "model.obj") == ["C:\\art\\wood.png"]
    (tmp_path / "left" / "wood.png").write_text("no picture")
    assert missing_materials(tmp_path / "left" / "model.obj") == ["C:\\art\\wood.png"]


@pytest.mark.parametrize("name", ["materials/textures", "textures", "Textures", "images", "Maps"])
def test_textures_may_lie_beside_the_folder_of_the_mesh(tmp_path, name):
    write_obj(tmp_path / "lamp/source/model.obj", "C:\\art\\wood [dark].png")
    write_texture(tmp_path / "lamp" / name / "wood [dark].png")
    assert missing_materials(tmp_path / "lamp/source/model.obj") == []


def test_archives_that_are_cut_or_hold_something_else_are_named(tmp_path):
    write_gso(tmp_path / "unzipped")
    data = tmp_path / "data"
    data.mkdir()
    zip_folder(tmp_path / "unzipped", data / "whole.zip")
    (tmp_path / "unzipped/materials/textures/texture.png").unlink()
    zip_folder(tmp_path / "unzipped", data / "bare.zip")
    (data / "cut.zip").write_bytes((data / "whole.zip").read_bytes()[:400])
    found, missing = find_objects(data)
    assert [o.id for o in found] == ["whole"] and sorted(missing) == ["bare", "cut"]
    assert "lacks a whole archive" in missing["cut"] and "materials/textures/tex" in missing["bare"]
    (data / "whole.zip").unlink()
    with pytest.raises(UserError, match="no complete object .2 are not.: bare, .* lacks materials"):
        find_objects(data)
    write_layout("meshes", data)  # archives of another kind beside meshes
    assert [o.id for o in find_objects(data)[0]] == ["any/slab"]


def test_a_wrong_folder_is_told_what_would_be_right(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no objects: give a folder of meshes \(.glb .obj .npz"):
        find_objects(tmp_path)
    with pytest.raises(
        UserError, match="is not a folder of YCB: expected NAME/google_16k/textured.obj and texture_map"
    ):
        find_objects(tmp_path, "ycb")
    with pytest.raises(UserError, match="no layout 'gsox': choose auto or one of gso, gso-zip"):
        find_objects(tmp_path, "gsox")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_objects(tmp_path / "nowhere")
    assert len(NAMES) == 12
    for folder in ("a", "b"):
        write_gso(tmp_path / folder / "slab")
    with pytest.raises(UserError, match="two objects are called 'slab'"):
        find_objects(tmp_path)


def test_what_is_hidden_is_no_object(tmp_path):
    """As the ._NAME that macOS leaves beside each file of a copy, which could not be drawn."""
    for name in ("slab/model.obj", "slab/._model.obj", ".trash/slab/model.obj"):
        write_obj(tmp_path / name, "texture.png")
    found, missing = find_objects(tmp_path)
    assert [one.path for one in found] == [tmp_path / "slab/model.obj"] and not missing


def test_what_cannot_be_opened_or_named_is_left_out_with_a_reason(tmp_path):
    write_layout("meshes", tmp_path / "data")
    os.symlink("nowhere", tmp_path / "data/link.glb")
    strange = os.fsdecode(b"\xff")
    (tmp_path / f"data/{strange}.glb").touch()
    found, missing = find_objects(tmp_path / "data")
    assert [one.id for one in found] == ["any/slab"] and list(missing) == ["link", strange]
    assert "link.glb cannot be opened: it is a link to nothing" in missing["link"]
    assert missing[strange] == "its name is not UTF-8: rename its file or folder"
    (tmp_path / "data/any/slab.glb").unlink()
    with pytest.raises(UserError, match="no complete object .2 are not.: link, .*link.glb cannot be opened"):
        find_objects(tmp_path / "data")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_styles_come_from_a_manifest(tmp_path, encoding):
    write_layout("meshes", tmp_path / "data")
    (tmp_path / "data" / "manifest.csv").write_text("id,style\nslab,scanné\n", encoding)
    assert find_objects(tmp_path / "data")[0][0].style == "scanné"


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
    write_layout("meshes", tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.csv"
    manifest.write_text("uid,licence\nslab,CC0\n")  # about something else
    assert find_objects(tmp_path / "data")[0][0].style == "unknown"
    for words in ("id;style\nslab;scan\n", "style\nscan\n"):
        manifest.write_text(words)
        named = re.escape(str(words.split()[:1]))
        with pytest.raises(
            UserError, match=f"manifest.csv has the columns {named}, none called id: .* commas"
        ):
            find_objects(tmp_path / "data")
    manifest.rename(tmp_path / "manifest.csv")  # of who knows what
    assert find_objects(tmp_path / "data")[0][0].style == "unknown"
    manifest.write_text("id,style\nslab,scanné\n", "cp1252")
    with pytest.raises(UserError, match=r"manifest.csv is not UTF-8 .*: save it as UTF-8"):
        find_objects(tmp_path / "data")
