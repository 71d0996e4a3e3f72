from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import tiny_pipelines
import torch
from huggingface_hub import errors
from omegaconf import OmegaConf
from PIL import Image

from data_gen import pipeline_folders, pipelines
from data_gen.pictures import ModelConfig, load_model
from data_gen.pipeline_folders import INDEX, find_folder, folder_fingerprint, pipeline_class
from dd3g.errors import UserError

CPU = torch.device("cpu")
TEXTS = ["a red fox", "a blue chair, wooden", "x"]
SHORT = {"max_sequence_length": 24}
PIXART = {"use_resolution_binning": False, "clean_caption": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    kinds = ("stable_diffusion", "stable_diffusion_xl", "pixart_sigma", "stable_diffusion_3", "flux")
    return {kind: getattr(tiny_pipelines, kind)(root / kind) for kind in kinds}


@pytest.fixture
def copy(folders, tmp_path):
    """A stable diffusion folder that the test may spoil."""
    return shutil.copytree(folders["stable_diffusion"], tmp_path / "copy")


def load(folder, **keys):
    return load_model(ModelConfig(path=str(folder), **({"steps": 2} | keys)), CPU)


def fails(folder, message, **keys):
    with pytest.raises(UserError, match=message) as caught:
        load(folder, **keys)
    assert "\n" not in str(caught.value)


def pixels(picture):
    return np.asarray(picture).astype(int)


def edit(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


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


def test_a_retrained_or_changed_folder_has_another_name(copy, tmp_path):
    config = ModelConfig(path=str(copy))
    first = find_folder(config)[1]
    assert re.fullmatch(r"StableDiffusionPipeline/copy@[0-9a-f]{8}", first)
    (copy / "README.md").write_text("# other words")
    moved = shutil.copytree(copy, tmp_path / "elsewhere" / "copy")
    assert find_folder(config)[1] == find_folder(ModelConfig(path=str(moved)))[1] == first
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # of the same size and header
    weights.write_bytes(data)
    second = find_folder(config)[1]
    levels = copy / "scheduler" / "scheduler_config.json"
    levels.write_text(levels.read_text().replace("0.012", "0.013"))
    assert len({first, second, find_folder(config)[1]}) == 3


def test_large_weights_are_told_apart_by_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_folders, "_PIECES", 4)
    (tmp_path / "unet").mkdir()
    (tmp_path / INDEX).write_text("{}")
    file, found = tmp_path / "unet" / "model.safetensors", set()
    for place in (None, 0, 33_000, 99_999):  # the last byte counts
        data = bytearray(100_000)
        if place is not None:
            data[place] = 1
        file.write_bytes(data)
        found.add(folder_fingerprint(tmp_path))
    assert len(found) == 4


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


# --- folders that will not do ------------------------------------------------------------------------------


def test_a_missing_folder_is_no_hub_id(tmp_path):
    fails(tmp_path / "nowhere", "no folder .*nowhere, and it is no hub id")


def test_a_single_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    fails(tmp_path / "model.safetensors", "from_single_file")


def test_an_empty_folder(tmp_path):
    fails(tmp_path, "has no model_index.json: give the folder of a diffusers pipeline")


def test_a_transformers_model(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    fails(tmp_path, r"is a single model \(LlamaForCausalLM\), not a pipeline")


def test_a_part_of_a_pipeline(folders):
    fails(folders["stable_diffusion"] / "unet", r"is a single model \(UNet2DConditionModel\)")


def test_a_damaged_index(copy):
    (copy / INDEX).write_text("{")
    fails(copy, "model_index.json is damaged")
    (copy / INDEX).write_text("[]")
    fails(copy, "model_index.json is damaged")


@pytest.mark.parametrize(
    "name, message",
    [
        ("StableDiffusionImg2ImgPipeline", "also needs image"),
        ("StableDiffusionControlNetPipeline", "also needs image"),
        ("FluxControlPipeline", "also needs control_image"),
        ("StableDiffusionUpscalePipeline", "also needs image"),
        ("AudioLDM2Pipeline", "takes no height, width"),
        ("CogVideoXPipeline", "makes videos"),
        ("DDPMPipeline", "takes no prompt"),
        ("UNet2DModel", "no pipeline class"),
        ("NoSuchPipeline", "a newer diffusers may have it"),
    ],
)
def test_pipelines_of_other_tasks(copy, name, message):
    fails(edit(copy, lambda index: index.update(_class_name=name)), message)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "Flux2Pipeline",
        "PixArtAlphaPipeline",
        "QwenImagePipeline",
        "SanaPipeline",
    ],
)
def test_pipelines_of_this_task(name):
    assert pipeline_class(name).__name__ == name


def test_strangers_code_is_never_run(copy, tmp_path):
    trap = copy / "unet" / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for change in (
        lambda index: index.update(_class_name=["trap", "Trap"]),
        lambda index: index.update(unet=["trap", "Trap"]),
        lambda index: index.update(unet=["os", "system"]),
        lambda index: index.update(unet=["logging", "get_logger"]),
    ):
        shutil.copy(copy / INDEX, tmp_path / INDEX)
        fails(edit(copy, change), "such code is never run")
        shutil.copy(tmp_path / INDEX, copy / INDEX)
    assert not (tmp_path / "ran").exists()


