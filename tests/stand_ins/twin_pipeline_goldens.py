"""The pipelines' arrays by the plain twins and the libraries' encoders, named as in the authors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from stand_ins import plain_mvdream, plain_zero123plus
from stand_ins.twin_unet_golden import cameras, drawn
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModel, CLIPVisionModelWithProjection

from tools.goldens import made_up

# Token ids of the authors' captions, and of none.
CAPTION = [49406, 320, 5988, 8797, 267, 274, 323, 13039, 49407]
NEGATIVE = [49406, 8159, 267, 21977, 49407]
EMPTY = [49406, 49407]
# Guidance, elevation, ids of the negative and of the caption.
LOOPS = {
    "a": (5.0, 0.0, EMPTY, EMPTY),
    "b": (5.0, 5.0, EMPTY, EMPTY),
    "c": (7.5, 0.0, NEGATIVE, CAPTION),
    "t": (7.5, 15.0, NEGATIVE, CAPTION),
}
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def padded(ids: list[int]) -> list[int]:
    return ids + [0] * (77 - len(ids))


def unet_of(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "unet/config.json").read_text())
    state = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    return config, {k: v.double() for k, v in state.items()}


def as_pixels(picture: Image.Image, side: int, resample: int, mean: Any, std: Any) -> Tensor:
    """(1, 3, side, side) of a square picture, by Pillow."""
    shades = torch.from_numpy(np.array(picture.resize((side, side), resample), np.float32)) / 255
    return ((shades - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None].contiguous()


def mvdream_arrays(
    folder: Path, loop: str, seed: int, views: int, steps: int, side: int
) -> dict[str, Tensor]:
    """One loop of `pipeline_mvdream.npz`, and what the network is given, by the teacher of a folder."""
    guidance, elevation, negative, caption = LOOPS[loop]
    config, w = unet_of(folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    texts = encoder(torch.tensor([padded(negative), padded(caption)])).last_hidden_state.double()
    found, clip, latent = {}, None, None
    if config.get("ip_dim"):
        picture = made_up.picture("picture", 200, 200, seed)
        cut = Image.fromarray((255 * picture).astype(np.uint8))  # the authors cut off
        vision = CLIPVisionModel.from_pretrained(folder / "image_encoder")
        pixels = as_pixels(cut, vision.config.image_size, Image.Resampling.BICUBIC, *CLIP)
        clip = vision(pixels, output_hidden_states=True).hidden_states[-2].double()
        size = side * 2 ** (len(vae.config.block_out_channels) - 1)
        rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
        rgb = 2 * F.interpolate(rgb, (size, size), mode="bilinear") - 1
        latent = vae.encode(rgb).latent_dist.mode().double() * vae.config.scaling_factor
        found = {"picture": rgb.new_tensor(picture[::20, ::20]), "clip_pixels": pixels[..., ::4, ::4]}
        found |= {"image_tokens": clip[0, ::8, ::8], "image_latent": latent}
    frames = views + (clip is not None)
    noise = drawn(f"noise.{loop}", (frames, 4, side, side), seed)[:views]
    codes = cameras(views, elevation)
    guide = plain_mvdream.guided(w, texts, codes, guidance, config["num_head_channels"], clip, latent)
    walk = plain_mvdream.ddim(guide, noise, steps)
    decoded = vae.decode(walk[-1][1].float() / vae.config.scaling_factor).sample
    found[f"{loop}.timesteps"] = torch.tensor([t for t, _ in walk])
    found[f"{loop}.latents"] = torch.stack([x for _, x in walk])
    found[f"{loop}.images"] = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)[:, ::8, ::8]
    return found


def zero123plus_arrays(
    folder: Path, about: dict[str, Any], rgba: np.ndarray, seed: int, steps: int, loops: tuple[str, ...]
) -> dict[str, Tensor]:
    """`zero123pp.npz` of a picture (S, S, 4) by the teacher of a folder: its call, and some of its loops."""
    sizes, config = about["configs"]["sizes"], about["configs"]["unet"]
    _, w = unet_of(folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "vision_encoder")
    ground = Image.new("RGB", rgba.shape[1::-1], (127, 127, 127))
    ground.paste(Image.fromarray(rgba[..., :3]), mask=Image.fromarray(rgba[..., 3]))
    seen = as_pixels(ground, sizes["cond"], Image.Resampling.BILINEAR, [0.5] * 3, [0.8] * 3)
    embeds = vision(as_pixels(ground, sizes["clip"], Image.Resampling.BICUBIC, *CLIP)).image_embeds.double()
    condition = torch.cat([vae.encode(x).latent_dist.mode() for x in (seen * 0, seen)]).double()
    empty = encoder(torch.tensor([padded(EMPTY)])).last_hidden_state.double()
    text = plain_zero123plus.ramped(empty, embeds, about["configs"]["ramping_coefficients"])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = (side // factor for side in sizes["canvas_hw"])
    noise = drawn("znoise", (1, 4, height, width), seed)

    def call(x: Tensor, t: int, reference: str) -> Tensor:
        """Both halves, or for a single x the one with the picture."""
        n, heads = len(x), config["attention_head_dim"]
        ref = drawn(reference, (n, *condition.shape[1:]), seed)
        return plain_zero123plus.call(w, x, t, text[-n:], condition[-n:], ref, heads)

    def guided(x: Tensor, t: int, reference: str) -> Tensor:
        without, with_picture = call(x.repeat(2, 1, 1, 1), t, reference).split(1)
        return without + 4.0 * (with_picture - without)

    def same(k: int, x: Tensor, t: int) -> Tensor:
        return guided(x, t, "ref")

    draws = [drawn(f"anc.{k}", tuple(noise.shape), seed) for k in range(steps)]
    ddim, euler = plain_zero123plus.ddim, plain_zero123plus.euler
    walks = {
        "ddim": lambda: ddim(same, noise, steps, to_one=False),
        "ddim_one": lambda: ddim(same, noise, steps, to_one=True),
        "euler": lambda: euler(same, noise, steps),
        "ancestral": lambda: euler(lambda k, x, t: guided(x, t, f"ref.{k}"), noise, steps, draws),
        "ancestral_plain": lambda: euler(lambda k, x, t: call(x, t, f"ref.{k}"), noise, steps, draws),
    }
    found = {
        "input_rgba": torch.from_numpy(rgba),
        "cond_lat": condition,
        "image_embeds": embeds,
        "prompt_embeds": text[:, ::8],
        "call.out": call(noise.repeat(2, 1, 1, 1), 500, "ref"),
    }
    for loop in loops:
        states = walks[loop]()
        rgb = vae.decode(plain_zero123plus.to_vae(states[-1]).float()).sample / 0.625
        found[f"{loop}.latents"] = torch.cat(states)
        found[f"{loop}.timesteps"] = torch.tensor(plain_zero123plus.trailing(steps))
        found[f"{loop}.canvas"] = (rgb / 2 + 0.5).clamp(0, 1)[..., ::8, ::8]
    return found
