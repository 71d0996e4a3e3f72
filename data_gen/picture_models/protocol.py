"""What a picture model is, and the configuration that names one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

SHAPES = "shapes"
DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "xformers")
OFFLOADS = ("none", "model", "sequential")


class PictureModel(Protocol):
    """A text-to-image model.

    Args:
        name: what records call it.
        licence: of the model, as its card says; "unknown" when nothing does.
        has_alpha: whether pictures come with a matte of their own.
    """

    name: str
    licence: str
    has_alpha: bool

    def draw(self, texts: list[str], seeds: list[int]) -> Sequence[Image.Image | str]:
        """One picture a text, or why there is none.

        Args:
            texts: prompts.
            seeds: one a text; a picture is a function of its text and seed, whatever else is in the batch.

        Returns:
            RGB pictures, or RGBA with straight alpha when `has_alpha`; in place of a picture that must not
            be kept, one of the codes in `data_gen.filters.rules.REASONS`, such as "unsafe".
        """
        ...


@dataclass
class ModelConfig:
    """Which model draws, and how. A key left at its default takes what the pipeline itself would."""

    path: str = SHAPES  # folder of a diffusers pipeline, hub id, or "shapes"
    revision: str = ""  # branch, tag or commit on the hub
    variant: str = ""  # of the weight files, such as fp16
    licence: str = ""  # overrides the model card's
    dtype: str = "auto"  # bfloat16 or else float16 on CUDA, float32 on the CPU
    scheduler: str = ""  # class name in diffusers, such as DPMSolverMultistepScheduler
    scheduler_options: dict[str, Any] = field(default_factory=dict)  # override the scheduler's config
    steps: int = 0  # of the sampler
    guidance: float | None = None  # classifier-free guidance scale
    negative_prompt: str = ""  # what no picture should show
    height: int = 0  # pixels, as drawn
    width: int = 0  # likewise
    call_options: dict[str, Any] = field(default_factory=dict)  # further arguments of the pipeline's call
    attention: str = "sdpa"  # or xformers
    offload: str = "none"  # "model" or "sequential": weights wait in the CPU's memory, slower, far less VRAM
    vae_tiling: bool = False  # decode pictures beyond the VAE's own size in tiles, which show a little
    vae_slicing: bool = False  # decode a batch one by one
    safety_checker: bool = True  # of the pipelines that have one; what it flags is rejected as unsafe

    def __post_init__(self) -> None:
        for name, choices in (("dtype", DTYPES), ("attention", ATTENTIONS), ("offload", OFFLOADS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
        if not self.path:
            raise ValueError("path is empty: give a pipeline's folder, a hub id, or shapes")
        for name in ("steps", "height", "width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.guidance is not None and self.guidance < 0:
            raise ValueError(f"guidance must be at least 0, got {self.guidance}")
