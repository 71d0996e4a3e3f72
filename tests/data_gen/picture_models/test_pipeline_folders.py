from __future__ import annotations

import json
import re
import shutil
import sys
from types import SimpleNamespace

import diffusers
import huggingface_hub
import pytest
from huggingface_hub import errors
from stand_ins.tiny_pipelines import fails, load

from data_gen.picture_models.pipeline_folders import INDEX, find_folder, pipeline_class
from data_gen.picture_models.protocol import ModelConfig
from dd3g.errors import UserError
from dd3g.fingerprint import folder_fingerprint


def edit(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


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
    monkeypatch.setattr("dd3g.fingerprint._PIECES", 4)
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


# --- folders that will not do ------------------------------------------------------------------------------


def test_a_missing_folder_is_no_hub_id(tmp_path):
    fails(tmp_path / "nowhere", "no folder .*nowhere, and it is not a hub id")


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
    fails(copy, "unet/diffusion_pytorch_model.safetensors is damaged or cut short: copy or download it again")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text_encoder/config.json", "text_encoder/config.json is missing"),
        (
            "tokenizer/tokenizer.json",
            "tokenizer holds no vocabulary .tokenizer.json, or vocab.json and merges.txt",
        ),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
    ],
)
def test_a_file_beside_the_weights(copy, name, message):
    """transformers would take its own numbers in place of the first, and draw words it does not know."""
    content = (copy / name).read_text()
    (copy / name).unlink()
    fails(copy, message)
    (copy / name).write_text(content[:-20])
    fails(copy, f"{name} is damaged or cut short: copy or download it again")


def test_variants(copy):
    for weights in copy.rglob("*.safetensors"):
        weights.rename(weights.with_name(f"{weights.stem}.fp16.safetensors"))
    fails(copy, "only in the variant fp16: set model.variant=fp16")
    assert load(copy, variant="fp16").draw(["a fox"], [1])[0].size == (32, 32)


def test_what_a_mac_leaves_beside_a_copy_is_not_looked_at(copy):
    name = find_folder(ModelConfig(path=str(copy)))[1]
    for file in [*copy.rglob("*.safetensors"), *copy.rglob("*.json")]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    assert find_folder(ModelConfig(path=str(copy)))[1] == name
    assert load(copy).draw(["a fox"], [1])[0].size == (32, 32)


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
            r"not be fetched from the hub \(connection refused\).*network",
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
    fails(
        "some/model",
        "some/model is not whole on this machine.* HF_HUB_OFFLINE forbids fetching it: unset it once, ",
    )


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
    with pytest.raises(UserError, match="not a text-to-image pipeline"):
        find_folder(config)
    assert [name for _, name, *_ in asked] == [INDEX]  # no gigabytes for a model that will not do
