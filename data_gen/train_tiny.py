"""Train the small picture model on rendered objects.

accelerate launch -m data_gen.train_tiny --config configs/data_gen/tiny_train.yaml
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_gen.meshes.captions import COLORS, LOOKS, STYLES, id_words, picture_words, read_manifest
from dd3g.command.configuration import launch
from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.io.atomic import replacing, replacing_all
from dd3g.io.shards import Shards
from dd3g.picture.sources import SHEET, split_sheet
from dd3g.processes import from_launcher
from dd3g.training.config import LoopConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from data_gen.picture_models.tiny import TinyDenoiser

SHOWN = (
    "a red apple", "a green pine tree", "a brown wooden chair", "a blue fish", "a grey rock", "a yellow car",
    "a white house", "a sword", "a purple potion bottle", "a bookshelf", "a cactus", "an orange pumpkin",
)  # fmt: skip
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
A small text-to-RGBA model of {size} x {size} pixels, trained on {count} views of rendered objects. It knows
the colours and the kinds of things in them, and little else. Load it with
`data_gen.picture_models.tiny.TinyRgbaPipeline.from_pretrained`.
"""


@dataclass
class TinyShape:
    """Shape of the network; see `TinyDenoiser`."""

    size: int = setting(64, "pixels per side, a multiple of 8")
    width: int = setting(256, "channels of the tokens of 8 x 8 pixels")
    depth: int = setting(5, "pairs of residual and transformer blocks")
    heads: int = setting(4, "of the attention")
    hidden: int = setting(64, "channels inside a residual block")
    mid: int = setting(96, "channels of the map of 4 x 4 pixel patches")
    buckets: int = setting(8192, "rows of the table of hashed words")
    word_width: int = setting(128, "of that table")


@dataclass
class TinyTrainConfig(LoopConfig):
    """Everything that a run needs."""

    configs: ClassVar[str] = "data_gen"

    output_dir: str = "runs/tiny"
    train_batch_size: int = 16
    max_train_steps: int = 5_000
    lr_scheduler: str = "timed_cosine"
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_fused: bool = True
    ema_warmup: str = "ratio"
    logging_steps: int = 50
    report_to: str = "none"

    renders: list[str] = setting(["runs/renders/train"], "shards made by `dd3g data render`")
    manifest: str = setting("", "csv with id, name, category: better words than the ids alone")
    views: int = setting(4, "of each rendered object, kept in memory: 16 kB each at 64 pixels", 1)
    condition_dropout: float = setting(0.1, "share without words, for classifier-free guidance", 0, 1)
    word_dropout: float = setting(0.25, "share of words left out", 0, 1)
    recolour: float = setting(0.3, "share of pictures whose colour channels are swapped", 0, 1)
    model: TinyShape = field(default_factory=TinyShape)


class CaptionedViews:
    """Views of rendered objects with words for each, drawn at random.

    Args:
        config: which renders, and how they are varied.

    Raises:
        UserError: no renders, more than `max_bad_samples` damaged ones, or ones of another size.
    """

    def __init__(self, config: TinyTrainConfig) -> None:
        self.config, size = config, config.model.size
        named = read_manifest(config.manifest) if config.manifest else {}
        self.pictures: list[NDArray[np.uint8]] = []  # (V, S, S, 4) each
        self.elevations: list[list[float]] = []
        self.words: list[list[str]] = []
        damaged: list[UserError] = []
        for shards in (Shards(folder, tolerant=True) for folder in config.renders):
            for i in range(len(shards)):
                try:
                    rgba, meta = _views(shards, i, config.views)
                except UserError as error:
                    print(f"warning: skipped a sample: {error}", file=sys.stderr)
                    damaged.append(error)
                    continue
                if rgba.shape[1:] != (size, size, 4):
                    raise UserError(
                        f"{shards.where(i)} has views of {rgba.shape[1]} pixels, the model draws {size}: "
                        "render the objects again at that size, or set model.size"
                    )
                self.pictures.append(rgba)
                self.elevations.append(meta["elevation"])
                self.words.append(
                    (named.get(meta["id"]) or id_words(meta["id"])) + STYLES.get(meta["style"], "").split()
                )
        if damaged and (not self.pictures or len(damaged) > config.max_bad_samples):
            raise damaged[0]
        if not self.pictures:
            raise UserError("there are no rendered objects to learn from: name some folders in renders")

    def draw(self, count: int, g: torch.Generator) -> tuple[Tensor, list[str]]:
        """Straight RGBA (count, 4, S, S) in 0..1, and a text for each."""
        import torch

        rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=g)))
        pictures, texts = [], []
        for i in rng.integers(len(self.pictures), size=count):
            view = rng.integers(len(self.pictures[i]))
            rgba = self.pictures[i][view]
            if rng.random() < 0.5:
                rgba = rgba[:, ::-1]
            gain = np.append(rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3), 1)
            order = [*rng.permutation(3), 3] if rng.random() < self.config.recolour else [0, 1, 2, 3]
            rgba = (rgba[..., order] * gain).clip(0, 255).astype(np.uint8)
            words = self.words[i] + picture_words(rgba, self.elevations[i][view])
            kept = [w for w in words if rng.random() >= self.config.word_dropout]
            texts.append("" if rng.random() < self.config.condition_dropout else " ".join(kept))
            pictures.append(torch.from_numpy(rgba).permute(2, 0, 1))
        return torch.stack(pictures).float() / 255, texts


