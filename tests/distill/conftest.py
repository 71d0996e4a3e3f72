from __future__ import annotations

import pytest
from PIL import Image
from stand_ins.published_teachers import write_imagedream, write_zero123plus
from stand_ins.simulated_sets import ellipsoid_views
from stand_ins.tiny_objects import write_cube, write_quadruples, write_renders

from data_gen.meshes.objects import Options
from data_gen.render import render_folder
from distill.samples.renders import RenderedObjects
from distill.teachers import load
from distill.teachers.latents import END, START


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, rgba in enumerate(ellipsoid_views(6)[:, 0]):
        Image.fromarray(rgba).save(folder / f"object.{i}.{'webp' if i == 3 else 'png'}", lossless=True)
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {
        "imagedream": write_imagedream(root / "imagedream"),
        "mvdream": write_imagedream(root / "mvdream", ip_dim=0),
        "zero123plus": write_zero123plus(root / "zero123plus-v1.1"),
    }


@pytest.fixture(scope="module")
def imagedream(folders):
    return with_words(load(folders["imagedream"]))


@pytest.fixture(scope="module")
def mvdream(folders):
    return with_words(load(folders["mvdream"]))


@pytest.fixture(scope="module")
def zero123plus(folders):
    return load(folders["zero123plus"])


def with_words(teacher):
    """Words are numbers in these tests."""
    teacher.text.tokenizer = lambda text: [START, *(1000 + len(w) for w in text.split()), END]
    return teacher


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_renders(folder / "renders"), write_quadruples(folder / "quadruples")


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    folder = write_renders(tmp_path_factory.mktemp("renders"), volumes=True)
    return RenderedObjects(folder, cached=True)


@pytest.fixture(scope="session")
def cubes(tmp_path_factory):
    """A real mesh, drawn and carved by data_gen, plain and reshaped."""
    folder = tmp_path_factory.mktemp("cubes")
    write_cube(folder / "meshes/cube/model.glb")
    options = Options(size=32, quads=2, free_quads=1, novel=4, volumes=True)
    render_folder(folder / "meshes", folder / "out", options)
    return RenderedObjects(folder / "out", cached=True)
