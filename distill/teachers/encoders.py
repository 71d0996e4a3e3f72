"""What latent teachers see: tokens of captions, and pictures as CLIP and the VAE take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dd3g.errors import UserError
from dd3g.progress import quiet_libraries
from distill.teachers.published import read_json

START, END, PADDING, LENGTH = 49406, 49407, 0, 77  # of Stable Diffusion 2's token ids; padding is "!"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's pixels


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
    """The tokenizer of a part's folder; None where there is no such folder."""
    if not folder.is_dir():
        return None
    from transformers import CLIPTokenizer

    try:
        with quiet_libraries():
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of json, and of the library for files that are missing
        raise UserError(f"{folder} cannot be read as a tokenizer ({error}): copy it again") from error
    return lambda text: tokenizer(text)["input_ids"]


def clip_pixels(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """RGB pictures -> (N, 3, size, size): short side resized (bicubic), middle cut out, CLIP's levels."""
    return pixels(pictures, size, Image.Resampling.BICUBIC, MEAN, STD)


def pixels(
    pictures: Sequence[Image.Image],
    size: int,
    resample: Image.Resampling,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """RGB pictures -> (N, 3, size, size), contiguous: the CPU's group norm sums badly on other strides."""
    rows = []
    for picture in pictures:
        scale = size / min(picture.size)
        width, height = (max(size, int(side * scale)) for side in picture.size)
        if picture.size != (width, height):
            picture = picture.resize((width, height), resample)
        left, top = (width - size) // 2, (height - size) // 2
        levels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        rows.append((levels - np.array(mean, np.float32)) / np.array(std, np.float32))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def to_pil(pictures: Tensor, truncate: bool) -> list[Image.Image]:
    """(N, 3 or 4, H, W) in 0..1 -> 8-bit pictures, rounded or, as some authors do, cut off."""
    levels = pictures.detach().float().cpu().clamp(0, 1) * 255
    levels = levels if truncate else levels.round()
    return [Image.fromarray(np.ascontiguousarray(p)) for p in levels.byte().permute(0, 2, 3, 1).numpy()]


def crop_size(folder: Path, default: int) -> int:
    """Side in pixels that a folder's preprocessor_config.json asks for.

    Raises:
        UserError: when it names none.
    """
    path = folder / "preprocessor_config.json"
    size = read_json(path).get("crop_size", default) if path.is_file() else default
    side = size.get("height") if isinstance(size, dict) else size
    if not isinstance(side, int) or side < 1:
        raise UserError(f"{path}: crop_size {size!r} is not a side in pixels: copy or fetch it again")
    return side
