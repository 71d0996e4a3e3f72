"""What a picture model is, and the configuration that names one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dd3g.command.setting import check_ranges, setting

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

    path: str = setting(SHAPES, 'folder of a diffusers pipeline, hub id, or "shapes"')
    revision: str = setting("", "branch, tag or commit on the hub")
    variant: str = setting("", "of the weight files, such as fp16")
    licence: str = setting("", "overrides the model card's")
    dtype: str = setting("auto", "bfloat16 or else float16 on CUDA, float32 on the CPU")
    scheduler: str = setting("", "class name in diffusers, such as DPMSolverMultistepScheduler")
    scheduler_options: dict[str, Any] = setting({}, "override the scheduler's config")
    steps: int = setting(0, "of the sampler", 0)
    guidance: float | None = setting(None, "classifier-free guidance scale", 0)
    negative_prompt: str = setting("", "what no picture should show")
    height: int = setting(0, "pixels, as drawn", 0)
    width: int = setting(0, "likewise", 0)
    call_options: dict[str, Any] = setting({}, "further arguments of the pipeline's call")
    attention: str = setting("sdpa", "or xformers")
    offload: str = setting("none", "or model, sequential: weights wait in CPU memory; slower, far less VRAM")
    vae_tiling: bool = setting(False, "decode large pictures in tiles, which show a little")
    vae_slicing: bool = setting(False, "decode a batch one by one")
    safety_checker: bool = setting(True, "where the pipeline has one; what it flags is rejected as unsafe")

    def __post_init__(self) -> None:
        for name, choices in (("dtype", DTYPES), ("attention", ATTENTIONS), ("offload", OFFLOADS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
        if not self.path:
            raise ValueError("path is empty: give a pipeline's folder, a hub id, or shapes")
        check_ranges(self)
