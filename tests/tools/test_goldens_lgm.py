import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins.lgm_reference import twin
from stand_ins.tiny_lgm import LAYOUT

from dd3g.cameras import Cameras
from distill.lgm import LGM, Layout, lgm_input, network
from tools import check_goldens
from tools.goldens import made_up

GOLDEN = Path(__file__).parents[1] / "golden" / "lgm.npz"


def shapes_of(layout):
    with torch.device("meta"):
        return {k: list(v.shape) for k, v in LGM(layout).state_dict().items()}


def write(folder, layouts, arrays, size, **about):
    folder.mkdir()
    about["shapes"] = {name: shapes_of(layout) for name, layout in layouts.items()}
    about["configs"] = {name: {"input_size": size} for name in layouts}
    (folder / "lgm.json").write_text(json.dumps(about))
    np.savez(folder / "lgm.npz", **arrays)
    return folder


@pytest.fixture
def authors(tmp_path):
    """Some rows of what the authors' code made of made-up weights, in float64."""
    down, lowest = (32, 64, 64, 96, 128, 128), (False, False, False, True, True, True)
    layouts = {
        "big": Layout(down, (128, 128, 96, 64, 64), lowest, (True, True, True, False, False)),
        "small": Layout(down, (128, 128, 96, 64), lowest, (True, True, True, False)),
        "tiny": Layout((32, 32, 64, 64, 96), (96, 64, 64), (False,) * 4 + (True,), (True, False, False)),
    }
    folder = write(tmp_path / "authors", layouts, {}, 64)
    shutil.copy(GOLDEN, folder)
    return folder


def code_of(folder, *options):
    return check_goldens.main([str(folder), "--only", "lgm", *options])


@pytest.mark.slow
def test_it_computes_what_the_authors_code_computes(authors, capsys):
    assert code_of(authors) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {
        line.split("  ")[1].strip(): float(line.split("rmse ")[1].split()[0])
        for line in lines
        if "rmse" in line
    }
    assert len(found) == 10 and lines[-1] == "all arrays agree"
    assert found["big.gaussians in float64"] < 5e-6 < 2e-4 and found["big.gaussians"] < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["heads", "scale", "eps", "seed"])
def test_a_mistake_is_noticed(authors, mistake, monkeypatch, capsys):
    if mistake == "heads":
        monkeypatch.setattr(network, "HEADS", 8)
    if mistake == "scale":
        monkeypatch.setattr(network, "HALF", 0.7)
    if mistake == "eps":
        monkeypatch.setattr("torch.nn.functional.group_norm", shifted(torch.nn.functional.group_norm))
    assert code_of(authors, *(["--seed", "2"] if mistake == "seed" else [])) == 1
    assert "OVER" in capsys.readouterr().out


def shifted(function):
    return lambda x, groups, weight=None, bias=None, eps=1e-5: function(x, groups, weight, bias, 1e-4)


@pytest.mark.parametrize(("seed", "size", "views"), [(5, 32, 4), (6, 16, 3)])
def test_other_seeds_sizes_and_numbers_of_views(tmp_path, seed, size, views):
    """Against the plain twin, whose arrays are laid out like the authors'."""
    shapes = shapes_of(LAYOUT)
    drawn = [made_up.picture(f"view{(v + 1) % views}", 256, 256, seed) for v in range(views)]
    drawn = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)[None].contiguous()
    x = lgm_input(drawn, Cameras.orbit([360 * v / views for v in range(views)], 0.0, size), size)
    w = {k: torch.from_numpy(made_up.weight(k, s, seed)).double() for k, s in shapes.items()}
    arrays = {"mine.gaussians": twin(w, x[0].double())[::2].float().numpy()}
    folder = write(tmp_path / "g", {"mine": LAYOUT}, arrays, size, seed=seed, views=views)
    assert code_of(folder) == 0
    assert code_of(folder, "--seed", "9") == 1