def _views(shards: Shards, index: int, count: int) -> tuple[NDArray[np.uint8], dict]:
    """The first views of one rendered object, (V, S, S, 4), and its meta."""
    item = shards.read(index, SHEET, "json")
    try:
        meta = json.loads(item["json"])
        views = split_sheet(item[SHEET], len(meta["elevation"]))[:count]
        words = {key: str(meta[key]) for key in ("id", "style")}
        return views, words | {"elevation": meta["elevation"]}
    except Exception as error:  # Pillow raises nearly every type there is on damaged pictures
        raise UserError(
            f"{shards.key(index)} in shard {shards.where(index)} is damaged or not a render ({error}): "
            "delete the shard and render it again with the same command"
        ) from error


def lexicon() -> dict[str, str]:
    """Word -> group: that of the noun itself, else that of most of the two or more nouns that end in it."""
    from data_gen.prompts.grammar import own_grammar

    groups: dict[str, Counter[str]] = {}
    for group, listed in own_grammar().nouns.items():
        for noun in listed:
            words = re.findall(r"[a-z]+", noun.lower().split(" of ")[0])
            groups.setdefault(words[-1], Counter())[group] += 1 if len(words) > 1 else 100
    leading = {word: counts.most_common(1)[0] for word, counts in sorted(groups.items())}
    return {word: group for word, (group, n) in leading.items() if n > max(1, groups[word].total() / 2)}


class TinyLoss:
    """Denoising loss in x0, weighted by 1 / max(sigma, 0.5)^2: form first, not grain."""

    def __init__(self, views: CaptionedViews, batch_size: int) -> None:
        from data_gen.picture_models.tiny import scheduler
        from dd3g.diffusion import Schedule

        self.views, self.batch_size = views, batch_size
        self.schedule = Schedule.from_config(dict(scheduler().config))

    def __call__(self, model: nn.Module, g: torch.Generator, step: int) -> Tensor:
        """Mean loss of a batch that `g` decides."""
        import torch

        from data_gen.picture_models.tiny import TinyDenoiser, encode

        assert isinstance(model, TinyDenoiser)
        rgba, texts = self.views.draw(self.batch_size, g)
        x0 = encode(rgba.to(model.device))
        # One level from each of B equal parts of the schedule: the loss varies less from batch to batch.
        spread = (torch.arange(len(x0)) + torch.rand(len(x0), generator=g)) / len(x0)
        t = (spread * self.schedule.steps).long().to(x0.device)  # (B,)
        x_t = self.schedule.add_noise(x0, torch.randn(x0.shape, generator=g).to(x0), t)
        predicted = model(x_t, t, model.condition(texts))
        sigma2 = (1 - self.schedule.ab(t)).clamp(min=0.25).to(x0)  # (B,)
        return ((predicted.float() - x0).square().mean((-1, -2, -3)) / sigma2).mean()


def draw_contact_sheet(model: TinyDenoiser, path: Path) -> None:
    """Draw the texts in `SHOWN` over white and grey, side by side, into one picture."""
    import torch
    from PIL import Image

    from data_gen.picture_models.tiny import TinyRgbaPipeline, scheduler

    pipeline = TinyRgbaPipeline(model, scheduler())
    pipeline.set_progress_bar_config(disable=True)
    sources = [torch.Generator().manual_seed(i) for i in range(len(SHOWN))]
    rgba = pipeline(list(SHOWN), num_inference_steps=10, generator=sources, output_type="np").images
    strips = [over + rgba[..., 3:] * (rgba[..., :3] - over) for over in (1.0, 0.5)]
    sheet = np.concatenate([np.concatenate(list(strip), 1) for strip in strips])
    with replacing(path) as partial:
        Image.fromarray((sheet * 255).round().astype(np.uint8)).save(partial)


def save(model: TinyDenoiser, folder: Path, count: int) -> Path:
    """Write the model as a diffusers pipeline with half-precision weights and a card."""
    from data_gen.picture_models.tiny import TinyDenoiser, TinyRgbaPipeline, scheduler

    half = TinyDenoiser.from_config(model.config)
    half.load_state_dict(model.state_dict())
    with replacing_all(folder) as whole:
        TinyRgbaPipeline(half.half(), scheduler()).save_pretrained(whole)
        (whole / "README.md").write_text(CARD.format(size=model.config["size"], count=count))
    return folder


def run(config: TinyTrainConfig) -> Path:
    """Train; returns the folder of the averaged model, a diffusers pipeline."""
    start = time.monotonic()
    import torch

    from data_gen.picture_models.tiny import TinyDenoiser
    from dd3g.training import fit

    if (processes := from_launcher("WORLD_SIZE")) > 1:
        raise UserError(
            f"this model is too small to share: launch it with --num_processes 1, not {processes}"
        )
    torch.manual_seed(config.seed)
    try:
        model = TinyDenoiser(**asdict(config.model), lexicon=lexicon())
    except ValueError as error:
        raise UserError(f"configuration: {error}") from error
    views = CaptionedViews(config)
    model.learn([*COLORS, *LOOKS, *{word for words in views.words for word in words}])
    output, count = Path(config.output_dir), sum(len(p) for p in views.pictures)
    loss = TinyLoss(views, config.train_batch_size)

    def publish(average: TinyDenoiser, step: int) -> dict[str, float]:
        save(average, output / "model", count)
        draw_contact_sheet(average, output / "sheet.png")
        fixed = [loss(average, torch.Generator().manual_seed(i), step) for i in range(4)]
        return {"average_loss": float(torch.stack(fixed).mean())}

    config.count_opening(start)
    fit(model, loss, None, config, publish)
    return output / "model"


def main(argv: Sequence[str] | None = None) -> int:
    """The command `train_tiny`."""
    return launch(run, TinyTrainConfig, argv, "dd3g data train-tiny")


if __name__ == "__main__":
    sys.exit(main())
