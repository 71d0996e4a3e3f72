from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from stand_ins import tiny_pipelines
from stand_ins.tiny_pipelines import fails, load

from data_gen.picture_models import pipelines
from data_gen.picture_models.pipeline_folders import pipeline_class
from data_gen.picture_models.protocol import ModelConfig
from data_gen.synthesize import SynthesizeConfig
from dd3g.errors import UserError
from dd3g.fingerprint import folder_fingerprint

TEXTS = ["a red fox", "a blue chair, wooden", "x"]
SHORT = {"max_sequence_length": 24}
PIXART = {"use_resolution_binning": False, "clean_caption": False}


def pixels(picture):
    return np.asarray(picture).astype(int)


# --- drawing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, licence, keys",
    [
        ("stable_diffusion", "creativeml-openrail-m", {}),
        ("stable_diffusion_xl", "sai-nc-community", {}),
        ("pixart_sigma", "openrail++", {"call_options": PIXART}),
        ("stable_diffusion_3", "stabilityai-ai-community", {"call_options": SHORT}),
        ("flux", "apache-2.0", {"call_options": SHORT, "guidance": 0.0, "height": 32, "width": 32}),
    ],
)
def test_a_picture_is_the_same_alone_and_in_a_batch(folders, kind, licence, keys):
    model = load(folders[kind], **keys)
    name = f"{type(model.pipeline).__name__}/{kind}@{folder_fingerprint(folders[kind])}"
    assert (model.name, model.licence, model.has_alpha) == (name, licence, False)
    batch = model.draw(TEXTS, [1, 2, 3])
    assert [(p.mode, p.size) for p in batch] == [("RGB", (32, 32))] * 3
    for again in (model, load(folders[kind], **keys)):
        alone = again.draw(TEXTS[1:2], [2])[0]
        assert np.abs(pixels(alone) - pixels(batch[1])).max() <= 2
    assert np.abs(pixels(batch[0]) - pixels(batch[1])).mean() > 5


def test_seed_and_text_both_matter(folders):
    model = load(folders["stable_diffusion"], guidance=5.0)
    a, b, c, d = model.draw(["a fox", "a fox", "a fox", "an old chair"], [1, 1, 2, 1])
    assert a.tobytes() == b.tobytes()
    assert np.abs(pixels(a) - pixels(c)).mean() > 5
    assert a.tobytes() != d.tobytes()


def test_random_steps_take_each_pictures_own_noise(folders):
    model = load(folders["stable_diffusion"], scheduler="EulerAncestralDiscreteScheduler", steps=3)
    batch = model.draw(TEXTS, [1, 2, 3])
    torch.manual_seed(99)
    assert np.abs(pixels(model.draw(TEXTS[1:2], [2])[0]) - pixels(batch[1])).max() <= 2


def test_any_text_is_drawn_without_a_word(folders, capfd, caplog):
    model = load(folders["stable_diffusion"])
    capfd.readouterr()
    pictures = model.draw(["", "fox " * 2500, "été, 狐, \n\x00"], [1, 2, 3])
    assert [p.size for p in pictures] == [(32, 32)] * 3
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_an_empty_batch_gives_no_pictures(folders):
    assert load(folders["stable_diffusion"]).draw([], []) == []


def test_keys_reach_the_call(folders):
    model = load(
        folders["stable_diffusion_xl"],
        steps=3,
        guidance=4.0,
        negative_prompt="blue",
        height=16,
        width=48,
        call_options={"guidance_rescale": 0.5},
        vae_tiling=True,
        vae_slicing=True,
    )
    assert model.arguments == {
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "negative_prompt": "blue",
        "height": 16,
        "width": 48,
        "guidance_rescale": 0.5,
    }
    assert model.pipeline.vae.use_tiling and model.pipeline.vae.use_slicing
    seen = model.draw(["a fox", "a fox"], [1, 1])
    assert [p.size for p in seen] == [(48, 16)] * 2
    plain = load(folders["stable_diffusion_xl"], steps=3, guidance=4.0, height=16, width=48)
    assert plain.draw(["a fox"], [1])[0].tobytes() != seen[0].tobytes()


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, ("to", "cuda:1")),
        ({"offload": "model"}, ("enable_model_cpu_offload", "cuda:1")),
        ({"offload": "sequential"}, ("enable_sequential_cpu_offload", "cuda:1")),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
