"""Tiny teachers with made-up weights, in the layout that the real ones are published in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from stand_ins.tiny_pipelines import clip_tokenizer

from dd3g.nn.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from tools.goldens.pipeline import SCHEDULER, write_folder, write_scheduler

UNET = {
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [1, 2],
    "num_head_channels": 16,
    "context_dim": 32,
    "ip_dim": 4,
    "image_size": 8,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 32,
    "hidden_act": "gelu",
}
IMAGE = {
    "image_size": 28,
    "patch_size": 14,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
    "hidden_act": "gelu",
}
VAE = {
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "sample_size": 16,
    "scaling_factor": 0.18215,
}
CANVAS_UNET = {
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 2],
    "cross_attention_dim": 32,
    "use_linear_projection": True,
    "in_channels": 4,
    "out_channels": 4,
}


def write_imagedream(
    folder: Path, seed: int = 1, licence: str = "openrail", levels: int = 2, **unet: Any
) -> Path:
    """An ImageDream; with `ip_dim=0` an MVDream. Its VAE has `levels`, 4 in the published ones."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = UNET | unet
    with torch.device("meta"):
        network = MultiViewUNet(MultiViewUNetConfig(**config, image_dim=IMAGE["hidden_size"]))
        encoder = CLIPVisionModel(CLIPVisionConfig(**IMAGE))
    configs, shapes = _shared(config, network, levels)
    if config["ip_dim"]:
        configs["image_encoder"], shapes["image_encoder"] = IMAGE, shapes_of(encoder, "vision_model.")
    write_folder(folder, configs, shapes, seed)
    write_scheduler(folder, SCHEDULER)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return folder


def write_zero123plus(folder: Path, seed: int = 1, levels: int = 2) -> Path:
    """A Zero123++ with views of 16 pixels. Its VAE has `levels`, 4 in the published ones."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        network = UNet2DConditionModel(**CANVAS_UNET)
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE))
    configs, shapes = _shared(CANVAS_UNET, network, levels)
    configs["vision_encoder"], shapes["vision_encoder"] = IMAGE, shapes_of(encoder)
    write_folder(folder, configs, shapes, seed)
    levels = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    write_scheduler(folder, levels | {"prediction_type": "v_prediction", "timestep_spacing": "linspace"})
    for part, size in (("feature_extractor_vae", 16), ("feature_extractor_clip", 28)):
        (folder / part).mkdir()
        crop = {"crop_size": {"height": size, "width": size}}
        (folder / part / "preprocessor_config.json").write_text(json.dumps(crop))
    index = {"ramping_coefficients": [i / 76 for i in range(77)]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def shapes_of(network: torch.nn.Module, prefix: str = "") -> dict[str, list[int]]:
    """Name -> shape of each tensor, as in a published file."""
    return {prefix + name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def _shared(
    unet: dict[str, Any], network: torch.nn.Module, levels: int = 2
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs and shapes of what all of them have."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    vae_config = VAE | {
        "block_out_channels": [32] * levels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_config)
        text = CLIPTextModel(CLIPTextConfig(**TEXT))
    configs = {"unet": unet, "vae": vae_config, "text_encoder": TEXT}
    text_shapes = {k: v for k, v in shapes_of(text, "text_model.").items() if "position_ids" not in k}
    return configs, {"unet": shapes_of(network), "vae": shapes_of(vae), "text_encoder": text_shapes}


def pictures(count, size, seed=0):
    rgba = torch.rand(count, 4, size, size, generator=torch.Generator().manual_seed(seed))
    return (rgba * 255).round() / 255


def with_tokenizer(folder, tmp_path, in_one_file=False):
    """A copy of a folder whose tokenizer lies in the two files of the hub's, or in one."""
    copy = shutil.copytree(folder, tmp_path / "whole" / folder.name)
    made = clip_tokenizer()
    made.save_pretrained(copy / "tokenizer")
    if not in_one_file:
        words = json.loads((copy / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
        (copy / "tokenizer/tokenizer.json").unlink()
        (copy / "tokenizer/vocab.json").write_text(json.dumps(words))
        (copy / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    return copy
