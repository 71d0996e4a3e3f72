"""What latent teachers have in common: the VAE as a codec, and what their encoders see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.command.progress import quiet_libraries
from dd3g.errors import UserError, first_line
from dd3g.hub_models import is_whole
from dd3g.nn.clip_vision import MEAN, STD
from distill.pictures import on_white
from distill.teachers.protocol import Teacher
from distill.teachers.published import AGAIN, read_json

T = TypeVar("T")

AT_ONCE = 16  # pictures that the VAE sees in one call; memory, not results, depends on it
START, END, PADDING, LENGTH = 49406, 49407, 0, 77  # of Stable Diffusion 2's token ids; padding is "!"

Kernel = Callable[[Tensor], Tensor]  # distance in pixels -> share


class LatentCodec(nn.Module):
    """Pictures on white <-> latents of a side: an AutoencoderKL's mode, scaled; nothing is drawn."""

    def __init__(self, vae: Any, side: int) -> None:
        super().__init__()
        self.vae = vae
        self.size = side * self.factor
        self.scale: float = vae.config.scaling_factor

    @property
    def factor(self) -> int:
        """Side of a picture by that of its latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, rgba: Tensor) -> Tensor:
        """Straight RGBA, or RGB, (..., 4 or 3, S, S) in 0..1 -> (..., C, h, w) float32."""
        batch = on_white(rgba)
        batch = batch.reshape(-1, *batch.shape[-3:])
        if batch.shape[-2:] != (self.size, self.size):
            # Without antialiasing, as the authors do.
            batch = F.interpolate(batch, (self.size, self.size), mode="bilinear", align_corners=False)
        latent = self.mode(2 * batch - 1) * self.scale
        return latent.reshape(*rgba.shape[:-3], *latent.shape[1:])

    def decode(self, latent: Tensor) -> Tensor:
        """(..., C, h, w) -> RGB (..., 3, S, S) in 0..1."""
        rgb = self.picture(latent.reshape(-1, *latent.shape[-3:]) / self.scale)
        return (rgb / 2 + 0.5).clamp(0, 1).reshape(*latent.shape[:-3], *rgb.shape[1:])

    def mode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in -1..1 -> the posterior's mode (N, C, h, w) float32, not scaled."""
        parts = pixels.to(self.vae.dtype).contiguous().split(AT_ONCE)
        return torch.cat([self.vae.encode(part).latent_dist.mode() for part in parts]).float()

    def picture(self, latent: Tensor) -> Tensor:
        """The inverse of `mode`: (N, C, h, w) -> (N, 3, H, W) about -1..1, float32."""
        parts = latent.to(self.vae.dtype).contiguous().split(AT_ONCE)
        return torch.cat([self.vae.decode(part).sample for part in parts]).float()


class LatentTeacher(Teacher):
    """Latent diffusion as published; it only answers: no gradients of its weights, never in training mode."""

    unet: Any  # the network
    codec: LatentCodec  # the VAE
    text: TextEncoder  # of captions
    image: Any  # transformers' CLIP vision model, for one that sees the picture
    identity: str  # hash of the weights
    draws_alpha = False
    default_steps = 50

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.unet.parameters()).device

    def caption(self, words: str = "") -> Tensor:
        """(1, 77, D) tokens of a caption that many pictures share."""
        return self.once(f"caption {words}", lambda: self.text([words]))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What follows from the weights alone: made at the first call, and again when they have moved."""
        kept = self.__dict__.setdefault("_kept", {})
        if name not in kept:
            with torch.inference_mode(False), torch.no_grad():  # a later call may want gradients through it
                kept[name] = make()
        return kept[name]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop("_kept", None)
        return super()._apply(*args, **kwargs)


class TextEncoder(nn.Module):
    """Captions -> the last tokens of a CLIPTextModel, its final norm included; padding is not masked.

    Without a tokenizer, which gives ids with start and end, it knows the empty caption alone.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Callable[[str], list[int]] | None = None) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer

    def ids(self, captions: Sequence[str]) -> Tensor:
        """(N, 77) token ids; a caption that is too long is cut.

        Raises:
            UserError: for a caption where there is no tokenizer.
        """
        rows = []
        for caption in captions:
            if not caption:
                row = [START, END]
            elif self.tokenizer is None:
                raise UserError(
                    "this teacher's folder has no tokenizer, so it takes no captions: copy it whole"
                )
            else:
                row = self.tokenizer(caption)
            row = row if len(row) <= LENGTH else [*row[: LENGTH - 1], END]
            rows.append(row + [PADDING] * (LENGTH - len(row)))
        return torch.tensor(rows)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """(N, 77, D) tokens."""
        device = next(self.encoder.parameters()).device
        return self.encoder(input_ids=self.ids(captions).to(device)).last_hidden_state