def test_a_component_without_weights(copy):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    fails(copy, r"unet has no weights in the safetensors format \(none at all\)")


def test_pickled_weights_are_never_loaded(copy):
    weights = copy / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    fails(copy, r"text_encoder has no weights .*only as pickles, which are never loaded")


def test_a_missing_component(copy):
    shutil.rmtree(copy / "vae")
    fails(copy, "lacks the folder vae")


def test_weights_that_git_did_not_fetch(copy):
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    )
    fails(copy, "Git LFS pointer.*git lfs pull")


def test_torn_weights(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails(copy, "cannot be loaded as StableDiffusionPipeline")


def test_variants(copy):
    for weights in copy.rglob("*.safetensors"):
        weights.rename(weights.with_name(f"{weights.stem}.fp16.safetensors"))
    fails(copy, "only in the variant fp16: set model.variant=fp16")
    assert load(copy, variant="fp16").draw(["a fox"], [1])[0].size == (32, 32)


def test_without_transformers(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    fails(copy, r"pip install 'dd3g\[data\]'")


def test_without_sentencepiece(folders, monkeypatch, tmp_path):
    folder = shutil.copytree(folders["pixart_sigma"], tmp_path / "copy")
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    fails(folder, "tokenizer needs sentencepiece to be read: pip install sentencepiece protobuf")


# --- licence -----------------------------------------------------------------------------------------------


def test_the_config_overrides_the_licence(folders):
    assert load(folders["stable_diffusion"], licence="my own").licence == "my own"


@pytest.mark.parametrize("card", [None, "# no front matter", "---\ntags: [x]\n---\n", "---\n: : :\n---\n"])
def test_an_unknown_licence_is_recorded_with_a_warning(copy, card):
    (copy / "README.md").unlink()
    if card is not None:
        (copy / "README.md").write_text(card)
    with pytest.warns(UserWarning, match="licence of copy is unknown.*set model.licence"):
        assert load(copy).licence == "unknown"


# --- the hub -----------------------------------------------------------------------------------------------


ANSWER = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    "error, message",
    [
        (
            errors.GatedRepoError("gated", response=ANSWER),
            "is gated: accept its licence.*hf auth login",
        ),
        (errors.RepositoryNotFoundError("no", response=ANSWER), "the hub has no model some/model"),
        (errors.RevisionNotFoundError("no", response=ANSWER), "has no revision 'v9'"),
        (errors.RemoteEntryNotFoundError("no", response=ANSWER), "it is not a diffusers pipeline"),
        (
            ConnectionError("connection refused"),
            r"not be had from the hub \(connection refused\).*network",
        ),
        (OSError(28, "No space left on device"), "could not be stored in the hub's cache: No space left"),
    ],
)
def test_what_the_hub_answers(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    fails("some/model", message, revision="v9")


def test_a_machine_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    fails("some/model", "some/model could not be had from the hub.*or give the folder")


def test_a_model_of_the_hub_is_named_with_its_commit(copy, monkeypatch, tmp_path):
    snapshot = copy.rename(tmp_path / "0123456789abcdef")
    asked = []

    def download(repo, filename=None, **keys):
        asked.append((repo, filename, keys.get("revision"), keys.get("use_safetensors")))
        return str(snapshot / filename if filename else snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    config = ModelConfig(path="some/model", revision="v1")
    assert find_folder(config) == (snapshot, "some/model@01234567")
    assert asked == [
        ("some/model", INDEX, "v1", None),
        ("some/model", "README.md", "v1", None),
        ("some/model", None, "v1", True),
    ]
    asked.clear()
    edit(snapshot, lambda index: index.update(_class_name="StableDiffusionImg2ImgPipeline"))
    with pytest.raises(UserError, match="no text-to-image pipeline"):
        find_folder(config)
    assert [name for _, name, *_ in asked] == [INDEX]  # no gigabytes for a model that will not do


# --- the shipped configs -----------------------------------------------------------------------------------

SHIPPED = {
    "sd15": diffusers.StableDiffusionPipeline,
    "sd21": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sdxl_turbo": diffusers.StableDiffusionXLPipeline,
    "pixart": diffusers.PixArtSigmaPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
    "flux": diffusers.FluxPipeline,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_suit_the_pipelines_they_are_for(name, tmp_path):
    file = Path(__file__).parents[2] / "configs" / "data_gen" / f"{name}.yaml"
    config = ModelConfig(**OmegaConf.to_container(OmegaConf.load(file).model))
    arguments = pipelines.call_arguments(pipeline_class(SHIPPED[name].__name__), config)
    assert arguments["num_inference_steps"] == config.steps > 0
    assert arguments["height"] == arguments["width"] >= 512
    assert ("negative_prompt" in arguments) == (config.guidance > 1)
    if config.scheduler:
        index = {"scheduler": ["diffusers", "DDIMScheduler"]}
        diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "scheduler")
        scheduler = pipelines.make_scheduler(tmp_path, index, config)
        assert type(scheduler).__name__ == config.scheduler
        assert scheduler.config.beta_schedule == "scaled_linear"
