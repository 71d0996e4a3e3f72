"""A small text-to-RGBA diffusion model for machines without a hub: no tokenizer, no VAE, 15 MB.

A text is a bag of hashed words. The network denoises the picture itself, in patches of 4 x 4 pixels with
attention between patches of 8 x 8, and is wrapped as a diffusers pipeline like any other.
"""

from __future__ import annotations

import re
import sys
import zlib
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from dd3g.diffusion import ClassifierFree, Schedule, sample
from dd3g.nn.blocks import MultiViewTransformer, ResidualBlock, timestep_embedding

sys.modules["data_gen.tiny"] = sys.modules[__name__]  # its name in pipelines that were saved before it moved
WORDS, PARTS = 20, 20  # words read of a text; of each: itself, its group, and runs of its letters
HAZE = 0.02  # alpha that is as good as none, or as good as all
EMPTY = frozenset(
    "a an the this that these those of on in at with without and or to for from by as its it is are one two "
    "single isolated photo picture image view whole full body object light soft even warm studio".split()
)
BACKGROUNDS = frozenset(("background", "backdrop"))
BEFORE = frozenset(("on", "against", "over", "with", "before"))


def words_of(text: str) -> list[str]:
    """The words of a text that say something, each once, in order; at most `WORDS`.

    What describes the background is left out: a white one must not make the object white.
    """
    kept: list[str] = []
    for clause in re.split(r"[,.;:\n]", text.lower()):
        words = re.findall(r"[a-z]+", clause)
        end = next((i for i, w in enumerate(words) if w in BACKGROUNDS), -1)
        start = max((i for i in range(end) if words[i] in BEFORE), default=0)
        kept += words[:start] + words[end + 1 :]
    return [w for w in dict.fromkeys(kept) if len(w) > 1 and w not in EMPTY][:WORDS]


def encode_texts(texts: list[str], buckets: int, lexicon: dict[str, str] | None = None) -> Tensor:
    """Texts as rows of a table of hashed words.

    Args:
        texts: any; only words of latin letters count, and their order does not.
        buckets: rows of the table; row 0 stays zero.
        lexicon: word -> group; words that were never seen then still say what kind of thing is meant.

    Returns:
        (B, WORDS, PARTS) int64, padded with 0.
    """
    codes = torch.zeros(len(texts), WORDS, PARTS, dtype=torch.long)
    for row, text in zip(codes, texts, strict=True):
        for slot, word in zip(row, words_of(text), strict=False):
            group = (lexicon or {}).get(word)
            parts: tuple[int, ...] = (_hash(word, buckets), _hash(f"group {group}", buckets) if group else 0)
            parts += _runs(word, buckets)
            slot[: len(parts)] = torch.tensor(parts)
    return codes


@lru_cache(maxsize=100_000)
def _hash(part: str, buckets: int) -> int:
    return zlib.crc32(part.encode()) % (buckets - 1) + 1


@lru_cache(maxsize=20_000)
def _runs(word: str, buckets: int) -> tuple[int, ...]:
    """Runs of three and four letters, as in fastText: "trees" and "treetop" share what "tree" has learnt."""
    marked = f"<{word}>"
    runs = [marked[i : i + n] for n in (4, 3) for i in range(len(marked) - n + 1)]
    return tuple(_hash(run, buckets) for run in runs[: PARTS - 2])


def encode(rgba: Tensor) -> Tensor:
    """Straight RGBA (..., 4, S, S) in 0..1 -> colour about grey times alpha, and alpha, both in -1..1."""
    alpha = rgba[..., 3:, :, :]
    return torch.cat([(2 * rgba[..., :3, :, :] - 1) * alpha, 2 * alpha - 1], -3)


def decode(x: Tensor) -> Tensor:
    """The inverse of `encode`; the colour fades to grey where there is nothing."""
    alpha = ((x[..., 3:, :, :] + 1) / 2).clamp(0, 1)
    color = x[..., :3, :, :] * alpha / (alpha.square() + 1e-4)
    return torch.cat([((color + 1) / 2).clamp(0, 1), alpha], -3)


class TinyDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """x0-prediction on encoded pictures; implements `dd3g.diffusion.Denoiser`.

    Args:
        lexicon: word -> group, see `encode_texts`; the others are those of `data_gen.train_tiny.TinyShape`.
    """

    prediction: Literal["x0"] = "x0"

    @register_to_config
    def __init__(
        self,
        size: int = 64,
        width: int = 256,
        depth: int = 5,
        heads: int = 4,
        hidden: int = 64,
        mid: int = 96,
        buckets: int = 8192,
        word_width: int = 128,
        lexicon: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        if size % 8 or width % 8 or width % heads or mid % 8 or buckets < 2:
            raise ValueError(
                f"size {size}, width {width} and mid {mid} must be multiples of 8, width also of heads "
                f"{heads}, and buckets {buckets} at least 2"
            )
        # Zeros: a word that `learn` never saw means nothing.
        self.words = nn.Parameter(torch.zeros(buckets, word_width))
        self.text = nn.Sequential(nn.Linear(word_width, width), nn.SiLU(), nn.Linear(width, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Conv2d(64, mid, 3, padding=1)
        self.down = nn.Sequential(nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * mid, width, 1))
        self.place = nn.Parameter(torch.randn(1, width, size // 8, size // 8) * 0.02)
        self.residual = nn.ModuleList(ResidualBlock(width, width, hidden) for _ in range(depth))
        self.transformer = nn.ModuleList(MultiViewTransformer(width, heads) for _ in range(depth))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * mid, 1), nn.PixelShuffle(2))
        self.join = nn.Conv2d(2 * mid, mid, 3, padding=1)
        self.fine = ResidualBlock(mid, width, mid)
        last = nn.Conv2d(mid, 64, 3, padding=1)
        self.out = nn.Sequential(nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """One network call.

        Args:
            x_t: (B, 4, S, S) noisy encoded pictures.
            t: (B,) schedule index.
            condition: (B, WORDS, PARTS) from `encode_texts`; zeros are the unconditional form.

        Returns:
            (B, 4, S, S) predicted x0, float32.
        """
        parts = F.embedding(condition, self.words)  # (B, WORDS, PARTS, E)
        runs = (condition[..., 2:] > 0).sum(-1, keepdim=True).clamp(min=1)  # (B, WORDS, 1)
        words = parts[:, :, 0] + parts[:, :, 1] + parts[:, :, 2:].sum(2) / runs  # (B, WORDS, E)
        emb = self.text(words.sum(1))
        emb = emb + self.time(timestep_embedding(t, self.config["width"]).to(emb.dtype))  # (B, W)

        stem = self.stem(F.pixel_unshuffle(x_t.to(self.dtype), 4))  # (B, m, S/4, S/4)
        x = self.down(stem) + self.place + emb[..., None, None]  # (B, W, S/8, S/8)
        for residual, transformer in zip(self.residual, self.transformer, strict=True):
            x = residual(x, emb)
            x = transformer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[-2:])
        x = self.fine(self.join(torch.cat([self.up(x), stem], 1)), emb)
        # Not squashed: most of alpha is none, and a sigmoid that has learnt so much learns nothing more.
        return F.pixel_shuffle(self.out(x), 4).float()

    def condition(self, texts: list[str]) -> Tensor:
        """Texts -> (B, WORDS, PARTS) codes on the model's device."""
        return encode_texts(texts, self.config["buckets"], self.config["lexicon"]).to(self.device)

    @torch.no_grad()
    def learn(self, texts: list[str]) -> None:
        """Give the words of these texts random vectors, from which training starts; all others stay zero."""
        rows = self.condition(texts).unique()
        rows = rows[rows > 0]
        self.words[rows] = 0.25 * torch.randn(len(rows), self.words.shape[1]).to(self.words)


def scheduler() -> DDIMScheduler:
    """The noise levels that the model is trained and drawn with."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
    )


class TinyRgbaPipeline(DiffusionPipeline):
    """Text to RGBA pictures with straight alpha; `save_pretrained` and `from_pretrained` are diffusers' own.

    Args:
        denoiser: the network.
        scheduler: its noise levels; sampling is DDIM with eta 0.
    """

    denoiser: TinyDenoiser
    scheduler: DDIMScheduler
    model_cpu_offload_seq: Any = "denoiser"
    has_alpha = True

    def __init__(self, denoiser: TinyDenoiser, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw one picture a prompt.

        Args:
            prompt: texts.
            negative_prompt: what guidance leads away from, one for all or one a text; nothing by default.
            height: of the result in pixels; what is not the model's own size is resampled.
            width: likewise.
            num_inference_steps: DDIM steps.
            guidance_scale: of classifier-free guidance; 1 is none.
            generator: source of the noise; with one a picture, a picture is a function of its text and its
                generator, whatever else is in the batch.
            output_type: "pil", or "np" (B, H, W, 4) or "pt" (B, 4, H, W), both in 0..1.
            return_dict: wrap the pictures in an `ImagePipelineOutput`; else a tuple.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        refused = [negative_prompt or ""] if not isinstance(negative_prompt, list) else negative_prompt
        if len(refused) not in (1, len(texts)):
            raise ValueError(
                f"{len(refused)} negative prompts for {len(texts)} prompts; give one, or one each"
            )
        if isinstance(generator, list) and len(generator) != len(texts):
            raise ValueError(f"{len(generator)} generators for {len(texts)} prompts; give one, or one each")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be pil, np or pt, got {output_type!r}")
        if not isinstance(self.scheduler, DDIMScheduler):
            raise ValueError(f"this model is drawn by DDIM, not by {type(self.scheduler).__name__}")
        device, size = self._execution_device, self.denoiser.config["size"]
        sources = generator if isinstance(generator, list) else [generator] * len(texts)
        noise = torch.stack(  # on the CPU, unless a generator lives elsewhere
            [
                torch.randn(4, size, size, generator=g, device=g.device if g else "cpu").to(device)
                for g in sources
            ]
        )
        condition = self.denoiser.condition(texts).to(device)
        null = self.denoiser.condition(refused).to(device).expand_as(condition)
        guided = ClassifierFree(self.denoiser, null, guidance_scale)
        schedule = Schedule.from_config(dict(self.scheduler.config))
        plan = schedule.plan(num_inference_steps)
        with self.progress_bar(total=len(plan)) as bar:
            x = sample(guided, schedule, noise, plan, condition, clip=1.0, record=lambda _: bar.update()).x0
        self.maybe_free_model_hooks()
        shape = (height or size, width or size)
        if shape != (size, size):  # before the colour is divided by alpha, or edges would take up grey
            x = F.interpolate(x, shape, mode="bicubic", antialias=True).clamp(-1, 1)
        rgba = decode(x).cpu()
        rgba[:, 3] = ((rgba[:, 3] - HAZE) / (1 - 2 * HAZE)).clamp(0, 1)
        images: Any = rgba
        if output_type != "pt":
            images = rgba.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images) if return_dict else (images,)
