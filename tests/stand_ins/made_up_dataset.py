"""A dataset without a picture model: pictures, mattes and verdicts made from numbers alone, in no time."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_gen.filters.rules import FilterConfig
from data_gen.prompts.lists import Prompt, prompt_id
from data_gen.shards.dataset import DatasetSpec, PictureBackend
from data_gen.shards.generate import generate_shards
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from dd3g.command.progress import Progress

SIDE = 16


@dataclass(frozen=True)
class MadeUpMatted:
    rgba: np.ndarray
    alpha: np.ndarray


def prompts(count):
    texts = [f"a thing of number {i}" for i in range(count)]
    return [Prompt(prompt_id(t), t, group=f"group {i % 3}") for i, t in enumerate(texts)]


def picture(text, seed):
    """Random pixels with a clear border; empty for one in nine."""
    digest = hashlib.sha256(f"{text} {seed}".encode()).digest()
    rgba = np.random.default_rng(list(digest)).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    rgba[..., 3] = 0 if digest[0] % 9 == 0 else 255
    rgba[[0, -1]] = rgba[:, [0, -1]] = 0
    return Image.fromarray(rgba)


def matted(images):
    done = Future()
    arrays = [np.array(i.convert("RGBA")) for i in images]
    done.set_result([MadeUpMatted(a, a[..., 3]) if a[..., 3].any() else None for a in arrays])
    return done


class Log:
    """The backend, which writes down every try."""

    def __init__(self, path=None, picture=picture):
        self.path, self.picture = path, picture
        self.opened, self.batches = 0, []

    @contextmanager
    def open(self):
        self.opened += 1

        def draw(batch):
            self.batches.append([(d.prompt.id, d.attempt) for d in batch])
            if self.path:
                with open(self.path, "a") as stream:
                    stream.write("".join(json.dumps([d.prompt.id, d.attempt]) + "\n" for d in batch))
            return [self.picture(d.prompt.text, d.seed) for d in batch]

        about = {"model": "made up", "licence": "CC0-1.0", "matte": "none", "size": SIDE}
        yield PictureBackend(draw, matted, about)


def dataset_spec(folder, count=20, backend=None, **more):
    filters = FilterConfig(duplicate_distance=more.pop("distance", 0))
    settings = {"seed": 0, "shard_size": 8, "batch_size": 3, "attempts": 3} | more
    options = {"count": count, "filters.duplicate_distance": filters.duplicate_distance} | settings
    del options["batch_size"]
    backend = backend or Log()
    return DatasetSpec(Storage(folder), prompts(count), options, backend.open, filters, **settings)


def verdicts(monkeypatch):
    """Filters that measure the mean red and reject what is below 97 of 255."""
    import data_gen.shards.chunks

    monkeypatch.setattr(data_gen.shards.chunks, "measure", lambda m: {"red": m.rgba[..., 0].mean()})
    monkeypatch.setattr(
        data_gen.shards.chunks, "judge", lambda s, config: "" if s["red"] >= 97 else "too blue"
    )


def made_set(folder, count=20, distance=4, **more):
    generate_shards(
        dataset_spec(folder, count, distance=distance, **more), ProcessGroup(), Progress(show=False)
    )
    return Storage(folder)


def contents(folder):
    """Every file by name; seconds, which differ, left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name.startswith("pictures-") and path.suffix == ".json":
                data = json.loads(data)
                del data["seconds"]
            found[str(path.relative_to(folder))] = data
    return found
