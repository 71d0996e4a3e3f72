"""Training of the tiny model of pictures, and `dd3g data synthesize` with it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stand_ins.tiny_objects import write_renders
from stand_ins.tiny_pictures import SMALL, denoiser, pipeline
from stand_ins.training_runs import files, metrics

from data_gen import train_tiny
from data_gen.meshes.captions import color_shares, id_words, name_words, picture_words, read_manifest
from data_gen.picture_models.pipelines import load_model
from data_gen.picture_models.protocol import ModelConfig
from data_gen.train_tiny import CaptionedViews, TinyTrainConfig
from dd3g.command.configuration import parse
from dd3g.errors import UserError
from dd3g.fingerprint import folder_fingerprint
from dd3g.io.shards import Shards


def test_words_from_names(tmp_path):
    assert name_words("TrashCanC_01", "Furniture-Bits") == ["trash", "can", "furniture"]
    assert name_words("Couch_Red", "house_interior_pack") == ["couch", "furniture"]
    assert id_words("mkt_wine_white") == ["wine"] and id_words("lamp") == ["lamp"]
    (tmp_path / "m.csv").write_text("id,name,category\na,Big Fish,fish_pack\n")
    assert read_manifest(tmp_path / "m.csv") == {"a": ["big", "fish"]}
    (tmp_path / "n.csv").write_text("id,name\na,b\n")
    with pytest.raises(UserError, match="columns id, name and category"):
        read_manifest(tmp_path / "n.csv")
    with pytest.raises(UserError, match="cannot read the manifest"):
        read_manifest(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("color", "words"),
    [
        ((220, 30, 30), {"red"}),
        ((20, 30, 90), {"blue", "navy", "dark"}),
        ((150, 200, 240), {"blue", "sky"}),
        ((110, 70, 35), {"brown"}),
        ((250, 250, 245), {"white", "bright"}),
        ((15, 12, 14), {"black", "dark"}),
        ((128, 128, 128), {"grey"}),
        ((40, 160, 60), {"green"}),
        ((240, 210, 40), {"yellow"}),
    ],
)
def test_words_from_pixels(color, words):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[8:24, 8:24] = (*color, 255)
    assert words <= set(picture_words(rgba))
    [(name, share)] = color_shares(np.array([color], np.float32) / 255).items()
    assert name in words and share == 1


def test_words_from_shape_and_view():
    rgba = np.zeros((32, 32, 4), np.uint8)
    assert picture_words(rgba) == []
    rgba[2:30, 14:18] = (200, 20, 20, 255)
    assert "tall" in picture_words(rgba) and "wide" in picture_words(rgba.swapaxes(0, 1))
    assert "above" in picture_words(rgba, 30) and "above" not in picture_words(rgba, 10)
    rgba[2:30, 14:18, :3] = np.random.default_rng(0).integers(256, size=(28, 4, 3))
    assert "colourful" in picture_words(rgba)


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    return write_renders(tmp_path_factory.mktemp("renders"))


def options(renders, output, **keys):
    words = [f"model.{k}={v}" for k, v in SMALL.items()]
    keys = {
        "train_batch_size": 4,
        "max_train_steps": 6,
        "checkpointing_steps": 2,
        "validation_steps": 2,
        "logging_steps": 2,
        "lr_warmup_steps": 2,
    } | keys
    return [f"renders=[{renders}]", f"output_dir={output}", *words, *(f"{k}={v}" for k, v in keys.items())]


def view_config(renders, size=32, **more):
    settings = {"recolour": 0, "word_dropout": 0, "condition_dropout": 0} | more
    model = train_tiny.TinyShape(size=size)
    return train_tiny.TinyTrainConfig(renders=[str(renders)], views=3, model=model, **settings)


def test_draws_are_flipped_recoloured_and_captioned(renders):
    views = CaptionedViews(view_config(renders, recolour=0.5))
    rgba, texts = views.draw(40, torch.Generator().manual_seed(0))
    again, same = views.draw(40, torch.Generator().manual_seed(0))
    assert rgba.shape == (40, 4, 32, 32) and torch.equal(rgba, again) and texts == same
    assert len(views.pictures) == 3 and views.pictures[0].shape == (3, 32, 32, 4)
    assert sum("photograph" in text for text in texts) in range(20, 35)  # two of the three are scans
    for picture, text in list(zip(rgba, texts, strict=True))[:10]:
        pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        assert [w for w in picture_words(pixels)] == text.split()[-len(picture_words(pixels)) :]
    views.pictures = [np.zeros((1, 32, 32, 4), np.uint8)] * 3
    views.pictures[0][0, :, :8] = (200, 100, 0, 255)  # on the left, orange
    drawn = views.draw(60, torch.Generator().manual_seed(0))[0]
    right = drawn[:, 3, :, 24:].mean((1, 2))
    assert torch.equal(drawn[:, 3, :, :8].mean((1, 2)), 1 - right) and 20 < right.sum() < 40
    strongest = drawn[:, :3].amax((2, 3)).argmax(1)
    assert {0, 1, 2} == set(strongest.tolist()) and (strongest == 0).sum() > 30
    silent = CaptionedViews(view_config(renders, condition_dropout=1))
    assert set(silent.draw(5, torch.Generator())[1]) == {""}
    with pytest.raises(UserError, match="views of 32 pixels, the model draws 64"):
        CaptionedViews(view_config(renders, size=64))


def test_a_damaged_render_costs_itself(renders, tmp_path, capsys):
    path = tmp_path / "bad/renders-00000.tar"
    content = bytearray((renders / path.name).read_bytes())
    place = content.rindex(b"\x89PNG") + 60  # of the last object's picture
    content[place : place + 40] = bytes(40)
    path.parent.mkdir()
    path.write_bytes(content)
    assert len(CaptionedViews(view_config(path.parent)).pictures) == 2
    assert capsys.readouterr().err.count("warning: skipped a sample: object2 in shard") == 1
    with pytest.raises(UserError, match="object2 in shard"):
        CaptionedViews(view_config(path.parent, max_bad_samples=0))


def test_a_model_is_replaced_as_a_whole(tmp_path, monkeypatch):
    model = denoiser()
    train_tiny.save(model, tmp_path / "model", 3)
    before = {p: p.read_bytes() for p in sorted((tmp_path / "model").rglob("*")) if p.is_file()}
    assert len(before) >= 4

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="the disk is full"):
        train_tiny.save(model, tmp_path / "model", 4)
    assert {p: p.read_bytes() for p in sorted((tmp_path / "model").rglob("*")) if p.is_file()} == before


@pytest.mark.slow
def test_training_killed_and_resumed_ends_the_same(renders, tmp_path, monkeypatch):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert train_tiny.main(options(renders, whole)) == 0
    assert train_tiny.main(options(renders, parted, max_train_steps=0)) == 2

    call = train_tiny.TinyLoss.__call__

    def killed(self, model, g, step):
        if step == 5 and model.training:
            raise KeyboardInterrupt
        return call(self, model, g, step)

    monkeypatch.setattr(train_tiny.TinyLoss, "__call__", killed)
    assert train_tiny.main(options(renders, parted)) == 130
    monkeypatch.undo()
    assert train_tiny.main(options(renders, parted)) == 2  # it holds a run
    assert train_tiny.main([*options(renders, parted), "--resume", "latest"]) == 0
    assert files(parted / "model") == files(whole / "model") and metrics(parted) == metrics(whole)
    assert metrics(whole)[-1]["average_loss"] < metrics(whole)[1]["average_loss"]

    weights = load_file(whole / "model" / "denoiser" / "diffusion_pytorch_model.safetensors")
    assert all(w.dtype == torch.float16 for w in weights.values())
    assert (whole / "sheet.png").exists() and "license: apache-2.0" in (whole / "model/README.md").read_text()
    loaded = load_model(ModelConfig(path=str(whole / "model"), steps=2), torch.device("cpu"))
    assert loaded.licence == "apache-2.0" and loaded.draw(["a red ball"], [0])[0].size == (32, 32)
    assert loaded.pipeline.denoiser.dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixed_precision=int8"], "mixed_precision 'int8' is not one of auto, no"),
        (["word_dropout=2"], "word_dropout must be between 0 and 1"),
        (["views=0"], "views must be at least 1"),
        (["model.size=36", "max_train_steps=1"], "must be multiples of 8"),
        (["renders=[nowhere]"], "nowhere"),
    ],
)
def test_mistakes_are_told(words, message, capsys, here):
    assert train_tiny.main(words) == 2
    assert message in capsys.readouterr().err


def test_precision_as_yaml_reads_it(tmp_path):
    (tmp_path / "c.yaml").write_text("mixed_precision: no\n")
    assert parse(["--config", str(tmp_path / "c.yaml")], TinyTrainConfig).mixed_precision == "no"


def test_one_process_only(renders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_tiny.main(options(renders, tmp_path)) == 2
    assert "--num_processes 1, not 2" in capsys.readouterr().err


def test_synthesize_draws_with_it(tmp_path, capsys):
    from data_gen.synthesize import main

    # An alpha network that never saw a picture: what it draws is dust, so nothing may be filtered.
    made = pipeline()
    made.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red chair\na blue fish\na grey rock\n")
    lowest = ["min_coverage", "min_main", "min_aspect", "min_fill", "min_thickness", "min_sharpness"]
    words = [f"filters.{k}=0" for k in [*lowest, "min_contrast"]] + ["filters.duplicate_distance=-1"]
    words += [f"filters.{k}=1" for k in ("max_coverage", "max_border", "max_soft")]
    words += ["filters.max_colourfulness=1000", "matte.size=32", "model.steps=2", "model.guidance=2"]
    words += ["model.licence=Apache-2.0", f"model.path={tmp_path / 'model'}", "device=cpu", "batch_size=2"]
    words += [f"prompts={tmp_path / 'prompts.txt'}", f"output={tmp_path / 'set'}"]
    config = Path(train_tiny.__file__).parents[1] / "configs" / "data_gen" / "tiny.yaml"
    assert main(["--json", "--config", str(config), *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] == report["asked"] == 3
    shards = Shards(tmp_path / "set")
    name = f"TinyRgbaPipeline/model@{folder_fingerprint(tmp_path / 'model')}"
    for sample in map(shards.__getitem__, range(3)):
        record = json.loads(sample["json"])
        assert record["model"] == name and record["licence"] == "Apache-2.0" and record["size"] == 32
        picture = Image.open(io.BytesIO(sample["png"]))
        assert picture.mode == "RGBA" and picture.size == (32, 32)
