"""Learned scores with networks of random weights in the real classes, and every kind of wrong folder."""

import json

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from stand_ins.made_up_dataset import dataset_spec
from stand_ins.tiny_pipelines import clip_tokenizer

from data_gen.filters.learned_scores import LearnedScores
from data_gen.filters.rules import FilterConfig, judge
from data_gen.shards.dataset import PictureBackend
from data_gen.shards.generate import _with_learned_scores
from data_gen.shards.process_group import ProcessGroup
from dd3g.errors import UserError

WIDTH = 12
TEXTS = ["a red cup", "an old wooden chair, with four legs", "x" * 500]


def config() -> transformers.CLIPConfig:
    layer = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.CLIPConfig(
        text_config=layer | {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config=layer | {"image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    transformers.CLIPModel(config()).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures():
    found = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 4), dtype=np.uint8)
    found[0, ..., 3] = 0
    return list(found)


@torch.no_grad()
def features(clip, pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Of pictures and texts, by the library's own preprocessing."""
    model = transformers.CLIPModel.from_pretrained(clip)
    process = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    alpha = np.stack(pictures)[..., 3:] / 255
    over_white = np.rint(np.stack(pictures)[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels = process([Image.fromarray(p) for p in over_white], return_tensors="pt")["pixel_values"]
    words = clip_tokenizer()(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    seen, read = model.get_image_features(pixel_values=pixels), model.get_text_features(**words)
    return getattr(seen, "pooler_output", seen), getattr(read, "pooler_output", read)


def load_learned_scores(config, device="cpu"):
    return LearnedScores(config, torch.device(device))


def test_nothing_is_loaded_when_nothing_is_configured(tmp_path):
    spec, backend = dataset_spec(tmp_path), PictureBackend(None, None, {})
    assert _with_learned_scores(spec, ProcessGroup(), backend) is backend


def test_clip_score_is_the_cosine_of_the_librarys_features(clip, pictures):
    scores = load_learned_scores(FilterConfig(clip=str(clip)))(pictures, TEXTS)
    seen, read = features(clip, pictures)
    expected = torch.cosine_similarity(seen, read)
    assert [list(s) for s in scores] == [["clip"]] * 3
    assert np.allclose([s["clip"] for s in scores], expected, atol=2e-3)
    assert expected.std() > 0.01
    assert load_learned_scores(FilterConfig(clip=str(clip)))([], []) == []
    wordless = load_learned_scores(FilterConfig(clip=str(clip)))(pictures, [TEXTS[0], "", TEXTS[2]])
    assert wordless == [scores[0], {}, scores[2]]


def test_heads_score_the_normalised_features(clip, pictures, tmp_path):
    torch.manual_seed(1)
    weights = {f"layers.{n}.weight": torch.randn(s) for n, s in ((0, (5, WIDTH)), (2, (3, 5)), (10, (1, 3)))}
    weights |= {"layers.0.bias": torch.randn(5), "layers.10.bias": torch.tensor([5.0])}
    save_file(weights, tmp_path / "aesthetic.safetensors")
    save_file({"weight": torch.ones(1, WIDTH)}, tmp_path / "safety.safetensors")
    options = FilterConfig(
        clip=str(clip),
        aesthetic=str(tmp_path / "aesthetic.safetensors"),
        safety=str(tmp_path / "safety.safetensors"),
    )
    scores = load_learned_scores(options)(pictures, TEXTS)
    seen = torch.nn.functional.normalize(features(clip, pictures)[0], dim=-1)
    hidden = seen @ weights["layers.0.weight"].T + weights["layers.0.bias"]
    expected = (hidden @ weights["layers.2.weight"].T @ weights["layers.10.weight"].T)[:, 0] + 5
    assert np.allclose([s["aesthetic"] for s in scores], expected, atol=0.02)
    assert np.allclose([s["unsafe"] for s in scores], seen.sum(1).sigmoid(), atol=2e-3)


@pytest.mark.parametrize(("threshold", "unsafe"), [(-1.1, 1.0), (1.1, 0.0)])
def test_safety_checker_rejects_what_is_near_its_concepts(pictures, tmp_path, threshold, unsafe):
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config())
    checker.concept_embeds_weights.fill_(threshold)
    checker.save_pretrained(tmp_path)
    options = FilterConfig(safety=str(tmp_path))
    scores = load_learned_scores(options)(pictures, TEXTS)
    assert scores == [{"unsafe": unsafe}] * 3
    assert judge(scores[0], options) == ("unsafe" if unsafe else "")


def test_a_safety_checker_gets_all_on_its_device(pictures, tmp_path, monkeypatch):
    """It blackens what it rejects, and refuses pictures on another device than its findings."""
    StableDiffusionSafetyChecker(config()).save_pretrained(tmp_path)

    def checked(self, clip_input, images):
        assert clip_input.is_meta and images.is_meta and len(images) == 3
        return images, torch.zeros(3, dtype=torch.bool)

    monkeypatch.setattr(StableDiffusionSafetyChecker, "forward_onnx", checked)
    found = load_learned_scores(FilterConfig(safety=str(tmp_path)), "meta")(pictures, TEXTS)
    assert found == [{"unsafe": 0.0}] * 3


def refused(words: str, **options: str) -> None:
    with pytest.raises(UserError, match=words):
        load_learned_scores(FilterConfig(**options))


@pytest.mark.slow
def test_missing_and_foreign_weights_are_refused(clip, tmp_path):
    refused("is not a folder with a config.json", clip=str(tmp_path / "nowhere"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((clip / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    refused("other formats can run code", clip=str(pickled))
    vision = tmp_path / "vision"
    transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**config().vision_config.to_dict() | {"projection_dim": WIDTH})
    ).save_pretrained(vision)
    refused("is not a CLIP model of transformers: its weights lack|cannot be loaded", clip=str(vision))
    refused("is not a safety checker of diffusers: its weights lack", safety=str(clip))


def test_damaged_weights_and_a_missing_tokenizer_are_refused(clip, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((clip / "config.json").read_text())
    (damaged / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes()[:999])
    refused("cannot be loaded", clip=str(damaged))
    (damaged / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    refused("its tokenizer cannot be read", clip=str(damaged))
    (damaged / "config.json").write_text(json.dumps({"model_type": "clip"})[:-3])
    refused("cannot be loaded", clip=str(damaged))


def test_heads_that_do_not_fit_are_refused(clip, tmp_path):
    refused("is missing", clip=str(clip), aesthetic=str(tmp_path / "none.safetensors"))
    save_file({"weight": torch.ones(1, 768)}, tmp_path / "head.safetensors")
    refused(
        r"shapes \[\(1, 768\)\].*12 CLIP features",
        clip=str(clip),
        aesthetic=str(tmp_path / "head.safetensors"),
    )
    (tmp_path / "torn.safetensors").write_bytes(b"123")
    refused("cannot be read", clip=str(clip), aesthetic=str(tmp_path / "torn.safetensors"))
