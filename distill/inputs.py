"""Input pictures of objects by index: a folder of pictures, shards of pictures, or rendered objects."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from dd3g.cameras import ELEVATION
from dd3g.errors import UserError
from dd3g.io.shards import Shards
from dd3g.picture import load_image, read_rgba, resize_rgba
from distill.renders import RenderedObjects

SUFFIXES = (".png", ".webp")


class Inputs(Protocol):
    """Pictures of objects, each a pure function of (index, seed)."""

    @property
    def files(self) -> Sequence[Path]:
        """What was read."""

    def __len__(self) -> int:
        """Number of objects."""

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """Straight RGBA (4, size, size) rounded to 255ths, and where it comes from.

        Raises:
            UserError: when this one cannot be used; the others may still be fine.
        """


def open_inputs(source: str | Path) -> Inputs:
    """Find out what `source` is: a picture or a folder of them, shards of pictures, or rendered objects.

    Raises:
        UserError: when it is none of these.
    """
    path = Path(source)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        shards = Shards(path)
        extensions = set(shards[0]) if len(shards) else set()
        if "depth.png" in extensions:
            return Renders(path, shards.paths)
        if "png" in extensions:
            return PictureShards(shards)
        raise UserError(
            f"{path}: its samples hold {', '.join(sorted(extensions - {'__key__'})) or 'nothing'}; expected "
            "pictures (png) or rendered objects (rgba.png, depth.png)"
        )
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise UserError(
            f"{path}: no pictures there; give a folder of PNG or WebP with alpha, or of shards (*.tar)"
        )
    return Pictures(files)


def fingerprint(inputs: Inputs) -> str:
    """Hash of the names and sizes of the files."""
    listing = "\n".join(f"{p.name} {p.stat().st_size}" for p in inputs.files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def seed_of(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


class Pictures:
    """Picture files with alpha; the object is framed as training pictures are."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """See `Inputs`; the seed does not matter."""
        path = self.files[index]
        return _framed(read_rgba(path, str(path)), str(path), size), {"source": path.name}


class PictureShards:
    """Shards whose samples hold a .png with alpha."""

    def __init__(self, shards: Shards) -> None:
        self.shards, self.files = shards, shards.paths

    def __len__(self) -> int:
        return len(self.shards)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """See `Inputs`; the seed does not matter."""
        key = self.shards.key(index)
        name = f"{key} in {self.shards.where(index)}"
        try:
            image = Image.open(io.BytesIO(self.shards.read(index, "png")["png"]), formats=("PNG",))
            image.load()
        except (KeyError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{name} holds no readable png ({error})") from error
        return _framed(read_rgba(image, name), name, size), {"source": key}


class Renders:
    """Rendered objects; the seed chooses the view among those at the rig's elevation."""

    def __init__(self, source: Path, files: Sequence[Path]) -> None:
        self.objects, self.files = RenderedObjects(source), files

    def __len__(self) -> int:
        return len(self.objects)

    def picture(self, index: int, seed: int, size: int) -> tuple[Tensor, dict[str, Any]]:
        """See `Inputs`. Each view of a quad can be the input: the others stand at 90, 180 and 270."""
        item = self.objects[index]
        distance = [abs(item.meta["elevation"][quad[0]] - ELEVATION) for quad in item.quads]
        level = [quad for quad, d in zip(item.quads, distance, strict=True) if d < min(distance) + 0.5]
        views = sum(level, [])
        generator = torch.Generator().manual_seed(seed_of(index, seed))
        view = views[int(torch.randint(len(views), (1,), generator=generator))]
        rgba = resize_rgba(item.rgba[view].float() / 255, size)
        about = {k: item.meta[k] for k in ("variant", "style") if k in item.meta}
        return _rounded(rgba), {"source": str(item.meta["id"]), "view": view, **about}


def _framed(image: Image.Image, name: str, size: int) -> Tensor:
    if image.getchannel("A").getextrema()[0] == 255:
        raise UserError(f"{name} has no transparent pixel: cut the object out first")
    return _rounded(load_image(image, size, matte="none").rgba)


def _rounded(rgba: Tensor) -> Tensor:
    # The teacher must see what the shard will hold.
    return (rgba * 255).round() / 255
