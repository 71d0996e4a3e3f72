"""Pipelines of diffusers' own classes in sizes that draw in milliseconds, with random weights."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from data_gen.picture_models.pipelines import load_model
from data_gen.picture_models.protocol import ModelConfig
from dd3g.errors import UserError

CPU = torch.device("cpu")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
_WORDS = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(letter + "</w>" for letter in _LETTERS)]


def clip_tokenizer() -> transformers.CLIPTokenizer:
    vocabulary = {word: i for i, word in enumerate(_WORDS)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> transformers.T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *_LETTERS]
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    return transformers.T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=24)


def _clip(projection: int | None = None):
    config = transformers.CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=len(_WORDS),
        projection_dim=projection or 32,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def _t5():
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    return transformers.T5EncoderModel(config).eval()


def _vae(**keys):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **keys,
    )


def _noise_levels(kind=diffusers.DDIMScheduler):
    keys = {"clip_sample": False} if kind is diffusers.DDIMScheduler else {}
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **keys)


def _safety_checker():
    keys = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config=keys, vision_config={"image_size": 30, "patch_size": 6} | keys, projection_dim=32
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    # A cosine is above -1: whatever is drawn is flagged.
    checker.concept_embeds_weights.data.fill_(-2.0)
    return checker


def stable_diffusion(folder: Path, checked: bool = False) -> Path:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=_noise_levels(),
        safety_checker=_safety_checker() if checked else None,
        feature_extractor=transformers.CLIPImageProcessor(size=30, crop_size=30) if checked else None,
        requires_safety_checker=checked,
    )
    return _save(pipeline, folder, "license: creativeml-openrail-m")


def stable_diffusion_xl(folder: Path) -> Path:
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_clip(projection=32),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=_noise_levels(diffusers.EulerDiscreteScheduler),
    )
    return _save(pipeline, folder, "license: other\nlicense_name: sai-nc-community")


def pixart_sigma(folder: Path) -> Path:
    torch.manual_seed(2)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=_t5(),
        vae=_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return _save(pipeline, folder, "license: openrail++")


def stable_diffusion_3(folder: Path) -> Path:
    torch.manual_seed(3)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(projection=32),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_clip(projection=32),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=t5_tokenizer(),
    )
    return _save(pipeline, folder, "license: other\nlicense_name: stabilityai-ai-community")


def flux(folder: Path) -> Path:
    torch.manual_seed(4)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    pipeline = diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
    )
    return _save(pipeline, folder, "license: apache-2.0")


def _save(pipeline: diffusers.DiffusionPipeline, folder: Path, front_matter: str) -> Path:
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text(f"---\n{front_matter}\ntags:\n- text-to-image\n---\n# A tiny model\n")
    return folder


def load(folder, **keys):
    return load_model(ModelConfig(path=str(folder), **({"steps": 2} | keys)), CPU)


def fails(folder, message, **keys):
    with pytest.raises(UserError, match=message) as caught:
        load(folder, **keys)
    assert "\n" not in str(caught.value)
