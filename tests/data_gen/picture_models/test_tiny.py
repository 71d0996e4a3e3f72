from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file
from stand_ins.tiny_objects import write_renders
from stand_ins.training_runs import files, metrics

from data_gen import train_tiny
from data_gen.meshes.captions import color_shares, id_words, name_words, picture_words, read_manifest
from data_gen.picture_models.loading import load_model
from data_gen.picture_models.pipeline_folders import folder_fingerprint
from data_gen.picture_models.protocol import ModelConfig
from data_gen.picture_models.tiny import (
    PARTS,
    WORDS,
    TinyDenoiser,
    TinyRgbaPipeline,
    decode,
    encode,
    encode_texts,
    scheduler,
    words_of,
)
from data_gen.train_tiny import CaptionedViews, TinyTrainConfig, lexicon
from dd3g.configuration import parse
from dd3g.errors import UserError
from dd3g.io.shards import Shards

SMALL = {
    "size": 32,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 8,
    "mid": 16,
    "buckets": 64,
    "word_width": 8,
}


def denoiser(seed=0, **keys):
    """Random weights everywhere, so that text, time and noise all count."""
    torch.manual_seed(seed)
    made = TinyDenoiser(**(SMALL | keys))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        made.words[0] = 0
    return made.eval()


def pipeline(**keys):
    made = TinyRgbaPipeline(denoiser(**keys), scheduler())
    made.set_progress_bar_config(disable=True)
    return made


def draw(made, texts, seeds, **keys):
    sources = [torch.Generator().manual_seed(s) for s in seeds]
    return made(texts, num_inference_steps=4, generator=sources, output_type="pt", **keys).images


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red wooden Chair", ["red", "wooden", "chair"]),
        ("a cat on a chair on a plain white background", ["cat", "chair"]),
        ("a teapot, seamless light grey background, low-poly", ["teapot", "low", "poly"]),
        ("white backdrop; blue blue fish", ["blue", "fish"]),
        ("\x00 42 ...", []),
    ],
)
def test_words_of_a_text(text, words):
    assert words_of(text) == words


def test_codes_do_not_depend_on_the_rest_of_the_text():
    codes = encode_texts(["red chair", "chair", "", "x" * 10_000, "word " * 5000], 64)
    assert codes.shape == (5, WORDS, PARTS) and codes.dtype == torch.long
    assert torch.equal(codes[0, 1], codes[1, 0]) and not codes[2].any()
    assert codes.max() < 64
    assert (codes[0, 0] > 0).sum() == 1 + 2 + 3  # red, <red red>, <re red ed>
    assert (codes[4].any(-1)).sum() == 1  # one word, said often


def test_a_group_is_a_part_of_its_own():
    plain, grouped = (encode_texts(["deer"], 64, lexicon)[0, 0] for lexicon in (None, {"deer": "mammals"}))
    assert plain[1] == 0 and grouped[1] > 0
    grouped[1] = 0
    assert torch.equal(plain, grouped)


def test_lexicon_knows_nouns_and_heads():
    known = lexicon()
    assert known["chair"] == "seating" and known["tree"] == "trees_and_mushrooms"
    assert len(known) > 1000 and "robots" != known.get("fish")


def test_codec_is_its_own_inverse():
    rgba = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rgba[:, 3] = rgba[:, 3] * 0.9 + 0.1
    assert torch.allclose(decode(encode(rgba)), rgba, atol=6e-3)
    nothing = torch.cat([torch.rand(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)], 1)
    assert torch.equal(encode(nothing)[:, :3], torch.zeros(1, 3, 2, 2))
    assert torch.equal(decode(encode(nothing))[:, :3], torch.full((1, 3, 2, 2), 0.5))


def test_size_of_the_shipped_shape():
    with torch.device("meta"):
        count = sum(p.numel() for p in TinyDenoiser().parameters())
    assert 5e6 < count < 8e6 and 2 * count < 30e6  # bytes in half precision


def test_words_that_were_never_learnt_say_nothing():
    made = TinyDenoiser(**(SMALL | {"buckets": 4096}))
    assert not made.words.any()
    made.learn(["red chair", "fish"])
    rows = made.condition(["red chair fish"]).unique()
    assert rows[0] == 0 and not made.words[0].any()
    assert made.words[rows[1:]].any(1).all() and made.words.any(1).sum() == len(rows) - 1
    made.out[-1].weight.data.normal_()
    x, t = torch.randn(1, 4, 32, 32), torch.tensor([500])
    red, unknown, chair = (
        made(x, t, made.condition([text])) for text in ("red", "zygomorphous red", "red chair")
    )
    assert torch.equal(red, unknown) and not torch.allclose(red, chair, atol=1e-5)


