"""Scores by trained networks, each only when its weights are configured: CLIP, aesthetic, safety.

Weights are read from this machine and from safetensors alone; nothing is fetched, nothing is unpickled.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear, normalize

from data_gen.filters.rules import FilterConfig
from dd3g.errors import UserError, first_line
from dd3g.nn.clip_vision import MEAN, STD

WEIGHTS = ".safetensors"


class LearnedScores:
    """Scores of batches of pictures over white.

    `clip` is the cosine of picture and text, `aesthetic` what the head says of the picture's normalised CLIP
    features, `unsafe` 0 or 1 by a safety checker or 0..1 by a head.

    Args:
        config: `clip`, `aesthetic` and `safety` name the weights; "" leaves a score out.
        device: where the networks run.

    Raises:
        UserError: when weights are missing, damaged, no safetensors, or of another kind.
    """

    def __init__(self, config: FilterConfig, device: torch.device) -> None:
        self.device = device
        self.clip = _Clip(config.clip, device) if config.clip else None
        self.aesthetic = _head(config.aesthetic, self.clip, device) if config.aesthetic else None
        self.head = self.checker = None
        if config.safety.endswith(WEIGHTS):
            self.head = _head(config.safety, self.clip, device)
        elif config.safety:
            from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

            what = "a safety checker of diffusers"
            self.checker = _load(StableDiffusionSafetyChecker, config.safety, "safety", what).to(device)

    @torch.no_grad()
    def __call__(self, pictures: list[NDArray[np.uint8]], texts: list[str]) -> list[dict[str, float]]:
        """Scores of a batch.

        Args:
            pictures: each (S, S, 4) uint8, straight alpha.
            texts: the prompts; a picture without one has no clip score.

        Returns:
            One dictionary a picture, to be merged with those of `data_gen.filters.rules.measure`.
        """
        if not pictures:
            return []
        found: dict[str, Tensor] = {}
        if self.clip:
            features = normalize(self.clip.pictures(pictures), dim=-1)  # (B, D)
            found["clip"] = cosine_similarity(features, self.clip.texts(texts))
            if self.aesthetic:
                found["aesthetic"] = _apply(self.aesthetic, features)
            if self.head:
                found["unsafe"] = _apply(self.head, features).sigmoid()
        if self.checker:
            side = self.checker.config.vision_config.image_size
            seen = _over_white(pictures, side).to(self.device)
            found["unsafe"] = self.checker.forward_onnx(seen, seen.new_zeros(len(seen)))[1].float()
        columns = {name: values.float().cpu().tolist() for name, values in found.items()}
        return [
            {k: round(v[i], 4) for k, v in columns.items() if text or k != "clip"}
            for i, text in enumerate(texts)
        ]


class _Clip:
    def __init__(self, folder: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.folder, self.device = folder, device
        self.model = _load(CLIPModel, folder, "clip", "a CLIP model of transformers").to(device)
        self.width = int(self.model.config.projection_dim)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            # Without its files the library makes one that knows no words.
            if len(self.tokenizer) < 3:
                raise ValueError("it knows no words")
        except Exception as error:  # of any type, from files of any kind
            raise UserError(
                f"clip {folder}: its tokenizer cannot be read ({first_line(error)}): copy vocab.json and "
                "merges.txt, or tokenizer.json, beside the weights"
            ) from error

    def pictures(self, pictures: list[NDArray[np.uint8]]) -> Tensor:
        """(B, D) features."""
        seen = _over_white(pictures, self.model.config.vision_config.image_size)
        return self.model.visual_projection(self.model.vision_model(seen.to(self.device)).pooler_output)

    def texts(self, texts: list[str]) -> Tensor:
        """(B, D) features; what is beyond the model's longest text is cut off."""
        longest = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        found = self.model.text_model(words["input_ids"], attention_mask=words["attention_mask"])
        return self.model.text_projection(found.pooler_output)


def _over_white(pictures: list[NDArray[np.uint8]], side: int) -> Tensor:
    """(B, 3, side, side), normalised as CLIP wants it."""
    seen = []
    for rgba in pictures:
        image = Image.fromarray(rgba)
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        seen.append(np.asarray(white.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)))
    pixels = torch.from_numpy(np.stack(seen)).movedim(-1, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _load(kind: Any, folder: str, key: str, what: str) -> Any:
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{key} {folder} is not a folder with a config.json: give the folder of {what}")
    if not any(path.glob(f"*{WEIGHTS}")):
        raise UserError(
            f"{key} {folder} holds no {WEIGHTS} weights; other formats can run code and are not read: get "
            "the model's safetensors"
        )
    try:
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the loaders raise nearly every type on damaged files
        raise UserError(f"{key} {folder} cannot be loaded ({first_line(error)}): give {what}") from error
    # Otherwise parts of another kind of model would run with random weights.
    if lacking := sorted(info["missing_keys"]) + [str(k) for k in info.get("mismatched_keys", [])]:
        raise UserError(f"{key} {folder} is not {what}: its weights lack {lacking[0]}")
    return model.eval()


def _head(path: str, clip: _Clip | None, device: torch.device) -> list[tuple[Tensor, Tensor | None]]:
    """Linear layers of a head on CLIP features, in the order of the numbers in their names.

    The published aesthetic predictors have no activations between their layers.
    """
    from safetensors.torch import load_file

    if clip is None:
        raise UserError(f"{path} works on CLIP features: set filters.clip as well")
    if not path.endswith(WEIGHTS) or not Path(path).is_file():
        raise UserError(
            f"{path} is missing or not a {WEIGHTS} file: give the weights of a head on CLIP features"
        )
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors has its own type
        raise UserError(f"{path} cannot be read ({first_line(error)}): copy it again") from error
    names = sorted((k for k in weights if k.endswith("weight")), key=_numbers)
    layers = [(weights[k].float(), weights.get(k.removesuffix("weight") + "bias")) for k in names]
    shapes = [tuple(w.shape) for w, _ in layers]
    fits = all(len(s) == 2 for s in shapes) and all(a[0] == b[1] for a, b in pairwise(shapes))
    if not shapes or not fits or shapes[0][1] != clip.width or shapes[-1][0] != 1:
        raise UserError(
            f"{path} holds layers of shapes {shapes}, which do not lead from {clip.width} CLIP features to "
            f"one score: take the head that was trained on features of {clip.folder}"
        )
    return [(w.to(device), None if b is None else b.float().to(device)) for w, b in layers]


def _apply(layers: list[tuple[Tensor, Tensor | None]], features: Tensor) -> Tensor:
    """(B, D) -> (B,)."""
    for weight, bias in layers:
        features = linear(features, weight, bias)
    return features[:, 0]


def _numbers(name: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", name)]
