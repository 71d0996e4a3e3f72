"""Noise-camera-input-output quadruples: what a teacher was given and what it answered, in shards.

A sample holds input.png (RGBA), outputs.png (the views side by side: straight RGBA, or RGB as the teacher
drew them with their mattes as alpha), latents.npy (float16, the end of the ODE, where that is less than the
views) and json: cameras, source, seed, teacher, steps, guidance, mattes. The noise is stored by its seed and
hash; older samples, and noise of no seed, hold it as noise.npy (float16, exactly what the teacher started
from).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dd3g.cameras import FAR, NEAR, Cameras
from dd3g.errors import UserError, first_line
from dd3g.io.shards import Shards
from distill.simulation.mattes import Mattes

MOST_NOISE = 2**24  # numbers that a stranger's file may ask for


@dataclass(frozen=True)
class Quadruple:
    """N, C, II, OI of one object, or of a batch B."""

    noise: Tensor  # (V, C, h, w) or (B, V, C, h, w) float32
    cameras: Cameras  # (V,) relative to the input view, shared by a batch; or (B, V)
    input: Tensor  # (4, S, S) or (B, 4, S, S) straight RGBA in 0..1
    outputs: Tensor  # (V, 4, S, S) or (B, V, 4, S, S) straight RGBA in 0..1; RGB from a teacher without alpha
    # Source, sample, seed, teacher, steps, guidance_scale, in a file also the key
    meta: dict[str, Any] = field(default_factory=dict)
    # (V, C, h, w) or (B, V, C, h, w) the end of the ODE, None where it was not kept
    latents: Tensor | None = None
    mattes: Mattes | None = None  # of RGB outputs; None where there are none


def noise_of(shape: Sequence[int], seed: int) -> Tensor:
    """Noise (V, C, h, w) by seed: float32 values that float16 holds exactly, drawn on the CPU.

    Raises:
        UserError: for a seed that torch does not take.
    """
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"the seed {seed} is out of range: give 0 to 2**64 - 1")
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).half().float()


def encode(quadruple: Quadruple, key: str) -> dict[str, bytes | str]:
    """One object as a sample for `dd3g.io.shards.write_shard`; pictures are rounded to eight bits."""
    q, cameras = quadruple, quadruple.cameras
    noise, seed = q.noise.detach().cpu().half(), q.meta.get("seed")
    description = q.meta | {
        "width": cameras.width,
        "height": cameras.height,
        "viewmats": cameras.viewmats.tolist(),
        "Ks": cameras.Ks.tolist(),
    }
    if (cameras.near, cameras.far) != (NEAR, FAR):
        description |= {"near": cameras.near, "far": cameras.far}
    files: dict[str, bytes | str] = {"input.png": _png(q.input)}
    if isinstance(seed, int) and torch.equal(noise_of(noise.shape, seed).half(), noise):
        description["noise"] = {"shape": list(noise.shape), "sha256": _sha256(noise)}
    else:
        files["noise.npy"] = _npy(noise)
    views = q.outputs
    if q.mattes is not None:
        views = torch.cat([views, q.mattes.alpha.to(views)], -3)
        description["mattes"] = {
            "model": q.mattes.model,
            "confidence": [round(c, 4) for c in q.mattes.confidence.tolist()],
            "ground": [[round(c, 4) for c in colour] for colour in q.mattes.ground.tolist()],
        }
    if q.latents is not None and q.latents.numel() < q.outputs.numel():
        files["latents.npy"] = _npy(q.latents.detach().cpu().half())
    files["outputs.png"] = _png(torch.cat(list(views), -1))
    return {"__key__": key, "json": json.dumps(description), **files}


def decode(sample: dict[str, Any]) -> Quadruple:
    """The inverse of `encode`.

    Raises:
        Exception: of nearly every type, when the sample is not a quadruple, or is damaged.
    """
    meta = json.loads(sample["json"]) | {"key": sample["__key__"]}
    viewmats, Ks = torch.tensor(meta.pop("viewmats")), torch.tensor(meta.pop("Ks"))
    size = meta.pop("width"), meta.pop("height")
    cameras = Cameras(viewmats, Ks, *size, meta.pop("near", NEAR), meta.pop("far", FAR))
    views = _picture(sample["outputs.png"]).unflatten(-1, (len(cameras), cameras.width)).movedim(-2, 0)
    mattes, stored, given = None, meta.pop("mattes", None), _picture(sample["input.png"])
    if views.shape[1] not in ((3, 4) if stored is None else (4,)) or views.shape[2] != cameras.height:
        raise ValueError(f"views {tuple(views.shape)} are not what its cameras see")
    if given.shape != (4, given.shape[1], given.shape[1]):
        raise ValueError(f"input {tuple(given.shape)} is not a square of RGBA")
    if not (viewmats.isfinite().all() and Ks.isfinite().all()):
        raise ValueError("its cameras hold numbers that are not finite")
    if stored is not None:
        views, alpha = views[:, :3], views[:, 3:].contiguous()
        mattes = Mattes(
            alpha, torch.tensor(stored["confidence"]), torch.tensor(stored["ground"]), stored["model"]
        )
        if not mattes.confidence.shape == mattes.ground.shape[:1] == alpha.shape[:1] == (len(cameras),):
            raise ValueError(f"{len(cameras)} views need as many mattes")
    latents = _array(sample["latents.npy"]) if "latents.npy" in sample else None
    noise = _noise(sample, meta)
    return Quadruple(noise, cameras, given, views.contiguous(), meta, latents, mattes)


def _noise(sample: dict[str, Any], meta: dict[str, Any]) -> Tensor:
    """What the teacher started from: as stored, or drawn again."""
    if "noise.npy" in sample:
        return _array(sample["noise.npy"])
    stored = meta.pop("noise")
    if math.prod(stored["shape"]) > MOST_NOISE:
        raise ValueError(f"noise of shape {stored['shape']} is more than any teacher takes")
    noise = noise_of(stored["shape"], meta["seed"])
    if _sha256(noise) != stored["sha256"]:
        raise ValueError(f"the noise of seed {meta['seed']} is not the same here as where this was made")
    return noise


class Quadruples(Sequence[Quadruple]):
    """Quadruples of one or more folders, at random access.

    Args:
        source: a folder of shards, or a list of folders or shards.
        cache: decode everything now; pictures are kept as bytes and noise as float16, about 0.2 MB an item at
            64 pixels, and latents are left out. Without it an item costs reading and two small PNGs.
        tolerant: see `Shards`.

    Raises:
        UserError: no shards, or one that was cut short; for damaged quadruples, when they are asked for.
    """

    def __init__(
        self, source: str | Path | Sequence[str | Path], cache: bool = False, tolerant: bool = False
    ) -> None:
        if not source:
            raise UserError("no quadruples were named: give a folder written by dd3g simulate")
        self._shards = Shards(source, tolerant)
        if foreign := self._shards.foreign("outputs.png", "input.png", "noise.npy"):
            raise UserError(f"{foreign} holds no quadruples: name a folder that `dd3g simulate` wrote")
        self._cache = [self._kept(i) for i in range(len(self))] if cache else []

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Quadruple:  # type: ignore[override]
        """One object, float32; negative indices count from the end."""
        kept = self._cache[index] if self._cache else None
        return self._decode(index) if kept is None else _unpacked(kept)

    def key(self, index: int) -> str:
        """The sample's key, without reading its data."""
        return self._shards.key(index)

    def about(self, index: int) -> dict[str, Any]:
        """What a quadruple's json says, its cameras among it, without its pictures and noise."""
        try:
            return dict(json.loads(self._shards.read(index, "json")["json"]))
        except (KeyError, ValueError, TypeError) as error:
            raise self._damaged(index, error) from error

    def shard(self, index: int) -> Path:
        """File that holds the quadruple."""
        return Path(self._shards.where(index))

    def _kept(self, index: int) -> Quadruple | None:
        """What the cache holds; nothing of a damaged one, which says what is wrong when it is asked for."""
        try:
            return _packed(self._decode(index))
        except UserError:
            return None

    def _decode(self, index: int) -> Quadruple:
        sample = self._shards[index]
        try:
            return decode(sample)
        except Exception as error:  # of json, numpy and Pillow, which raise nearly every type there is
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> UserError:
        return UserError(
            f"{self.key(index)} in shard {self._shards.where(index)} is not a quadruple, or is damaged "
            f"({first_line(error)}): delete the shard and run the same `dd3g simulate` again"
        )


def _packed(q: Quadruple) -> Quadruple:
    mattes = q.mattes and replace(q.mattes, alpha=_bytes(q.mattes.alpha))
    return replace(
        q, noise=q.noise.half(), input=_bytes(q.input), outputs=_bytes(q.outputs), latents=None, mattes=mattes
    )


def _unpacked(q: Quadruple) -> Quadruple:
    mattes = q.mattes and replace(q.mattes, alpha=q.mattes.alpha / 255)
    return replace(q, noise=q.noise.float(), input=q.input / 255, outputs=q.outputs / 255, mattes=mattes)


def _sha256(noise: Tensor) -> str:
    """Of its float16 values, little-endian."""
    return hashlib.sha256(noise.half().numpy().astype("<f2").tobytes()).hexdigest()


def _npy(array: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array.numpy(), allow_pickle=False)
    return stream.getvalue()


def _array(npy: bytes) -> Tensor:
    array = np.load(io.BytesIO(npy), allow_pickle=False)
    if not np.isfinite(array).all():
        raise ValueError("it holds numbers that are not finite")
    return torch.from_numpy(array).float()


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
