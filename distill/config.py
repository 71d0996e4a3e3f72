"""What trainers are configured by, and `dd3g simulate`; a command shows it without waiting for torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dd3g.command.setting import check_ranges, setting

BELIEVED = 0.5  # confidence from which training uses a matte's alpha


@dataclass
class StartConfig:
    """Where a generator's phase 1 comes from."""

    teacher: str = setting(
        "", "ImageDream: NAME[@revision], hub id or folder; empty: the compact stack, untrained"
    )
    steps: int = setting(50, "of the quadruples: decides at which noise level the network is called", 1, 1000)
    top_only: bool = setting(False, "only its level at full resolution")
    lower: Literal["frozen", "low_rank", "trained"] = setting(
        "frozen", "how the levels below learn: frozen, low_rank or trained"
    )
    rank: int = setting(16, "of low-rank changes", 1)
    lower_rate: float = setting(0.1, "share of the learning rate for lower levels that are trained", 0, 1)

    def __post_init__(self) -> None:
        check_ranges(self, "start.")


@dataclass
class ObjectiveConfig:
    """Weights of the terms; 0 leaves a term out."""

    bootstrap: float = setting(0.15, "first share of the steps: terms per Gaussian, no renders", 0, 1)
    direct_floor: float = setting(0.1, "what the per-Gaussian terms fall to by mid-training, and keep", 0)
    color: float = setting(8.0, "squared error of renders", 0)
    color_l1: float = setting(1.0, "absolute error of renders", 0)
    alpha: float = setting(2.0, "squared error of rendered alpha", 0)
    hole_weight: float = setting(2.0, "a hole inside the mask costs this many times a leak outside", 0)
    cover: float = setting(0.0, "squared lack of alpha below 0.65 inside the mask: closes holes", 0)
    structure: float = setting(0.5, "L1 of image gradients at three scales", 0)
    perceptual: float = setting(0.0, "VGG16 features; needs `dd3g models fetch hed_vgg16`", 0)
    antialiased: bool = setting(True, "else Gaussians shrink below a pixel, where the dilation hides them")
    input_weight: float = setting(2.0, "of the input view, relative to the other targets", 0)
    direct_alpha: float = setting(0.5, "opacity of each Gaussian against the alpha of its pixel", 0)
    direct_depth: float = setting(4.0, "its depth", 0)
    direct_color: float = setting(1.0, "its colour", 0)
    implicit: float = setting(0.0, "lambda of the verification", 0)
    implicit_form: Literal["score", "literal", "x0"] = setting("x0", "x0, score or literal; see Verifier")
    implicit_guidance: float = setting(1.0, "classifier-free guidance of the verifier; 1 is none", 0)
    implicit_shared: bool = setting(False, "the verifier uses the student's frozen weights: `start.lower`")
    implicit_every: int = setting(1, "verify at every n-th step only", 1)
    ramp: Literal["sigmoid", "constant"] = setting(
        "sigmoid", "of the verification over the run: sigmoid or constant"
    )
    ramp_center: float = setting(0.3, "share of the steps at which the sigmoid stands at one half", 0)
    ramp_width: float = setting(0.05, "of the sigmoid, share of the steps", 0)

    def __post_init__(self) -> None:
        check_ranges(self, "objective.")


@dataclass
class CompactConfig:
    """Shape of a compact teacher."""

    size: int = setting(64, "pixels; the token grid has side size / 8")
    views: int = setting(4, "a set of the teacher's, around the object")
    width: int = setting(256, "channels of a token", 1)
    depth: int = setting(5, "pairs of residual and multi-view transformer blocks", 0)
    heads: int = setting(4, "of the attention", 1)
    residual_hidden: int = setting(64, "channels inside a residual block", 1)
    fine: int = setting(16, "channels of the picture's map at full size", 1)
    mid: int = setting(96, "channels of the maps at size / 4", 1)
    guidance_scale: float = setting(1.5, "pixels saturate early under classifier-free guidance")
    steps: int = setting(10, "of the sampler, where none are named", 1)

    def __post_init__(self) -> None:
        check_ranges(self, "teacher: ")
        if self.size < 8 or self.size % 8:
            raise ValueError(f"teacher: size {self.size} must be a multiple of 8")
        if self.width % 8 or self.width % self.heads:
            raise ValueError(f"teacher: width {self.width} must be a multiple of 8 and of heads {self.heads}")


@dataclass
class ShapeObjectiveConfig:
    """Weights of the terms; 0 leaves a term out."""

    bce: float = setting(1.0, "cross-entropy of occupancy along the input's rays, inside its mask")
    dice: float = setting(2.0, "1 - overlap of the same: thin parts weigh as much as their share")
    silhouette: float = setting(
        2.0, "cross-entropy of other views' masks by the largest logit along their rays"
    )
    silhouette_dice: float = setting(4.0, "1 - overlap of the same")
    color: float = setting(1.0, "absolute error of the colours that other views see")
    steps: int = setting(64, "points along a ray of another view", 1)

    def __post_init__(self) -> None:
        check_ranges(self, "objective.")


@dataclass(frozen=True)
class Simulation:
    """What `dd3g simulate` makes of each picture."""

    steps: int | None = setting(None, "DDIM steps; default: the teacher's.", 1, 1000)
    guidance_scale: float | None = setting(
        None, "Classifier-free guidance; default: the teacher's, 1 is none."
    )
    seeds: int = setting(2, "Noises for each picture.", 1, 100)
    seed: int = setting(0, "Seed of the order, the views and the noises.")
    batch_size: int = setting(8, "Quadruples made at once.", 1)
    per_shard: int = setting(64, "Quadruples in one shard.", 1)
    limit: int | None = setting(None, "Use only this many of the pictures.", 1)
    matte: str = setting(
        "auto",
        "Background removal for pictures without alpha: auto (u2netp), or a rembg model; none: they are "
        "reported and left out.",
    )
    view_matte: str = setting(
        "auto",
        "Mattes of views that a teacher draws without alpha: ground (its colour, where it is flat), a model "
        "as in --matte, ground+MODEL, or none; auto: ground, then u2netp where it was fetched.",
    )
    captions: bool = setting(True, "Give the teacher the captions that shards of pictures hold.")
    max_minutes: float = setting(0.0, "Start no shard after this long; 0: no limit.", 0)


@dataclass(frozen=True)
class TeacherOptions:
    """How `dd3g simulate` and its `verify` run a teacher."""

    elevation: float | None = setting(
        None, "Elevation in degrees of pictures that record none; for ImageDream."
    )
    precision: str = setting(
        "auto", "Precision of a published teacher: auto (float16 on CUDA), float32, bfloat16, float16."
    )
    attention: str = setting("sdpa", "Attention of a published teacher: sdpa (PyTorch's own) or xformers.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps.")
