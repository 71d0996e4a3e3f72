"""Renders decoded once, as plain arrays on a node's own disk, of which a sample reads only the views it uses.

A PNG sheet has to be decoded as a whole, 28 views for the 8 that a sample shows. Here each shard becomes
NAME-HASH.bin, for each object RGBA (V, 4, S, S) uint8, depth (V, S, S) float16 and the packed volume, and
NAME-HASH.jsonl, a line for each object that says where they lie. It is a cache: it may be deleted, and
follows its shards.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dd3g.cameras import Cameras
from dd3g.command.progress import Progress
from dd3g.errors import UserError
from dd3g.fingerprint import fingerprint
from dd3g.io.atomic import only_user, replacing, write_text
from dd3g.io.shards import pack_paths, unpack_paths
from dd3g.processes import map_in_processes, usable_cores
from distill.samples.renders import RenderedObject, RenderedObjects


class UnpackedRenders(Sequence[RenderedObject]):
    """Rendered objects of one or more folders; those of new shards are decoded when this is made.

    Processes of one node may be made with one folder at the same time: one decodes, the others wait. Depth is
    float16.

    Args:
        source: as for `RenderedObjects`.
        folder: for the arrays, 6 bytes a pixel: 2.8 MB for 28 views of 128 x 128.

    Raises:
        UserError: no shards, one that was cut short, or a full disk; for damaged objects, when they are asked
            for.
    """

    def __init__(self, source: str | Path | Sequence[str | Path], folder: str | Path) -> None:
        shards = RenderedObjects(source, tolerant=True).paths
        self.bins = [Path(folder) / f"{_name(shard)}.bin" for shard in shards]
        with only_user(folder, wait=True):
            pairs = zip(shards, self.bins, strict=True)
            wanted = [(s, b) for s, b in pairs if not (b.exists() and _about(b).exists())]
            with Progress(total=len(wanted), name="shards unpacked") as progress:
                for _ in progress.each(map_in_processes(unpack, wanted, usable_cores())):
                    pass
        self._open()

    def _open(self) -> None:
        # Lines are parsed when they are asked for: each process has them all.
        self._lines = [(b, line) for b in self.bins for line in _about(b).read_bytes().splitlines()]
        self._maps: dict[Path, Any] = {}

    def __getstate__(self) -> bytes:
        return pack_paths(self.bins)

    def __setstate__(self, packed: bytes) -> None:
        self.bins = unpack_paths(packed)
        self._open()

    def __len__(self) -> int:
        return len(self._lines)

    def meta(self, index: int) -> dict:
        """The object's `meta` without its pictures."""
        item = json.loads(self._lines[index][1])
        if "meta" not in item:
            raise UserError(item["damaged"])
        return item["meta"]

    def __getitem__(self, index: int) -> RenderedObject:  # type: ignore[override]
        """Object by index; its pictures are read when they are looked at."""
        path, line = self._lines[index]
        item = json.loads(line)
        if "damaged" in item:
            raise UserError(item["damaged"])
        if path not in self._maps:
            try:  # copy on write: torch wants to be allowed to write
                self._maps[path] = np.memmap(path, np.uint8, "c")
            except OSError as error:  # systems clean up their temporary folders
                raise UserError(
                    f"{path} cannot be read ({error.strerror}): resume, and what is missing is unpacked again"
                ) from error
        views, size, start = item["views"], item["size"], item["offset"]
        ends = np.cumsum([start, views * 4 * size * size, views * size * size * 2, item["bits"]])
        rgba, depth, bits = (self._maps[path][a:b] for a, b in zip(ends, ends[1:], strict=False))
        frame = (views, size, size)
        Ks = torch.tensor(item["K"]).expand(views, 3, 3)
        return RenderedObject(
            torch.from_numpy(rgba).view(views, 4, size, size),
            torch.from_numpy(depth.view(np.float16)).view(frame),
            Cameras(torch.tensor(item["viewmats"]), Ks, size, size),
            item["meta"],
            bytes(bits),
        )


def _name(shard: Path) -> str:
    """Name of what becomes of a shard, until the shard changes."""
    about = shard.stat()
    return f"{shard.stem}-{fingerprint(str(shard.resolve()), str(about.st_size), str(about.st_mtime_ns))}"


def _about(path: Path) -> Path:
    return path.with_suffix(".jsonl")


def unpack(task: tuple[Path, Path]) -> None:
    """Decode one shard (shard, target); the .jsonl comes last, and with it the whole counts as done."""
    shard, target = task
    items: list[dict[str, Any]] = []
    objects, offset = RenderedObjects(shard, tolerant=True), 0
    with replacing(target) as part, part.open("wb") as stream:
        for index in range(len(objects)):
            try:
                item = objects[index]
            except UserError as error:
                items.append({"damaged": str(error)})
                with contextlib.suppress(UserError):
                    items[-1]["meta"] = objects.meta(index)
                continue
            views, _, size, _ = item.rgba.shape
            bits = item.bits + bytes(len(item.bits) % 2)  # depths stay at even places
            for data in (item.rgba.numpy().tobytes(), item.depth.half().numpy().tobytes(), bits):
                stream.write(data)
            items.append(
                {
                    "views": views, "size": size, "offset": offset, "bits": len(item.bits), "meta": item.meta,
                    "viewmats": item.cameras.viewmats.tolist(), "K": item.cameras.Ks[0].tolist(),
                }
            )  # fmt: skip
            offset += views * size * size * 6 + len(bits)
    write_text(_about(target), "".join(json.dumps(item) + "\n" for item in items))


def open_renders(
    source: Sequence[str], folder: str = "", cached: bool = False
) -> RenderedObjects | UnpackedRenders:
    """Renders for training: unpacked into `folder` where one is given, else as `RenderedObjects`."""
    return UnpackedRenders(source, folder) if folder else RenderedObjects(source, cached, tolerant=True)
