"""The generator: noise, cameras and a picture in, Gaussians out, in one pass."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import FOVY, RADIUS, Cameras
from dd3g.errors import UserError, first_line
from dd3g.gaussians import Gaussians
from dd3g.nn import PictureEncoder, correspond_rgba
from dd3g.nn.checkpoint import CONFIG, WEIGHTS, build, load_weights, read_config, save_folder
from dd3g.pepd.pattern_extraction import CopiedTokens, PatternExtraction, type_embedding
from dd3g.pepd.progressive_decoding import Bounds, Frame, ProgressiveDecoding
from dd3g.setting import setting

SHIPPED = Path(__file__).parent.parent / "weights"
CARD = """---
library_name: dd3g
pipeline_tag: image-to-3d
---
One picture to 3D Gaussians in one pass: `dd3g.Generator.from_pretrained("{repo}").generate("picture.png")`.
"""


@dataclass
class GeneratorConfig:
    """Shape of a generator; one code path for all sizes, and each ablation is one of these switches."""

    size: int = setting(64, "pixels of the picture; the token grid has side size / 8")
    latent_shape: tuple[int, int, int, int] = setting((4, 64, 16, 16), "the teacher's noise (V, C, h, w)")
    width: int = setting(256, "channels of a token")
    depth: int = setting(3, "0: phase 1 off")
    heads: int = setting(4, "of the attention")
    residual_hidden: int = setting(64, "channels inside a residual block")
    fine: int = setting(16, "channels of the picture's map at full size")
    mid: int = setting(64, "channels of the picture's map at size / 4")
    blocks: tuple[int, int, int] = setting((1, 1, 1), "of the decoder, before each of its three taps")
    order: Literal["progressive", "swapped", "one_shot"] = setting("progressive", "or, as ablations, another")
    use_noise: bool = setting(True, "False: the noise is not looked at (an ablation)")
    copy_tokens: bool = setting(True, "tokens and Gaussians straight from the picture")
    expansion: int = setting(4, "Gaussians per token side of an imagined frame")
    copy_expansion: int = setting(8, "one Gaussian per pixel of the picture")
    head_hidden: int = setting(32, "channels inside a pixel head")
    detach_taps: bool = setting(False, "later attributes send no gradient through earlier ones")
    pt_mode: Literal["plain", "knn"] = setting("plain", "knn: behind the position tap, nearest tokens only")
    neighbours: int = setting(16, "of a token, for pt_mode knn")
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8:
            raise ValueError(f"generator: size {self.size} must be a multiple of 8")
        square = min(self.latent_shape) > 0 and self.latent_shape[3] == self.latent_shape[2]
        if self.noise_ratio not in (1, 2) or not square:
            sides = " or ".join(str(self.size // 8 * r) for r in (1, 2))
            raise ValueError(
                f"generator: latent_shape {tuple(self.latent_shape)} must be (views, channels, side, side), "
                f"with side {sides} for size {self.size}"
            )
        if self.heads < 1 or self.width % 8 or self.width % self.heads:
            raise ValueError(
                f"generator: width {self.width} must be a multiple of 8 and of heads {self.heads}"
            )
        if self.depth < 0 or min(self.blocks) < 0 or self.neighbours < 1:
            raise ValueError(
                f"generator: depth {self.depth} and blocks {list(self.blocks)} must be 0 or more, neighbours "
                f"{self.neighbours} 1 or more"
            )
        for name in ("width", "residual_hidden", "fine", "mid", "head_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator: {name} {getattr(self, name)} must be 1 or more")
        if not {self.expansion, self.copy_expansion} <= {2, 4, 8}:
            raise ValueError(
                f"generator: expansion {self.expansion} and copy_expansion {self.copy_expansion} must be "
                "2, 4 or 8"
            )

    @property
    def noise_ratio(self) -> float:
        """Side of the noise by that of the token grid: 1 for latents at size / 8, 2 at size / 4."""
        return self.latent_shape[2] / (self.size // 8)


class Generator(nn.Module):
    """PEPD: pattern extraction, then progressive decoding (DD3G, arXiv 2504.00457; its sizes are not known).

    Example:
        >>> Generator.from_pretrained("nano").generate("chair.png", seed=0).save("chair.ply")
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or GeneratorConfig()
        self.picture = PictureEncoder(c.width, c.size, c.fine, c.mid)
        self.extraction = PatternExtraction(
            c.latent_shape[1],
            int(c.noise_ratio),
            c.width,
            c.depth,
            c.heads,
            c.residual_hidden,
            c.use_noise,
        )
        self.copied = CopiedTokens(c.width) if c.copy_tokens else None
        self.kind = type_embedding(c.width)
        pixel = 2 * RADIUS * math.tan(math.radians(FOVY) / 2) / c.size  # world size of a pixel at the object
        spread = 8 / c.expansion  # pixels between the Gaussians of an imagined frame
        self.decoding = ProgressiveDecoding(
            c.width,
            c.heads,
            tuple(c.blocks),  # type: ignore[arg-type]
            c.order,
            (c.expansion, c.copy_expansion if c.copy_tokens else None),
            (4, 4 + c.fine),
            c.head_hidden,
            c.detach_taps,
            c.bounds,
            (0.6 * spread * pixel, 0.6 * 8 / c.copy_expansion * pixel),
            c.neighbours if c.pt_mode == "knn" else 0,
        )

    @property
    def rig(self) -> Cameras:
        """Cameras (V,) that the generator imagines from, the teacher's."""
        return Cameras.default_rig(self.config.size, self.config.latent_shape[0])

    def frames(self, noise: Tensor, cameras: Cameras, image: Tensor) -> list[Gaussians]:
        """Like `forward`, with imagined and copied Gaussians apart: (B, V*S*S), then (B, S*S)."""
        c = self.config
        fine, _, coarse, pooled = self.picture(image)
        imagined = self.extraction(noise, cameras, coarse, pooled) + self.kind[0, :, None, None]
        small = resize(image, c.size // 8 * c.expansion)
        frames = [Frame(imagined, correspond_rgba(small, cameras.azimuths), cameras)]
        if self.copied is not None:
            camera = cameras[:, :1]
            tokens = self.copied(cameras[:, 0], coarse)[:, None] + self.kind[1, :, None, None]
            pixels = resize(image, c.size // 8 * c.copy_expansion)
            prior = torch.cat([pixels, F.avg_pool2d(fine, 8 // c.copy_expansion)], 1)
            frames.append(Frame(tokens, prior[:, None], camera, gated=True))
        return self.decoding(frames)

    def forward(self, noise: Tensor, cameras: Cameras, image: Tensor) -> Gaussians:
        """One pass.

        Args:
            noise: (B, V, C, h, w) standard normal, in the teacher's latent shape.
            cameras: (B, V) or (V,) the teacher's cameras; view 0 is the input's, at azimuth 0.
            image: (B, 4, S, S) straight RGBA in 0..1.

        Returns:
            (B, N) Gaussians in the world of the cameras.
        """
        if cameras.viewmats.dim() == 3:
            B, V = noise.shape[:2]
            viewmats, Ks = cameras.viewmats.expand(B, V, 4, 4), cameras.Ks.expand(B, V, 3, 3)
            cameras = replace(cameras, viewmats=viewmats, Ks=Ks)
        return Gaussians.cat(self.frames(noise, cameras, image))

    @torch.no_grad()
    def generate(self, picture: Any, seed: int = 0) -> Gaussians:
        """Picture to Gaussians, the whole way for one user.

        Args:
            picture: a path, a PIL image, a `Picture`, or straight RGBA (4, S, S) framed as in training.
            seed: draws the noise, on the CPU: a seed means the same on every device.

        Returns:
            (N,) Gaussians on the generator's device.
        """
        from dd3g.picture import Picture, load_image

        if isinstance(picture, Tensor):
            rgba = picture
        else:
            rgba = (picture if isinstance(picture, Picture) else load_image(picture)).rgba
        device = self.kind.device
        image = resize(rgba[None].float(), self.config.size).to(device)
        noise = torch.randn(1, *self.config.latent_shape, generator=torch.Generator().manual_seed(seed))
        self.eval()
        return self(noise.to(device), self.rig.to(device), image)[0]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors; `dtype` is the stored type of the weights."""
        return save_folder(folder, self, {"kind": "generator", **asdict(self.config)}, dtype)

    def push_to_hub(self, repo: str, token: str | None = None, private: bool | None = None) -> str:
        """Upload config, float16 weights and a card to the hub, where `from_pretrained(repo)` finds them.

        Args:
            repo: `owner/name`; made when missing.
            token: of the hub; None takes the one that `hf auth login` stored.
            private: for a new repository; None is the owner's default.

        Returns:
            Address of the upload.

        Raises:
            UserError: when the hub refuses or cannot be reached.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, torch.float16)
            Path(folder, "README.md").write_text(CARD.format(repo=repo))
            try:
                api.create_repo(repo, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo, folder_path=folder))
            except Exception as error:  # as in `find_weights`
                raise UserError(f"{repo}: the hub did not take the weights ({first_line(error)})") from error

    @classmethod
    def from_pretrained(cls, name: str | Path = "nano", device: str | torch.device = "cpu") -> Generator:
        """Load a generator by the name of shipped weights, a local folder, or a hub id `owner/name`.

        Raises:
            UserError: when nothing is found under that name, or what is found is not a dd3g generator.
        """
        folder = find_weights(name)
        config = read_config(folder, "generator")
        config["bounds"] = build(folder, config.get("bounds", {}), Bounds, lambda bounds: bounds)
        model = build(folder, config, GeneratorConfig, cls)
        load_weights(folder, model)
        return model.to(device).eval()


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json") if '"generator"' in p.read_text())


def find_weights(name: str | Path) -> Path:
    """Folder of a shipped name, a local folder, or a hub id (downloaded as safetensors and JSON only)."""
    path = Path(name)
    try:
        if (SHIPPED / name / CONFIG).is_file():
            return SHIPPED / name
        if path.is_dir():
            return path
        if path.exists():
            if path.name in (CONFIG, WEIGHTS):
                return path.parent
            raise UserError(
                f"{name}: weights are a folder with {CONFIG} and {WEIGHTS}; other files, pickles above all, "
                "are never read: give such a folder"
            )
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
        except Exception as error:  # the hub client raises a family of its own for network, rights and names
            reason = first_line(error)
            raise UserError(f"{name}: no such folder, and the hub did not give it ({reason})") from error
    raise UserError(
        f"{name}: no such weights; shipped are {', '.join(shipped())}, or give a folder or a hub id"
    )


def resize(rgba: Tensor, size: int) -> Tensor:
    """Area-resize straight RGBA (B, 4, H, W) to a square; colours are averaged by their alpha."""
    if rgba.shape[-2:] == (size, size):
        return rgba
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    small = F.interpolate(premultiplied, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return torch.cat([(small[:, :3] / small[:, 3:].clamp(min=1e-6)).clamp(0, 1), small[:, 3:]], 1)
