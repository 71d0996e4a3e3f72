"""Pipelines of diffusers with random weights, through the whole command."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from stand_ins import tiny_pipelines

from data_gen.filters import mattes
from data_gen.filters.mattes import MatteConfig, matte_and_frame
from data_gen.picture_models.pipelines import load_model
from data_gen.picture_models.protocol import ModelConfig
from data_gen.synthesize import main
from dd3g.io.shards import Shards

TEXTS = ["a red fox", "a blue chair", "a wooden boat", "an old lamp", "a green pot"]
# Pictures by random weights are noise: only what their mattes look like can be judged.
LOOSE = ["min_sharpness=0", "min_contrast=0", "max_colourfulness=1000", "duplicate_distance=-1"]


@pytest.fixture
def disc(monkeypatch):
    """A matting model that finds a disc in any picture."""

    def predict(image, model, threads):
        mask = Image.new("L", image.size)
        radius = min(image.size) / 3
        ImageDraw.Draw(mask).circle((image.width / 2, image.height / 2), radius, fill=255)
        return mask

    monkeypatch.setattr(mattes, "predict_matte", predict)


def command(folder, model, *more):
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    words = ["--json", f"prompts={prompts}", f"output={folder / 'set'}", "batch_size=2", "device=cpu"]
    words += [
        f"model.path={model}",
        "model.steps=2",
        "matte.size=32",
        *(f"filters.{f}" for f in LOOSE),
        *more,
    ]
    return words


@pytest.mark.parametrize(
    "kind, licence, options",
    [
        ("stable_diffusion", "creativeml-openrail-m", {}),
        ("stable_diffusion_xl", "sai-nc-community", {}),
        ("pixart_sigma", "openrail++", {"use_resolution_binning": False, "clean_caption": False}),
    ],
)
def test_a_set_by_a_pipeline(disc, tmp_path, capsys, kind, licence, options):
    folder = getattr(tiny_pipelines, kind)(tmp_path / kind)
    more = [f"model.call_options.{k}={v}" for k, v in options.items()]
    assert main(command(tmp_path, folder, *more)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["pictures"] == len(TEXTS), report
    shard = Shards([tmp_path / "set" / "pictures-00000.tar"])
    assert len(shard) == len(TEXTS)
    card = (tmp_path / "set" / "README.md").read_text()
    assert licence in card
    model = load_model(ModelConfig(path=str(folder), steps=2, call_options=options), torch.device("cpu"))
    assert model.name.startswith(type(model.pipeline).__name__)
    for i, text in enumerate(TEXTS):
        record = json.loads(shard[i]["json"])
        assert (record["prompt"], record["model"], record["licence"]) == (text, model.name, licence)
        picture = np.asarray(Image.open(io.BytesIO(shard[i]["png"])))
        assert picture.shape == (32, 32, 4)
        # Any picture can be made again from its record alone.
        again = matte_and_frame(model.draw([text], [record["seed"]])[0], MatteConfig(size=32)).rgba
        assert np.abs(again.astype(int) - picture).max() <= 3


def test_what_a_pipelines_own_checker_flags_is_missing_as_unsafe(disc, tmp_path, capsys):
    folder = tiny_pipelines.stable_diffusion(tmp_path / "model", checked=True)
    assert main(command(tmp_path, folder, "attempts=2")) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["pictures"] == 0 and report["missing"] == {"unsafe": len(TEXTS)}, report


def test_a_model_that_will_not_do_is_one_line(disc, tmp_path, capsys):
    folder = tiny_pipelines.stable_diffusion(tmp_path / "model")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert main(command(tmp_path, folder)) == 2
    assert "has no weights in the safetensors format" in capsys.readouterr().err
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "AudioLDM2Pipeline"))
    assert main(command(tmp_path, folder)) == 2
    assert "AudioLDM2Pipeline is not a text-to-image pipeline" in capsys.readouterr().err
    assert not list((tmp_path / "set").glob("pictures-*"))
