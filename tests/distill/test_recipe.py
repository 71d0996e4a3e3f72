"""One command from meshes to weights: within its minutes, killed and gone on with."""

from __future__ import annotations

import json

import pytest
import torch
from stand_ins.tiny_objects import write_cube

from dd3g.pepd import Generator
from distill.recipe import SIZES, main, trained_minutes

SMALL = (
    "network.fine=8 network.widths=[8,16] network.width=16 network.depth=1 network.heads=2 network.bins=8 "
    "network.residual_hidden=8 network.color_bins=4 objective.steps=8 pixels=32 held_out=0.4 "
    "validation_steps=2 logging_steps=1 train_batch_size=2 use_cpu=true"
).split()


def words(folder, *more, steps=2):
    train = [word for option in (*SMALL, f"max_train_steps={steps}") for word in ("--train", option)]
    start = ["nano", "--minutes", "3", "--data", str(folder / "meshes"), "-o", str(folder / "out")]
    return [*start, *train, *more]


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    for k in range(6):
        write_cube(folder / "meshes" / f"cube{k}" / "model.glb", 0.5 + 0.1 * k)
    write_cube(folder / "test" / "cube" / "model.glb", 0.75)
    return folder


@pytest.mark.slow
def test_from_meshes_to_weights_and_on(meshes, capfd):
    assert main(words(meshes, "--test", str(meshes / "test"))) == 0
    weights = meshes / "out" / "weights"
    generator = Generator.from_pretrained(weights)
    assert generator.config.shape is not None
    picture = torch.zeros(4, 64, 64)
    picture[:, 16:48, 16:48] = 0.7
    picture[3, 16:48, 16:48] = 1
    assert len(generator.generate(picture).means) > 500
    assert {t.dtype for t in generator.state_dict().values() if t.is_floating_point()} == {torch.float32}
    card = (weights / "MODEL_CARD.md").read_text()
    assert f"dd3g recipe nano --minutes 3 --data {meshes / 'meshes'} --train network.fine=8" in card
    assert "| nano |" in card and "2 steps" in card and str(meshes / "meshes") in card
    assert (meshes / "out/evaluation/sheet.png").exists()
    first = trained_minutes(meshes / "out/shape")
    capfd.readouterr()

    assert main(words(meshes)) == 2
    assert "go on with --resume" in capfd.readouterr().err
    assert main(words(meshes, "--resume", "--generator", "other")) == 2
    assert "generator nano -> other" in capfd.readouterr().err
    assert main(words(meshes, "--resume", steps=4)) == 0
    assert trained_minutes(meshes / "out/shape") > first > 0
    lines = (meshes / "out/shape/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huge", "--minutes", "1", "--data", "x"], "no recipe 'huge': give nano, small, base"),
        (["nano", "--minutes", "1"], "nothing to train on"),
    ],
)
def test_what_cannot_be_made(arguments, message, tmp_path, capsys):
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_the_configurations():
    from dd3g.configuration import parse
    from distill.train_shape import ShapeConfig

    for size, pixels in SIZES.items():
        network = parse(["--config", size], ShapeConfig).network
        assert network.size == pixels