def test_memory_keys_reach_the_pipeline(folders, monkeypatch, attention, keys, expected):
    """As a GPU would see it: what is called, and for which of several."""
    asked = []

    def record(name):
        return lambda pipeline, place=None, device=None: asked.append((name, str(place or device)))

    for name in ("to", "enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        monkeypatch.setattr(diffusers.StableDiffusionPipeline, name, record(name))
    xformers = "enable_xformers_memory_efficient_attention"
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, xformers, record(xformers))
    folder = str(folders["stable_diffusion"])
    config = ModelConfig(folder, dtype="float32", attention=attention, **keys)
    pipelines.load_model(config, torch.device("cuda:1"))
    assert asked == [(xformers, "None")] * (attention == "xformers") + [expected]


@pytest.mark.parametrize("key, task", [("vae_tiling", "enable tiling"), ("vae_slicing", "enable slicing")])
def test_a_pipeline_without_a_vae_has_no_tiles(key, task):
    with pytest.raises(UserError, match=f"object cannot {task}: leave out model.{key}"):
        pipelines._set_memory(object(), ModelConfig(**{key: True}), torch.device("cpu"))


def test_too_little_memory_is_told_with_what_saves_some(folders, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model = load(folders["stable_diffusion"])
    kind = diffusers.StableDiffusionPipeline
    monkeypatch.setattr(kind, "to", full)
    fails(
        folders["stable_diffusion"], "does not fit on cpu: set model.offload=model, or model.dtype=bfloat16"
    )
    monkeypatch.setattr(kind, "__call__", full)
    with pytest.raises(UserError, match="drawing 2 pictures at once: lower batch_size, or set model.vae_sl"):
        model.draw(["a fox", "x"], [1, 2])


def test_tiles_show_and_slices_do_not(folders):
    """So a set keeps to its tiles, while slices, like other savings of memory, may change on the way."""
    size = {"height": 96, "width": 96}
    whole = pixels(load(folders["stable_diffusion"], **size).draw(["a fox", "x"], [1, 2])[0])
    for key, most in (("vae_slicing", 2), ("vae_tiling", 255)):
        model = load(folders["stable_diffusion"], **size, **{key: True})
        difference = np.abs(pixels(model.draw(["a fox", "x"], [1, 2])[0]) - whole).max()
        assert difference <= most
        assert (f"model.{key}" in SynthesizeConfig().options()) == (difference > 2), key


def test_defaults_are_left_to_the_pipeline(folders):
    assert load(folders["stable_diffusion"], steps=0).arguments == {}


def test_the_scheduler_and_its_options_are_replaced(folders):
    keys = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    model = load(folders["stable_diffusion"], scheduler="DPMSolverMultistepScheduler", scheduler_options=keys)
    scheduler = model.pipeline.scheduler
    assert type(scheduler) is diffusers.DPMSolverMultistepScheduler
    assert (scheduler.config.use_karras_sigmas, scheduler.config.beta_end) == (True, 0.012)
    same = load(folders["stable_diffusion"], scheduler_options={"timestep_spacing": "trailing"})
    assert type(same.pipeline.scheduler) is diffusers.DDIMScheduler
    assert same.pipeline.scheduler.config.timestep_spacing == "trailing"


def test_half_precision_on_the_cpu(folders):
    model = load(folders["stable_diffusion"], dtype="bfloat16")
    assert model.pipeline.unet.dtype == torch.bfloat16
    assert model.draw(["a fox"], [1])[0].size == (32, 32)


def test_the_safety_checker_can_be_left_out_with_its_weights(tmp_path):
    folder = tiny_pipelines.stable_diffusion(tmp_path / "checked", checked=True)
    assert load(folder).draw(["a fox", "x"], [1, 2]) == ["unsafe", "unsafe"]
    shutil.rmtree(folder / "safety_checker")
    fails(folder, "lacks the folder safety_checker")
    assert pixels(load(folder, safety_checker=False).draw(["a fox"], [1])[0]).std() > 5


def test_what_the_safety_checker_flags_is_unsafe_and_the_rest_drawn(tmp_path):
    model = load(tiny_pipelines.stable_diffusion(tmp_path / "checked", checked=True))
    checker = model.pipeline.safety_checker
    forward = checker.forward
    checker.forward = lambda **keys: (forward(**keys)[0], [False, True])
    a, b = model.draw(["a fox", "x"], [1, 2])
    assert isinstance(a, Image.Image) and b == "unsafe"


# --- keys that mean nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, keys, message",
    [
        (
            "stable_diffusion_xl",
            {"guidance": 0.0, "negative_prompt": "blue"},
            "no effect at guidance_scale 0",
        ),
        ("stable_diffusion", {"call_options": {"sharpness": 2}}, "takes no sharpness"),
        ("stable_diffusion", {"call_options": {"num_inference_steps": 2}}, "set by model.steps"),
        ("stable_diffusion", {"call_options": {"generator": 2}}, "set by another key"),
        (
            "stable_diffusion",
            {"scheduler": "NoSuchScheduler"},
            "no scheduler 'NoSuchScheduler'.*DDIMScheduler",
        ),
        ("stable_diffusion", {"scheduler": "UNet2DModel"}, "no scheduler 'UNet2DModel'"),
        ("stable_diffusion", {"scheduler": "DPMSolverSDEScheduler"}, "depends on its batch"),
        ("stable_diffusion", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "does not suit this model"),
        ("flux", {"scheduler": "DDIMScheduler"}, "does not suit this model"),
        ("flux", {"negative_prompt": "blue", "guidance": 3.5}, "no effect at true_cfg_scale 1"),
        ("stable_diffusion", {"scheduler_options": {"karras": True}}, "DDIMScheduler takes no karras"),
        ("stable_diffusion", {"offload": "model"}, "needs a GPU"),
        ("stable_diffusion", {"dtype": "float16"}, "needs a GPU"),
        ("stable_diffusion", {"attention": "xformers"}, "attention=xformers cannot be used here"),
        ("stable_diffusion", {"variant": "fp16"}, "variant"),
    ],
)
def test_keys_without_effect_are_refused(folders, kind, keys, message):
    fails(folders[kind], message, **keys)


