"""The tiny model of pictures: its words, its codec, what decides a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from stand_ins.tiny_pictures import SMALL, denoiser, pipeline

from data_gen.picture_models.pipelines import load_model
from data_gen.picture_models.protocol import ModelConfig
from data_gen.picture_models.tiny import (
    PARTS,
    WORDS,
    TinyDenoiser,
    TinyRgbaPipeline,
    decode,
    encode,
    encode_texts,
    words_of,
)
from data_gen.train_tiny import lexicon


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
