from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_ins.forked import Forked
from stand_ins.tiny_generator import generator
from stand_ins.tiny_objects import write_renders
from stand_ins.training_runs import files, fresh, metrics

from dd3g.__main__ import main
from dd3g.command.configuration import launch, parse
from dd3g.errors import UserError
from dd3g.pepd.occupancy import OccupancyNet
from distill.samples.renders import RenderedObjects
from distill.shape.samples import rank
from distill.train_shape import KEPT_BY, Keeper, ShapeConfig, run, split

NETWORK = {
    "size": 32, "bins": 16, "fine": 8, "widths": "[8,16]", "width": 32, "depth": 1, "heads": 2,
    "residual_hidden": 16, "color_bins": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The same as the subprocesses have: another number may round differently."""


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    return write_renders(tmp_path_factory.mktemp("renders"), count=8, volumes=True)


def words(renders, output, **options):
    settings = {
        "renders": f"[{renders}]", "output_dir": output, "train_batch_size": 2, "max_train_steps": 4,
        "checkpointing_steps": 2, "validation_steps": 2, "lr_warmup_steps": 2, "lr_scheduler": "cosine",
        "report_to": "none", "mixed_precision": "no", "held_out": 0.25, "pixels": 64,
        "objective.steps": 16,
    }  # fmt: skip
    settings |= {f"network.{k}": v for k, v in NETWORK.items()} | options
    return [f"{k}={v}" for k, v in settings.items()]


def train(renders, output, **options):
    fresh()
    return launch(run, ShapeConfig, words(renders, output, **options))


@pytest.mark.slow
def test_training_learns_and_keeps_the_best(renders, tmp_path, capsys):
    options = {"max_train_steps": 24, "validation_steps": 8, "checkpointing_steps": 24, "learning_rate": 3e-3}
    assert train(renders, tmp_path, **options) == 0
    printed = capsys.readouterr()
    assert printed.out.strip().endswith(f"wrote {tmp_path}/model")
    assert printed.err.count(f"{KEPT_BY} ") == 3
    lines = metrics(tmp_path)
    steps, scored = ([line for line in lines if (KEPT_BY in line) == held] for held in (False, True))
    assert len(steps) == 24 and [line["step"] for line in scored] == [8, 16, 24]
    for line in steps:
        parts = [line[k] for k in ("bce", "dice", "silhouette", "silhouette_dice", "color")]
        assert line["loss"] == pytest.approx(sum(parts), rel=1e-4)
    early, late = (sum(line["loss"] for line in part) for part in (steps[:6], steps[-6:]))
    assert late < 0.9 * early
    best = json.loads((tmp_path / "model/scores.json").read_text())
    assert best == max(scored, key=lambda line: line[KEPT_BY])
    network = OccupancyNet.from_pretrained(tmp_path / "model")
    logits, _ = network(torch.rand(1, 4, 32, 32), torch.zeros(1))
    assert logits.shape == (1, 16, 32, 32) and logits.isfinite().all()
    assert train(renders, tmp_path, **options) == 2 and "--resume latest" in capsys.readouterr().err
    # The same from a generator that holds this network.
    generator().with_shape(network).save_pretrained(tmp_path / "generator")
    losses = []
    for name in ("model", "generator"):
        assert train(renders, tmp_path / f"from-{name}", init_from=tmp_path / name, max_train_steps=1) == 0
        losses.append(metrics(tmp_path / f"from-{name}")[0]["loss"])
    assert losses[0] == losses[1] < 0.9 * early


def test_a_start_from_another_network_is_refused(renders, tmp_path, capsys):
    network = parse(words(renders, tmp_path), ShapeConfig).network
    OccupancyNet(replace(network, depth=2)).save_pretrained(tmp_path / "deeper")
    options = {"init_from": tmp_path / "deeper", "network.revolved": "true"}
    assert train(renders, tmp_path / "run", **options) == 2
    message = "deeper holds another network than asked for: set network.depth=2 network.revolved=false"
    assert message in capsys.readouterr().err
    old = json.loads((tmp_path / "deeper/config.json").read_text())
    del old["revolved"]  # as in weights of earlier versions
    (tmp_path / "deeper/config.json").write_text(json.dumps(old))
    assert train(renders, tmp_path / "run", init_from=tmp_path / "deeper", **{"network.depth": 2}) == 0


def test_a_start_from_a_generator_without_a_shape_network_is_refused(renders, tmp_path, capsys):
    generator().save_pretrained(tmp_path / "soft")
    assert train(renders, tmp_path / "run", init_from=tmp_path / "soft") == 2
    assert "soft has no shape network to start from" in capsys.readouterr().err


def test_arrays_on_a_disk_train_alike(renders, tmp_path):
    assert train(renders, tmp_path / "whole", max_train_steps=4) == 0
    assert train(renders, tmp_path / "arrays", max_train_steps=4, unpacked_dir=tmp_path / "disk") == 0
    losses = ([row["loss"] for row in metrics(tmp_path / d) if "loss" in row] for d in ("whole", "arrays"))
    assert next(losses) == next(losses)


def test_held_out_clusters_are_not_trained_on(renders, tmp_path):
    objects, config = RenderedObjects(renders), parse(words(renders, tmp_path), ShapeConfig)
    trained, held = split(objects, config)
    assert trained and held and not set(trained) & set(held) and len(trained) + len(held) == 8
    assert all(rank(objects.meta(i)) < 0.25 for i in held)
    assert len(split(objects, replace(config, held_objects=1))[1]) == 1
    half = replace(config, held_out=0.9, held_objects=3)
    every = [i for i in range(8) if rank(objects.meta(i)) < 0.9]
    assert split(objects, half)[1] == [every[len(every) * k // 3] for k in range(3)]
    assert split(objects, replace(config, held_out=0)) == (list(range(8)), [])
    keeper = Keeper(config, objects, held)
    assert [a is b for a, b in zip(keeper.batches, keeper.batches, strict=True)] == [True]
    with pytest.raises(UserError, match="held_out=1 leaves 0 of 8 rendered objects to train on"):
        split(objects, replace(config, held_out=1))
    # Of a few objects one is held out, though their share is less; of a single one none can be.
    few = [objects[i] for i in range(8)]
    alone = split(objects, replace(config, held_out=1e-6))[1]
    assert alone == [min(range(8), key=lambda i: rank(few[i].meta))]
    one = RenderedObjects(write_renders(tmp_path / "one", count=1, volumes=True))
    with pytest.raises(UserError, match="held_out=1e-06 leaves 1 of 1 .* 0 to score by"):
        split(one, replace(config, held_out=1e-6))


def test_only_a_better_network_is_kept(tmp_path, monkeypatch):
    config = parse(words("x", tmp_path), ShapeConfig)
    network = OccupancyNet(config.network)
    score = {}
    monkeypatch.setattr("distill.shape.objective.shape_scores", lambda model, batches: dict(score))
    monkeypatch.setattr(Keeper, "batches", [])
    keeper = Keeper(config, None, [0])
    kept = []
    for step, value in ((10, 0.5), (20, 0.4), (30, 0.6), (40, 0.6)):
        score[KEPT_BY] = value
        with torch.no_grad():
            network.skip.bias.fill_(step)
        assert keeper(network, step) == score
        kept.append(int(OccupancyNet.from_pretrained(tmp_path / "model").skip.bias[0]))
    assert kept == [10, 10, 30, 30]
    latest = replace(config, resume_from_checkpoint="latest")
    assert not Keeper(latest, None, [0]).best  # of a run before: nothing of it is gone on with
    (tmp_path / "checkpoint-30").mkdir()
    again = Keeper(latest, None, [0])
    assert again.best == {"step": 30, KEPT_BY: 0.6} and not Keeper(config, None, [0]).best
    score[KEPT_BY] = 0.55
    again(network, 20)  # resumed from before step 30
    assert again.best["step"] == 30
    every = Keeper(config, None, [])
    assert every(network, 50) == {}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"held_out": 2}, "held_out must be between 0 and 1, got 2"),
        ({"pixels": 0}, "pixels must be at least 1"),
        ({"network.heads": 5}, "heads 5"),
        ({"objective.steps": 0}, "objective.steps must be at least 1, got 0"),
        ({"network.size": 64}, "32 pixels per side, but the network takes 64"),
        ({"scan_fraction": 1, "shape_fraction": 1}, "must be shares of 1"),
    ],
)
def test_wrong_values(renders, tmp_path, capsys, option, message):
    assert train(renders, tmp_path, **option) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_renders_without_volumes(tmp_path, capsys):
    assert train(write_renders(tmp_path / "renders"), tmp_path / "out") == 2
    assert "render it again with --volumes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_has_its_place(capsys):
    assert main(["train-shape", "--help"]) == 0
    text = capsys.readouterr().out
    assert "dd3g train-shape" in text and "cross-entropy of occupancy" in text
    for name in ("nano", "small", "base"):
        assert parse(["--config", name], ShapeConfig).objective == ShapeConfig().objective


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(renders, tmp_path):
    options = {"max_train_steps": 10, "checkpointing_steps": 3}
    assert train(renders, tmp_path / "whole", **options) == 0
    line = ["distill/train_shape.py", *words(renders, tmp_path / "cut", **options), "--resume", "latest"]
    target = random.SystemRandom().randint(1, 12)  # lines, among them those of scores
    process = Forked(*line)
    record, deadline = tmp_path / "cut/metrics.jsonl", time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if record.exists() and record.read_bytes().count(b"\n") >= target:
            break
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert record.exists(), "the run did not start"
    assert train(renders, tmp_path / "cut", resume_from_checkpoint="latest", **options) == 0
    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    names = (
        "metrics.jsonl",
        "model/model.safetensors",
        "model/scores.json",
        "checkpoint-10/model.safetensors",
    )
    for name in names:
        assert whole[Path(name)] == cut[Path(name)], f"{name} differs after a kill at line {target}"
