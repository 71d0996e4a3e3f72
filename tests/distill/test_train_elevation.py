from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from stand_ins.tiny_objects import ELEVATIONS, write_renders
from stand_ins.training_runs import files, fresh, metrics

from dd3g.command.configuration import launch, parse
from dd3g.nn.efficientnet import EfficientNetLite0
from dd3g.pepd.elevation import ElevationNet, framed
from dd3g.pepd.frustum import resize
from dd3g.training import generator_for
from distill.samples.elevation_samples import ElevationDataset, elevation_sample
from distill.samples.renders import RenderedObjects
from distill.train_elevation import ElevationConfig, held_out_error, run
from distill.train_shape import split


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The same as the subprocess has: another number may round differently."""


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    return write_renders(tmp_path_factory.mktemp("renders"), count=8, styles=("scan", "game", "shape"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    return ElevationNet().save_pretrained(tmp_path_factory.mktemp("start"))


def words(renders, output, **options):
    settings = {
        "renders": f"[{renders}]", "output_dir": output, "train_batch_size": 2, "max_train_steps": 4,
        "checkpointing_steps": 2, "validation_steps": 2, "lr_warmup_steps": 2, "lr_scheduler": "cosine",
        "report_to": "none", "mixed_precision": "no", "held_out": 0.25, "learning_rate": 1e-3,
    }  # fmt: skip
    return [f"{k}={v}" for k, v in (settings | options).items()]


def train(renders, output, **options):
    fresh()
    return launch(run, ElevationConfig, words(renders, output, **options))


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_as_if_it_had_not(renders, start, tmp_path, capsys):
    assert train(renders, tmp_path / "whole", init_from=start) == 0
    assert capsys.readouterr().out.strip().endswith(f"wrote {tmp_path}/whole/model")
    lines = metrics(tmp_path / "whole")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4 and [line["step"] for line in lines if "held_out_degrees" in line] == [2, 4]
    objects, config = RenderedObjects(renders), parse(words(renders, tmp_path), ElevationConfig)
    trained, held = split(objects, config)
    score = held_out_error(ElevationNet.from_pretrained(tmp_path / "whole/model"), objects, held)
    assert score["held_out_degrees"] == pytest.approx(lines[-1]["held_out_degrees"], rel=1e-4)
    assert set(trained) & set(held) == set()
    # The same, from what it had written when it was half-way.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("model", "checkpoint-4"):
        shutil.rmtree(tmp_path / "cut" / name)
    assert train(renders, tmp_path / "cut", init_from=start, resume_from_checkpoint="latest") == 0
    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    for name in ("metrics.jsonl", "model/model.safetensors", "checkpoint-4/model.safetensors"):
        assert whole[Path(name)] == cut[Path(name)], f"{name} differs"


@pytest.mark.slow
def test_without_weights_it_starts_from_the_published_ones(renders, tmp_path, monkeypatch):
    taken = []
    torch.save({"a": torch.ones(1)}, tmp_path / "published.pth")
    monkeypatch.setattr("dd3g.models.obtain_model", lambda name: tmp_path / "published.pth")
    monkeypatch.setattr(EfficientNetLite0, "load_published", lambda self, state: taken.append(state))
    # A cluster's job asks for the latest checkpoint each time, the first time too.
    for steps in (2, 4):
        assert train(renders, tmp_path / "run", max_train_steps=steps, resume_from_checkpoint="latest") == 0
    assert [list(state) for state in taken] == [["a"]]


def test_weights_of_another_kind_are_refused(renders, tmp_path, capsys):
    assert train(renders, tmp_path / "run", init_from="nano") == 2
    assert "elevation" in capsys.readouterr().err and not (tmp_path / "run/model").exists()


def test_samples_are_views_of_all_elevations(renders):
    objects = RenderedObjects(renders)
    samples = ElevationDataset(objects, 3, range(8), scan_fraction=0.5, shape_fraction=0.0)
    assert len(samples) == 6 and torch.equal(samples[5].seen, samples[5].seen)
    drawn = [samples[k].elevation.item() for k in range(120)]
    assert set(drawn) == set(ELEVATIONS)
    # Views are at 10 (eight of them), 30 (four), -5 and 25: drawn evenly, the eight are no majority.
    assert 0.1 < drawn.count(10.0) / 120 < 0.4 and drawn.count(-5.0) > 12
    item = objects[0]
    plain = elevation_sample(item, generator_for(0, 1), plain=True)
    views = [framed(resize(view[None].float() / 255, 64)[0]) for view in item.rgba]
    chosen = {e for e, seen in zip(ELEVATIONS, views, strict=True) if torch.equal(seen, plain.seen)}
    assert chosen == {plain.elevation.item()}
