"""Noise-camera-input-output quadruples: what a teacher was given and what it answered, in shards.

A sample holds noise.npy (float16, exactly what the teacher started from), input.png (RGBA), outputs.png (the
views side by side, RGBA or RGB, straight alpha) and json: cameras, source, seed, teacher, steps, guidance.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards


@dataclass(frozen=True)
class Quadruple:
    """N, C, II, OI of one object, or of a batch B.

    Args:
        noise: (V, C, h, w) or (B, V, C, h, w) float32.
        cameras: (V,) relative to the input view, shared by a batch; or (B, V).
        input: (4, S, S) or (B, 4, S, S) straight RGBA in 0..1.
        outputs: (V, 4, S, S) or (B, V, 4, S, S) straight RGBA in 0..1; RGB from a teacher without alpha.
        meta: source, sample, seed, teacher, steps, guidance_scale, in a file also the key.
    """

    noise: Tensor
    cameras: Cameras
    input: Tensor
    outputs: Tensor
    meta: dict[str, Any] = field(default_factory=dict)


def noise_of(shape: Sequence[int], seed: int) -> Tensor:
    """Noise (V, C, h, w) by seed: float32 values that float16 holds exactly, drawn on the CPU."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).half().float()


def encode(quadruple: Quadruple, key: str) -> dict[str, bytes | str]:
    """One object as a sample for `dd3g.io.shards.write_shard`; pictures are rounded to eight bits."""
    cameras = quadruple.cameras
    description = quadruple.meta | {
        "width": cameras.width,
        "height": cameras.height,
        "viewmats": cameras.viewmats.tolist(),
        "Ks": cameras.Ks.tolist(),
    }
    array = io.BytesIO()
    np.save(array, quadruple.noise.cpu().half().numpy(), allow_pickle=False)
    return {
        "__key__": key,
        "input.png": _png(quadruple.input),
        "json": json.dumps(description),
        "noise.npy": array.getvalue(),
        "outputs.png": _png(torch.cat(list(quadruple.outputs), -1)),
    }


def decode(sample: dict[str, Any]) -> Quadruple:
    """The inverse of `encode`.

    Raises:
        Exception: of nearly every type, when the sample is no quadruple or damaged.
    """
    meta = json.loads(sample["json"]) | {"key": sample["__key__"]}
    viewmats, Ks = torch.tensor(meta.pop("viewmats")), torch.tensor(meta.pop("Ks"))
    cameras = Cameras(viewmats, Ks, meta.pop("width"), meta.pop("height"))
    noise = np.load(io.BytesIO(sample["noise.npy"]), allow_pickle=False)
    if not np.isfinite(noise).all():
        raise ValueError("its noise is not finite")
    views = _picture(sample["outputs.png"]).unflatten(-1, (len(cameras), cameras.width)).movedim(-2, 0)
    return Quadruple(
        torch.from_numpy(noise).float(), cameras, _picture(sample["input.png"]), views.contiguous(), meta
    )


class Quadruples(Sequence[Quadruple]):
    """Quadruples of one or more folders, at random access.

    Args:
        source: a folder of shards, or a list of folders or shards.
        cache: decode everything now; pictures are kept as bytes and noise as float16, about 0.2 MB an item at
            64 pixels. Without it an item costs reading and two small PNGs.

    Raises:
        UserError: no shards, or a damaged one.
    """

    def __init__(self, source: str | Path | Sequence[str | Path], cache: bool = False) -> None:
        if not source:
            raise UserError("no quadruples were named: give a folder written by dd3g simulate")
        self._shards = Shards(source)
        self._cache: list[Quadruple] = []
        if cache:
            self._cache = [_packed(self._decode(i)) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Quadruple:  # type: ignore[override]
        """One object, float32; negative indices count from the end."""
        if self._cache:
            q = self._cache[index]
            return replace(q, noise=q.noise.float(), input=q.input / 255, outputs=q.outputs / 255)
        return self._decode(index)

    def key(self, index: int) -> str:
        """The sample's key, without reading its data."""
        return self._shards.key(index)

    def shard(self, index: int) -> Path:
        """File that holds the quadruple."""
        return Path(self._shards.where(index))

    def _decode(self, index: int) -> Quadruple:
        sample = self._shards[index]
        try:
            return decode(sample)
        except Exception as error:  # of json, numpy and Pillow, which raise nearly every type there is
            raise UserError(
                f"{self.key(index)} in shard {self._shards.where(index)} is no quadruple or damaged "
                f"({error}): delete the shard and run distill.simulate again with the same command"
            ) from error


def _packed(q: Quadruple) -> Quadruple:
    return replace(q, noise=q.noise.half(), input=_bytes(q.input), outputs=_bytes(q.outputs))


def _bytes(picture: Tensor) -> Tensor:
    return (picture.detach().clamp(0, 1) * 255).round().byte().cpu()


def _png(picture: Tensor) -> bytes:
    """(4 or 3, H, W) -> PNG."""
    stream = io.BytesIO()
    Image.fromarray(_bytes(picture).movedim(0, -1).contiguous().numpy()).save(stream, format="PNG")
    return stream.getvalue()


def _picture(png: bytes) -> Tensor:
    """PNG -> (4 or 3, H, W) float32 in 0..1."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
