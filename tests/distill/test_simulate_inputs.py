"""Folders, shards and renders that give `dd3g simulate` its pictures."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.simulated_sets import command, ellipsoid_views

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard
from distill.quadruples import Quadruples
from distill.simulate import main
from distill.simulation.inputs import open_inputs


def png(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def test_shards_of_pictures(tmp_path):
    rgba = ellipsoid_views(3)[:, 0]
    write_shard(tmp_path / "a.tar", [{"__key__": f"k{i}", "png": png(rgba[i])} for i in range(2)])
    write_shard(
        tmp_path / "b.tar", [{"__key__": "k2", "png": png(rgba[2])}, {"__key__": "k3", "png": b"junk"}]
    )
    inputs = open_inputs(tmp_path)
    assert len(inputs) == 4
    picture, about = inputs.picture(2, 0, 16)
    assert picture.shape == (4, 16, 16) and about == {"source": "k2"}
    assert torch.equal((picture * 255).round() / 255, picture)
    Image.fromarray(rgba[2]).save(tmp_path / "c.png")
    assert torch.equal(open_inputs(tmp_path / "c.png").picture(0, 0, 16)[0], picture)
    with pytest.raises(UserError, match="k3 in .*b.tar is not a PNG"):
        inputs.picture(3, 0, 16)


def rendered_shard(path, n=2):
    """As `dd3g data render` writes: two quads at elevation 10, one at 30; each view has its own red."""
    azimuth = [5.0, 95.0, 185.0, 275.0, 50.0, 140.0, 230.0, 320.0, 5.0, 95.0, 185.0, 275.0]
    elevation = [10.0] * 8 + [30.0] * 4
    cameras = Cameras.orbit(azimuth, elevation, 16)
    items = []
    for i in range(n):
        sheet = np.zeros((16, 16 * 12, 4), np.uint8)
        for v in range(12):
            sheet[4:12, 16 * v + 4 : 16 * v + 12] = (20 * v, 100 * i, 7, 255)
        meta = {
            "id": f"thing{i}", "style": "scan", "source": "x", "licence": "x", "cluster": 0, "variant": i,
            "size": 16, "viewmats": cameras.viewmats.tolist(), "K": cameras.Ks[0].tolist(),
            "azimuth": azimuth, "elevation": elevation, "novel": [],
            "quads": [[8, 9, 10, 11], [0, 1, 2, 3], [4, 5, 6, 7]],
        }  # fmt: skip
        depth = png((sheet[..., 3] > 0).astype(np.uint16) * 16384)
        items.append(
            {"__key__": f"t{i}", "rgba.png": png(sheet), "depth.png": depth, "json": json.dumps(meta)}
        )
    write_shard(path, items)


def test_rendered_objects_give_the_view_that_seed_and_index_choose(tmp_path, teacher):
    rendered_shard(tmp_path / "renders" / "renders-00000.tar")
    inputs = open_inputs(tmp_path / "renders")
    assert len(inputs) == 2
    seen = set()
    for seed in range(60):
        picture, about = inputs.picture(1, seed, 16)
        assert about["source"] == "thing1" and about["variant"] == 1 and about["style"] == "scan"
        colour = (picture[:3, 8, 8] * 255).round().int().tolist()
        assert colour == [20 * about["view"], 100, 7]
        seen.add(about["view"])
        assert torch.equal(inputs.picture(1, seed, 16)[0], picture)
    assert seen == set(range(8))  # those at the rig's elevation
    assert main(command(tmp_path / "renders", teacher, tmp_path / "set", "--seeds", "3")) == 0
    sources = [(q.meta["source"], q.meta["sample"], q.meta["view"]) for q in Quadruples(tmp_path / "set")]
    assert len(sources) == 6 and len({v for _, _, v in sources}) > 1


@pytest.mark.parametrize("lost", ["rgba.png", "json"])
def test_a_damaged_render_costs_itself_also_as_the_first(tmp_path, teacher, capsys, lost):
    rendered_shard(tmp_path / "good" / "renders-00000.tar")
    first, second = ({**sample} for sample in Shards(tmp_path / "good"))
    del first[lost]
    meta = json.loads(second["json"])
    second["json"] = json.dumps(meta | {"quads": []})  # rendered with --quads 0: any view serves
    write_shard(tmp_path / "renders" / "renders-00000.tar", [first, second])
    assert main(command(tmp_path / "renders", teacher, tmp_path / "set")) == 1
    assert "t0 in shard" in capsys.readouterr().err
    assert {q.meta["source"] for q in Quadruples(tmp_path / "set")} == {"thing1"}