def load_tokenizer(folder: Path) -> Callable[[str], list[int]] | None:
    """The tokenizer of a part's folder; None where there is no such folder.

    Raises:
        UserError: when a file of it is missing or damaged.
    """
    if not folder.is_dir():
        return None
    from transformers import CLIPTokenizer

    # In one file or in two; without its words transformers would make a tokenizer that knows none.
    names = ["tokenizer.json"] if (folder / "tokenizer.json").exists() else ["vocab.json", "merges.txt"]
    for path in (folder / name for name in names):
        if not is_whole(path):
            state = "is damaged" if path.exists() else "is missing"
            raise UserError(f"{path} {state}: {AGAIN}")
    try:
        with quiet_libraries():
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of json, and of the library for files that are missing
        raise UserError(f"{folder} cannot be read as a tokenizer ({first_line(error)}): {AGAIN}") from error
    return lambda text: tokenizer(text, verbose=False)["input_ids"]  # too long ones are cut, see `ids`


def levels(pictures: Tensor, truncate: bool) -> Tensor:
    """Pictures in 0..1 -> 8-bit levels 0..255 as float32, rounded or, as some authors do, cut off."""
    shades = pictures.detach().float().clamp(0, 1) * 255
    return shades.floor() if truncate else shades.round()


def clip_pixels(shades: Tensor, size: int) -> Tensor:
    """Levels (N, 3, H, W) -> (N, 3, size, size): short side resized, middle cut out, CLIP's mean and std."""
    return pixels(shades, size, bicubic, MEAN, STD)


def pixels(shades: Tensor, size: int, kernel: Kernel, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Levels (N, 3, H, W) -> (N, 3, size, size): what the authors' processors give, where levels are.

    Contiguous, since the CPU's group norm sums badly on other strides.
    """
    height, width = (size * side // min(shades.shape[-2:]) for side in shades.shape[-2:])
    top, left = (height - size) // 2, (width - size) // 2
    shades = resized(shades, height, width, kernel)[..., top : top + size, left : left + size] / 255
    channels = zip(shades.unbind(1), mean, std, strict=True)
    return torch.stack([(channel - m) / s for channel, m, s in channels], 1)


def resized(shades: Tensor, height: int, width: int, kernel: Kernel) -> Tensor:
    """Levels (..., H, W) -> (..., height, width) float32, exactly as Pillow resizes 8-bit pictures.

    Rows first, then columns, each in fixed point and rounded: sums of whole numbers, exact in float64.
    """
    for side in (width, height):
        if shades.shape[-1] != side:
            sums = shades.double() @ _weights(shades.shape[-1], side, kernel, shades.device)
            shades = (sums + 0.5).floor().clamp(0, 255).float()
        shades = shades.mT
    return shades


def bilinear(d: Tensor) -> Tensor:
    """Share of a pixel at distance `d` in new pixels."""
    return (1 - d).clamp(min=0)


def bicubic(d: Tensor) -> Tensor:
    """The same by Keys' cubics, a = -1/2, as in Pillow."""
    near, far = ((1.5 * d - 2.5) * d * d + 1), (((5 - d) * d - 8) * d + 4) / 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def _weights(before: int, after: int, kernel: Kernel, device: torch.device) -> Tensor:
    """(before, after) share of each old pixel in each new one, in 2^22ths, made on the device."""
    scale = before / after
    wide = max(scale, 1.0)  # the kernel's stretch: smaller pictures are smoothed
    old = torch.arange(before, device=device, dtype=torch.float64)[:, None]
    center = (torch.arange(after, device=device, dtype=torch.float64) + 0.5) * scale
    shares = kernel(((old - center + 0.5) / wide).abs())
    fixed = shares / shares.sum(0) * (1 << 22)
    return (fixed.abs() + 0.5).floor() * fixed.sign() / (1 << 22)


def crop_size(folder: Path, default: int) -> int:
    """Side in pixels that a folder's preprocessor_config.json asks for; `default` where there is none.

    Raises:
        UserError: when what it names is no side.
    """
    path = folder / "preprocessor_config.json"
    size = read_json(path).get("crop_size", default) if path.is_file() else default
    side = size.get("height") if isinstance(size, dict) else size
    if not isinstance(side, int) or side < 1:
        raise UserError(f"{path}: crop_size {size!r} is not a side in pixels: copy or fetch it again")
    return side
