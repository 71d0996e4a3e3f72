"""One damaged sample of a shard costs itself: in every reader of a training, by every kind of damage."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from stand_ins.distilled import distil
from stand_ins.tiny_objects import write_quadruples, write_renders
from stand_ins.training_runs import fresh, metrics

from dd3g.command.configuration import launch
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard
from dd3g.pepd.occupancy import OccupancyNet
from dd3g.training.data import _Collate
from distill.quadruples import Quadruples
from distill.samples.datasets import QuadrupleDataset
from distill.samples.render_samples import RenderDataset
from distill.samples.renders import RenderedObjects, described
from distill.samples.unpacked import UnpackedRenders
from distill.shape.carving import CarvedQuadruples, Together
from distill.shape.samples import ShapeDataset, check_volumes
from distill.train_shape import Keeper, ShapeConfig, run, split

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = (4, 64, 8, 8)


def changed_json(change):
    def apply(sample):
        meta = json.loads(sample["json"])
        change(meta)
        sample["json"] = json.dumps(meta)

    return apply


def changed_png(name, change):
    def apply(sample):
        stream = io.BytesIO()
        with Image.open(io.BytesIO(sample[name])) as image:
            Image.fromarray(np.ascontiguousarray(change(np.array(image)))).save(stream, format="PNG")
        sample[name] = stream.getvalue()

    return apply


def cut(name):
    return lambda sample: sample.update({name: sample[name][: len(sample[name]) // 2]})


def damaged(folder, destination, change, place=1):
    """The shards of a folder, of which one sample is changed, or one header where there is no change."""
    samples = [dict(sample) for sample in Shards(folder)]
    if change is not None:
        change(samples[place])
    name = next(folder.glob("*.tar")).name
    write_shard(destination / name, samples)
    if change is None:
        with tarfile.open(destination / name) as tar:
            member = next(m for m in tar if m.name.startswith(samples[place]["__key__"] + "."))
        content = bytearray((destination / name).read_bytes())
        content[member.offset + 148 : member.offset + 156] = bytes(8)  # its checksum
        (destination / name).write_bytes(content)
    return destination


NAN = [[float("nan")] * 3] * 3
RENDERS = {
    "picture cut": cut("rgba.png"),
    "depth cut": cut("depth.png"),
    "json cut": cut("json"),
    "no picture": lambda sample: sample.pop("rgba.png"),
    "no json": lambda sample: sample.pop("json"),
    "header": None,
    "smaller picture": changed_png("rgba.png", lambda pixels: pixels[::2, ::2]),
    "smaller depth": changed_png("depth.png", lambda pixels: pixels[::2, ::2]),
    "no alpha": changed_png("rgba.png", lambda pixels: pixels[..., :3]),
    "camera not finite": changed_json(lambda meta: meta.update(K=NAN)),
    "angle not finite": changed_json(lambda meta: meta.update(elevation=[float("nan")] * 14)),
    "one angle": changed_json(lambda meta: meta.update(azimuth=[0.0])),
    "no quads": changed_json(lambda meta: meta.pop("quads")),
    "other views": changed_json(lambda meta: meta.update(quads=[[20, 21, 22, 23]])),
    "a bomb of a volume": changed_json(lambda meta: meta.update(volume={"resolution": 4096, "half": 0.6})),
    "three views": changed_json(lambda meta: meta.update(quads=[[0, 1, 2]])),
}
QUADRUPLES = {
    "picture cut": cut("outputs.png"),
    "no json": lambda sample: sample.pop("json"),
    "header": None,
    "input without alpha": changed_png("input.png", lambda pixels: pixels[..., :3]),
    "input not square": changed_png("input.png", lambda pixels: pixels[::2]),
    "lower views": changed_png("outputs.png", lambda pixels: pixels[::2]),
    "camera not finite": changed_json(lambda meta: meta.update(Ks=[NAN] * 4)),
}


def skipped(samples, name, count=24):
    """Batches are made, and all that is told is of the sample `name`; returns whether anything is."""
    batches = _Collate(samples)
    told = [text for i in range(0, count, 2) for text in batches([i, i + 1]).bad]
    assert all(name in text for text in told)
    return bool(told)


@pytest.mark.parametrize("kind", RENDERS)
def test_renders(data, tmp_path, kind):
    folder = damaged(data[0], tmp_path / "bad", RENDERS[kind])
    sources = {
        "plain": RenderedObjects(folder, tolerant=True),
        "cached": RenderedObjects(folder, cached=True, tolerant=True),
        "unpacked": UnpackedRenders(folder, tmp_path / "disk"),
    }
    pools = []
    for name, objects in sources.items():
        dataset = RenderDataset(objects, 0, NOISE)
        assert len(dataset) == 3 and skipped(dataset, "object1"), name
        pools.append([pool.tolist() for _, pool in dataset.styles.pools])
    assert pools[0] == pools[1] == pools[2]  # one sample, however they are read


@pytest.mark.parametrize("kind", [*QUADRUPLES, "no alpha"])
def test_quadruples(data, tmp_path, kind):
    views = changed_png("outputs.png", lambda pixels: pixels[..., :3])
    folder = damaged(data[1], tmp_path / "bad", QUADRUPLES.get(kind, views if kind == "no alpha" else None))
    for cache in (False, True):
        found = Quadruples(folder, cache, tolerant=True)
        assert skipped(QuadrupleDataset(found, 0), "q1") == (kind != "no alpha")
    carved = Together([CarvedQuadruples([folder])])
    check_volumes(carved, 32)
    assert [meta is None for _, meta in described(carved)] == [False, kind == "no json", False]
    assert skipped(ShapeDataset(carved, 0, 32, 8, pixels=16), "q1")


def test_damaged_objects_are_among_those_to_train_on(tmp_path):
    renders = write_renders(tmp_path / "renders", count=8, volumes=True)
    (config := ShapeConfig()).held_out = 0.25
    train, held = split(Together([RenderedObjects(renders)]), config)
    bad = damaged(renders, tmp_path / "bad", RENDERS["no json"], held[0])
    again = split(Together([RenderedObjects(bad)]), config)
    assert again == (sorted([*train, held[0]]), held[1:])


def test_a_damaged_object_is_drawn_like_most_others(tmp_path):
    """Not like a whole style of its own, which would be half of all samples."""
    styles = ("scan",) * 8
    renders = write_renders(tmp_path / "renders", count=8, styles=styles)
    dataset = RenderDataset(RenderedObjects(damaged(renders, tmp_path / "bad", RENDERS["no json"])), 0, NOISE)
    assert [(share, len(pool)) for share, pool in dataset.styles.pools] == [(0.4, 8)]


@pytest.mark.parametrize("folder", ["renders", "quadruples"])
def test_nothing_good(tmp_path, folder):
    write = {"renders": write_renders, "quadruples": write_quadruples}[folder]
    bad = damaged(write(tmp_path / "good", count=1), tmp_path / "bad", cut("json"), 0)
    with pytest.raises(UserError, match=r"(object|q)0 in shard .*Expecting"):
        if folder == "renders":
            RenderDataset(UnpackedRenders(bad, tmp_path / "disk"), 0, NOISE)
        else:
            check_volumes(Together([CarvedQuadruples([bad])]), 32)


def test_a_shard_that_others_read_is_refused(data, tmp_path):
    """An evaluation and a verification want all of it."""
    bad = damaged(data[0], tmp_path / "bad", None)
    with pytest.raises(UserError, match="does not end as a tar does"):
        RenderedObjects(bad)


def test_shards_of_another_kind(data, tmp_path):
    """Nobody is told to delete what is only in the wrong place."""
    with pytest.raises(UserError, match=r"no rendered objects in \S+quadruples-00000.tar: name a folder"):
        RenderedObjects([data[0], data[1]])
    with pytest.raises(UserError, match=r"renders-00000.tar holds no quadruples: name a folder"):
        Quadruples([data[1], data[0]])


def test_renders_of_two_sizes(data, tmp_path):
    large = write_renders(tmp_path / "large", count=1, size=64)
    with pytest.raises(UserError, match="pictures of 32 and 64 pixels, and a batch takes one size"):
        RenderDataset(RenderedObjects([data[0], large]), 0, NOISE)


def test_a_distillation_with_arrays_on_a_disk(data, tmp_path, capsys):
    bad = damaged(data[0], tmp_path / "bad", RENDERS["picture cut"])
    options = {"unpacked_dir": tmp_path / "disk", "max_train_steps": 8, "objective.bootstrap": 1}
    assert distil(bad, tmp_path / "out", **options) == 0
    assert capsys.readouterr().err.count("warning: skipped a sample: object1 in shard") == 1
    assert len(metrics(tmp_path / "out")) == 8
    assert distil(bad, tmp_path / "none", **options, max_bad_samples=0) == 2
    assert "error: object1 in shard" in capsys.readouterr().err


def test_a_damaged_object_is_left_out_of_the_contact_sheet(data, tmp_path, capsys):
    bad = damaged(data[0], tmp_path / "bad", RENDERS["depth cut"])
    assert distil(data[0], tmp_path / "out", validation_renders=bad, max_train_steps=1) == 0
    assert capsys.readouterr().err.count("warning: left out of the contact sheet: object1 in shard") == 1
    assert (tmp_path / "out/sheet-000001.png").exists()


def test_a_shape_network_on_quadruples(tmp_path, capsys):
    bad = damaged(write_quadruples(tmp_path / "q", count=4), tmp_path / "bad", QUADRUPLES["picture cut"])
    words = [
        "renders=[]", f"quadruples=[{bad}]", f"output_dir={tmp_path / 'out'}", "train_batch_size=2",
        "max_train_steps=8", "report_to=none", "held_out=0", "pixels=32", "network.size=32",
        "network.bins=8", "network.fine=8", "network.widths=[8,16]", "network.width=16", "network.depth=1",
        "network.heads=2", "network.residual_hidden=8", "network.color_bins=4",
    ]  # fmt: skip
    fresh()
    assert launch(run, ShapeConfig, words) == 0
    assert capsys.readouterr().err.count("warning: skipped a sample: q1 in shard") == 1
    assert len(metrics(tmp_path / "out")) == 8


def test_objects_to_score_by_that_are_damaged(tmp_path):
    renders = write_renders(tmp_path / "renders", count=8, volumes=True)
    (config := ShapeConfig(output_dir=str(tmp_path / "out"))).held_out = 0.25
    config.network.size, config.network.bins = 32, 8
    _, held = split(Together([RenderedObjects(renders)]), config)
    objects = Together([RenderedObjects(damaged(renders, tmp_path / "bad", cut("rgba.png"), held[0]))])
    with pytest.raises(UserError, match="all 1 objects to score by are damaged"):
        Keeper(config, objects, held[:1])(OccupancyNet(config.network), 1)
    (tmp_path / "out/model").mkdir(parents=True)
    (tmp_path / "out/model/scores.json").write_text("")  # a node lost power
    config.resume_from_checkpoint = "latest"
    assert not Keeper(config, objects, held).best
