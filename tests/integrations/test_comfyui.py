"""The ComfyUI nodes, loaded as ComfyUI does and without it."""

import importlib.util
import inspect
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.infer_command import ROOT, StubGenerator, picture

import dd3g
from dd3g import Cameras, Gaussians, load_image, rasterize


@pytest.fixture
def pack(monkeypatch):
    path = ROOT / "integrations/comfyui"
    spec = importlib.util.spec_from_file_location(
        "dd3g_nodes", path / "__init__.py", submodule_search_locations=[str(path)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dd3g_nodes", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "Generator", StubGenerator)
    return module


@pytest.fixture
def loaded(tmp_path):
    """What Load Image and Invert Mask give: (1, H, W, 3) and (1, H, W)."""
    path = picture(tmp_path / "in.png")
    rgba = torch.from_numpy(np.array(Image.open(path))) / 255
    return path, rgba[None, ..., :3], rgba[None, ..., 3]


def options(node, **given):
    """The defaults that ComfyUI fills in, and what is connected."""
    inputs = node.INPUT_TYPES()["required"]
    values = {k: v[1].get("default") if len(v) > 1 else v[0][0] for k, v in inputs.items()}
    return values | given


def test_the_pack_says_what_comfyui_asks_for(pack):
    assert "folder_paths" not in sys.modules
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert len(pack.NODE_CLASS_MAPPINGS) == 2
    for node in pack.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        names = [*inputs["required"], *inputs.get("optional", ())]
        assert names == list(inspect.signature(getattr(node, node.FUNCTION)).parameters)[1:]
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and node.CATEGORY == "dd3g"


def test_picture_to_splats_is_what_generate_gives(pack, loaded):
    path, image, mask = loaded
    node = pack.PictureToSplats()
    splats, files = node.make(**options(node, image=image, mask=mask, seed=5))
    want = StubGenerator().generate(load_image(path), seed=5)
    assert len(splats) == 1 and torch.equal(splats[0].means, want.means) and files == ""


def test_masks_of_other_shapes(pack, loaded):
    """(H, W), as some nodes give them, and the small empty one of a picture without alpha."""
    _, image, mask = loaded
    node, make = pack.PictureToSplats(), options(pack.PictureToSplats(), image=image.expand(2, -1, -1, -1))
    both = node.make(**make, mask=mask)[0]
    for shaped in (mask[0], mask.expand(2, -1, -1), (mask > 0.5).to(torch.float64)):
        splats, _ = node.make(**make, mask=shaped)
        assert all(torch.equal(a.means, b.means) for a, b in zip(splats, both, strict=True))
    small = torch.nn.functional.interpolate(mask[None], (16, 16))[0]
    assert len(node.make(**make, mask=small)[0]) == 2
    with pytest.raises(ValueError, match="3 masks for 2 pictures: give one, or one for each"):
        node.make(**make, mask=mask.expand(3, -1, -1))


def test_a_batch_is_an_object_each(pack, loaded):
    _, image, mask = loaded
    node = pack.PictureToSplats()
    splats, _ = node.make(**options(node, image=image.expand(3, -1, -1, -1), mask=mask))
    assert len(splats) == 3 and not torch.equal(splats[0].means, splats[1].means)
    views, masks = (d := pack.SplatsToViews()).draw(**options(d, splats=splats, views=4, size=32))
    assert views.shape == (12, 32, 32, 3) and masks.shape == (12, 32, 32)


def test_the_last_seed_is_followed_by_the_first_and_warnings_are_logged(pack, loaded, caplog):
    path, image, _ = loaded
    cut = torch.cat([image, torch.zeros_like(image[..., :1])], -1)
    cut[:, 40:50, 40:60, 3] = 1  # 20 pixels of it
    node = pack.PictureToSplats()
    how = options(node, image=cut.expand(2, -1, -1, -1), seed=2**64 - 1)
    splats, _ = node.make(**how)
    found = load_image(cut[0].movedim(-1, 0))
    want = [StubGenerator().generate(found, seed=seed) for seed in (2**64 - 1, 0)]
    assert all(torch.equal(a.means, b.means) for a, b in zip(splats, want, strict=True))
    assert "is only 20 pixels long" in caplog.messages[0] and len(caplog.messages) == 2


def test_views_are_what_the_rasteriser_draws(pack, loaded):
    _, image, mask = loaded
    node, draw = pack.PictureToSplats(), pack.SplatsToViews()
    (one,), _ = node.make(**options(node, image=image, mask=mask))
    views, masks = draw.draw(**options(draw, splats=[one], views=2, size=48, elevation=30.0, background=0.5))
    want = rasterize(one, Cameras.orbit([0, 180], 30, 48), 0.5, antialiased=True)
    assert torch.allclose(views, want.rgb.movedim(1, -1).clamp(0, 1))
    assert torch.allclose(masks, want.alpha[:, 0]) and 0.01 < masks.mean() < 0.9


def test_files_go_where_comfyui_says(pack, loaded, tmp_path, monkeypatch):
    _, image, mask = loaded
    comfy = types.ModuleType("folder_paths")
    comfy.get_output_directory = lambda: str(tmp_path)
    comfy.get_save_image_path = lambda prefix, folder: (folder, prefix, 7, "", prefix)
    monkeypatch.setitem(sys.modules, "folder_paths", comfy)
    node = pack.PictureToSplats()
    batch = image.expand(2, -1, -1, -1)
    how = options(node, image=batch, mask=mask, filename_prefix="lamp", format="glb")
    splats, files = node.make(**how)
    assert files.splitlines() == [str(tmp_path / "lamp_00007.glb"), str(tmp_path / "lamp_00008.glb")]
    assert torch.equal(Gaussians.load(files.splitlines()[1]).means, splats[1].means)


def test_only_public_names_are_used():
    source = (ROOT / "integrations/comfyui/__init__.py").read_text()
    (line,) = [line for line in source.splitlines() if "dd3g import" in line]
    assert line.startswith("from dd3g import ") and set(line[17:].split(", ")) <= set(dd3g.__all__)
