"""What latent teachers see: tokens of captions, and pictures as CLIP and the VAE take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dd3g.command.progress import quiet_libraries
from dd3g.errors import UserError, first_line
from dd3g.hub_models import is_whole
from dd3g.nn.clip_vision import MEAN, STD
from distill.teachers.published import AGAIN, read_json

START, END, PADDING, LENGTH = 49406, 49407, 0, 77  # of Stable Diffusion 2's token ids; padding is "!"

Kernel = Callable[[Tensor], Tensor]  # distance in pixels -> share


class TextEncoder(nn.Module):
    """Captions -> the text encoder's last tokens, its final norm included; padding is not masked.

    Args:
        encoder: transformers' CLIPTextModel.
        tokenizer: texts -> lists of ids with start and end; None knows the empty caption alone.
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
