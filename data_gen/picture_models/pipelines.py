"""Loads a picture model, and draws by any text-to-image pipeline of diffusers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data_gen.filters.rules import UNSAFE
from data_gen.picture_models.pipeline_folders import (
    check_parts,
    find_folder,
    pipeline_class,
    read_index,
    read_licence,
)
from data_gen.picture_models.protocol import SHAPES, ModelConfig, PictureModel
from data_gen.picture_models.shapes import Shapes
from dd3g.command.progress import quiet_libraries
from dd3g.errors import UserError, first_line

# Keys of ModelConfig -> arguments of the pipelines' call.
ARGUMENTS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
}
_OURS = {"prompt", "generator", "output_type", "return_dict", "num_images_per_prompt", *ARGUMENTS.values()}
# Their noise comes from a Brownian tree for the whole batch, so a picture would depend on its neighbours.
_BATCH_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")


@dataclass
class DiffusersModel:
    """A loaded pipeline as a `PictureModel`."""

    pipeline: Any  # one of diffusers' text-to-image pipelines, on its device
    arguments: dict[str, Any]  # of its call, beside prompts and generators; the negative prompt as one string
    name: str  # for records
    licence: str  # likewise

    def __post_init__(self) -> None:
        self.has_alpha = bool(getattr(self.pipeline, "has_alpha", False))

    @quiet_libraries()
    @torch.no_grad()
    def draw(self, texts: list[str], seeds: list[int]) -> list[Image.Image | str]:
        """As `PictureModel.draw`; the same in any batch but for rounding (1-2 grey levels).

        What the pipeline's own safety checker flags, and turns black, is given as the reason "unsafe".

        Raises:
            UserError: when the pipeline refuses its arguments or the device runs out of memory.
        """
        if not texts:
            return []
        arguments = dict(self.arguments)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(texts)
        # Noise is drawn on the CPU, where a seed means the same whatever the device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        try:
            result = self.pipeline(prompt=list(texts), generator=generators, output_type="pil", **arguments)
        except torch.OutOfMemoryError as e:
            raise UserError(
                f"{self.name} ran out of memory drawing {len(texts)} pictures at once: lower batch_size, or "
                "set model.vae_slicing=true or model.offload=model"
            ) from e
        except (ValueError, TypeError, AssertionError) as e:
            raise UserError(f"{self.name} does not draw with these options: {first_line(e)}") from e
        pictures = list(getattr(result, "images", ()))
        if len(pictures) != len(texts) or not all(isinstance(p, Image.Image) for p in pictures):
            raise UserError(
                f"{self.name} gave no pictures: {type(self.pipeline).__name__} is for another task"
            )
        mode = "RGBA" if self.has_alpha else "RGB"
        flags = getattr(result, "nsfw_content_detected", None) or [False] * len(pictures)
        return [UNSAFE if flag else p.convert(mode) for p, flag in zip(pictures, flags, strict=True)]


@quiet_libraries()
def load_model(config: ModelConfig, device: torch.device) -> PictureModel:
    """The model that `config` describes, ready to draw on a device.

    Raises:
        UserError: when it is not a text-to-image pipeline, lacks weights, cannot be had, or does not take a
            key that is set.
    """
    if config.path == SHAPES:
        return Shapes.from_config(config)
    dtype = choose_dtype(config.dtype, device)
    if config.offload != "none" and device.type == "cpu":
        raise UserError(
            f"model.offload={config.offload} needs a GPU to offload from: leave it out on the CPU"
        )
    folder, name = find_folder(config)
    index = read_index(folder)
    leave_out = () if config.safety_checker else ("safety_checker",)
    check_parts(folder, index, config.variant, leave_out)
    cls: Any = pipeline_class(index["_class_name"])
    # All that can be refused is refused before gigabytes are read.
    arguments = call_arguments(cls, config)
    keys: dict[str, Any] = {"variant": config.variant} if config.variant else {}
    if config.scheduler or config.scheduler_options:
        keys["scheduler"] = make_scheduler(folder, index, config)
    if leave_out and leave_out[0] in inspect.signature(cls.__init__).parameters:
        keys |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline = cls.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **keys)
    except Exception as e:  # each part's loader has errors of its own
        missing = f": pip install {e.name}" if isinstance(e, ImportError) and e.name else ""
        raise UserError(f"{folder} cannot be loaded as {cls.__name__} ({first_line(e)}){missing}") from e
    _set_memory(pipeline, config, device)
    pipeline.set_progress_bar_config(disable=True)
    return DiffusersModel(pipeline, arguments, name, config.licence or read_licence(folder))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format for the weights.

    Args:
        name: auto, float32, bfloat16 or float16.
        device: auto takes bfloat16 where a GPU has it, else float16, and float32 on the CPU.

    Raises:
        UserError: for float16 on the CPU.
    """
    if name == "auto":
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if device.type in ("cuda", "mps") else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UserError("model.dtype=float16 needs a GPU: take float32 or bfloat16 on the CPU")
    return getattr(torch, name)