class Distilled:
    """Signature of FLUX: two kinds of guidance."""

    def __call__(self, prompt, negative_prompt=None, true_cfg_scale=1.0, guidance_scale=3.5, height=None): ...


def test_a_negative_prompt_needs_true_guidance_where_there_are_two_kinds():
    with pytest.raises(UserError, match="no effect at true_cfg_scale 1.*model.call_options.true_cfg_scale"):
        pipelines.call_arguments(Distilled, ModelConfig(negative_prompt="blue", guidance=3.5))
    options = {"true_cfg_scale": 4.0}
    config = ModelConfig(negative_prompt="blue", call_options=options)
    assert pipelines.call_arguments(Distilled, config) == {"negative_prompt": "blue", "true_cfg_scale": 4.0}
    with pytest.raises(UserError, match="takes no num_inference_steps: leave out model.steps"):
        pipelines.call_arguments(Distilled, ModelConfig(steps=4))


def test_keys_are_refused_before_weights_are_read(folders, monkeypatch):
    def read(*_, **__):
        pytest.fail("weights were read")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", read)
    fails(folders["stable_diffusion"], "takes no sharpness", call_options={"sharpness": 2})
    fails(folders["stable_diffusion"], "no scheduler 'X'", scheduler="X")


def test_what_the_pipeline_refuses_is_said(folders):
    model = load(folders["pixart_sigma"], call_options={"clean_caption": False})
    with pytest.raises(
        UserError, match="pixart_sigma@.* does not draw with these options: Invalid sample size"
    ):
        model.draw(["a fox"], [1])


# --- the shipped configs -----------------------------------------------------------------------------------

SHIPPED = {
    "sd15": "StableDiffusionPipeline",
    "sd21": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl_turbo": "StableDiffusionXLPipeline",
    "pixart": "PixArtSigmaPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_suit_the_pipelines_they_are_for(name, tmp_path):
    file = Path(__file__).parents[3] / "configs" / "data_gen" / f"{name}.yaml"
    config = ModelConfig(**OmegaConf.to_container(OmegaConf.load(file).model))
    arguments = pipelines.call_arguments(pipeline_class(SHIPPED[name]), config)
    assert arguments["num_inference_steps"] == config.steps > 0
    assert arguments["height"] == arguments["width"] >= 512
    assert ("negative_prompt" in arguments) == (config.guidance > 1)
    if config.scheduler:
        index = {"scheduler": ["diffusers", "DDIMScheduler"]}
        diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "scheduler")
        scheduler = pipelines.make_scheduler(tmp_path, index, config)
        assert type(scheduler).__name__ == config.scheduler
        assert scheduler.config.beta_schedule == "scaled_linear"