def test_shapes_and_conditioning():
    made = denoiser()
    x = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([999, 500, 0])
    x0 = made(x, t, made.condition(["red chair", "a fish", ""]))
    assert x0.shape == x.shape and x0.dtype == torch.float32
    assert torch.allclose(made(x[1:2], t[1:2], made.condition(["fish"])), x0[1:2], atol=1e-5)
    assert not torch.allclose(made(x[:1], t[:1], made.condition(["blue chair"])), x0[:1], atol=1e-4)
    assert torch.allclose(made(x[:1], t[:1], made.condition(["chair red"])), x0[:1], atol=1e-5)
    with pytest.raises(ValueError, match="multiples of 8"):
        TinyDenoiser(size=36)


def test_a_picture_depends_on_its_text_and_seed_alone():
    made = pipeline()
    both = draw(made, ["a red chair", "a fish"], [1, 2])
    assert both.shape == (2, 4, 32, 32) and 0 <= both.min() and both.max() <= 1
    assert torch.equal(draw(made, ["a red chair", "a fish"], [1, 2]), both)
    assert torch.allclose(draw(made, ["a fish"], [2]), both[1:], atol=1e-3)
    assert (draw(made, ["a fish"], [3]) - both[1:]).abs().max() > 0.1
    assert (draw(made, ["a blue fish"], [2]) - both[1:]).abs().max() > 1e-3


def test_guidance():
    made = pipeline()
    conditional = draw(made, "fish", [1], guidance_scale=1)
    calls = []
    forward = made.denoiser.forward
    made.denoiser.forward = lambda *a: calls.append(a[2]) or forward(*a)
    assert torch.equal(draw(made, "fish", [1], guidance_scale=1), conditional)
    assert len(calls) == 4 and all(c.any() for c in calls)  # no unconditional call
    assert not torch.equal(draw(made, "fish", [1], guidance_scale=2), conditional)
    assert len(calls) == 4 + 8
    against_itself = draw(made, "fish", [1], guidance_scale=3, negative_prompt=["fish"])
    assert torch.allclose(against_itself, conditional, atol=1e-3)


def test_results_in_other_forms_and_sizes():
    made = pipeline()
    g = torch.Generator().manual_seed
    picture = made("fish", num_inference_steps=2, generator=g(0), height=48, width=64).images[0]
    assert picture.mode == "RGBA" and picture.size == (64, 48)
    array = made("fish", num_inference_steps=2, generator=g(0), output_type="np", return_dict=False)[0]
    same = made("fish", num_inference_steps=2, generator=[g(0)], output_type="pil").images[0]
    assert array.shape == (1, 32, 32, 4)
    assert np.array_equal((array[0] * 255).round().astype(np.uint8), np.asarray(same))
    with pytest.raises(ValueError, match="2 generators for 1 prompts"):
        made("fish", generator=[g(0), g(1)])
    with pytest.raises(ValueError, match="2 negative prompts for 1 prompts"):
        made("fish", negative_prompt=["a", "b"])
    for alpha, shown in ((0.015, 0.0), (0.5, 0.5), (0.985, 1.0)):
        made.denoiser.forward = lambda x, t, c, a=alpha: encode(torch.full((1, 4, 32, 32), a))
        assert torch.allclose(draw(made, "fish", [0])[0, 3], torch.tensor(shown), atol=1e-6)
    made.scheduler = DPMSolverMultistepScheduler.from_config(made.scheduler.config)
    with pytest.raises(ValueError, match="by DDIM, not by DPMSolver"):
        made("fish")


def test_a_saved_pipeline_draws_the_same(tmp_path):
    made = pipeline(lexicon={"fish": "sea_creatures"})
    made.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "TinyRgbaPipeline" and index["denoiser"] == [
        "data_gen.picture_models.tiny",
        "TinyDenoiser",
    ]
    again = TinyRgbaPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, DDIMScheduler)
    # Where alpha is nearly 0, colour shows fifty times the rounding.
    assert torch.allclose(draw(again, ["a fish"], [5]), draw(made, ["a fish"], [5]), atol=1e-3)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    loaded = load_model(ModelConfig(path=str(tmp_path), steps=4, guidance=2.0), torch.device("cpu"))
    assert loaded.has_alpha and loaded.licence == "apache-2.0"
    [picture] = loaded.draw(["a fish"], [5])
    expected = draw(made, ["a fish"], [5])[0].permute(1, 2, 0).numpy()
    assert picture.mode == "RGBA" and np.abs(np.asarray(picture) / 255 - expected).max() < 0.003


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


def test_a_pipeline_that_names_the_module_of_before_loads(tmp_path):
    """`data_gen.tiny` stood in model_index.json until the package was cut into rooms."""
    pipeline().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    text = index.read_text()
    assert "data_gen.picture_models.tiny" in text
    index.write_text(text.replace("data_gen.picture_models.tiny", "data_gen.tiny"))
    model = load_model(ModelConfig(path=str(tmp_path), licence="MIT", steps=1), torch.device("cpu"))
    [picture] = model.draw(["a red apple"], [0])
    assert picture.mode == "RGBA"