def call_arguments(pipeline: type, config: ModelConfig) -> dict[str, Any]:
    """What the pipeline's call is given beside prompts and generators.

    A key at its default is left out, so the pipeline's own default holds. A key that is set must have an
    effect: one that the call does not take, and a negative prompt without guidance, are refused.

    Raises:
        UserError: naming the key.
    """
    kind = pipeline.__name__
    accepted = inspect.signature(pipeline.__call__).parameters
    default = ModelConfig()
    chosen = {
        a: getattr(config, k) for k, a in ARGUMENTS.items() if getattr(config, k) != getattr(default, k)
    }
    keys = {argument: key for key, argument in ARGUMENTS.items()}
    for argument in chosen:
        if argument not in accepted:
            raise UserError(f"{kind} takes no {argument}: leave out model.{keys[argument]}")
    for option in config.call_options:
        if option in _OURS:
            instead = f"model.{keys[option]}" if option in keys else "another key"
            raise UserError(f"model.call_options.{option} is set by {instead}")
        if option not in accepted:
            raise UserError(f"{kind} takes no {option}: leave out model.call_options.{option}")
    chosen |= config.call_options
    if "negative_prompt" in chosen:
        # FLUX and its kin keep distilled guidance apart from the true one that a negative prompt needs.
        scale = "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale"
        value = chosen.get(scale, accepted[scale].default if scale in accepted else None)
        if isinstance(value, int | float) and value <= 1:
            key = "model.guidance" if scale == "guidance_scale" else f"model.call_options.{scale}"
            raise UserError(
                f"model.negative_prompt has no effect at {scale} {value:g}: leave it out, or set "
                f"{key} above 1"
            )
    return chosen


def make_scheduler(folder: Path, index: dict[str, Any], config: ModelConfig) -> Any:
    """The scheduler that `config` wants, on the noise levels that the pipeline's own is configured for.

    Raises:
        UserError: for a class that diffusers lacks, that does not suit the pipeline, or an unknown key.
    """
    import diffusers

    if "scheduler" not in index:
        raise UserError(f"{folder} has no scheduler to replace: leave out model.scheduler and its options")
    now = index["scheduler"][1]
    name = config.scheduler or now
    if name in _BATCH_NOISE:
        raise UserError(f"with {name} a picture depends on its batch: take DPMSolverMultistepScheduler")
    found = getattr(diffusers, name, None)
    if not inspect.isclass(found) or "Scheduler" not in name:
        same = getattr(diffusers.schedulers, now)._compatibles
        raise UserError(
            f"diffusers has no scheduler {name!r}; for this model: {', '.join(sorted(same)) or now}"
        )
    cls: Any = found
    # A flow model's noise levels mean nothing to the other schedulers, but some can be configured for them.
    suited = now.startswith("FlowMatch") and config.scheduler_options.get("use_flow_sigmas")
    if name.startswith("FlowMatch") != now.startswith("FlowMatch") and not suited:
        raise UserError(f"the scheduler {name} does not suit this model, which comes with {now}")
    unknown = sorted(set(config.scheduler_options) - set(inspect.signature(cls.__init__).parameters))
    if unknown:
        raise UserError(
            f"{name} takes no {', '.join(unknown)}: leave out model.scheduler_options.{unknown[0]}"
        )
    try:
        levels = cls.load_config(str(folder), subfolder="scheduler")
        return cls.from_config(levels, **config.scheduler_options)
    except (OSError, ImportError, ValueError, NotImplementedError) as e:
        raise UserError(f"the scheduler {name} cannot be made: {first_line(e)}") from e


def _set_memory(pipeline: Any, config: ModelConfig, device: torch.device) -> None:
    """Attention kernel, VAE in pieces, and where the weights wait."""
    for key, method in (("vae_tiling", "enable_tiling"), ("vae_slicing", "enable_slicing")):
        if getattr(config, key):
            if not hasattr(getattr(pipeline, "vae", None), method):
                raise UserError(
                    f"{type(pipeline).__name__} cannot {method.replace('_', ' ')}: leave out model.{key}"
                )
            getattr(pipeline.vae, method)()
    try:
        if config.attention == "xformers":
            pipeline.enable_xformers_memory_efficient_attention()
    except Exception as e:
        raise UserError(
            f"model.attention=xformers cannot be used here ({first_line(e)}): leave it out, and PyTorch's "
            "own attention is used"
        ) from e
    try:
        if config.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif config.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except torch.OutOfMemoryError as e:
        raise UserError(
            f"the model does not fit on {device}: set model.offload=model, or model.dtype=bfloat16"
        ) from e
