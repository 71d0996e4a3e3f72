"""The generator: noise, cameras and a picture in, Gaussians out, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd3g.cameras import ELEVATION, FOVY, RADIUS, Cameras
from dd3g.errors import UserError, first_line
from dd3g.io.splats import Gaussians
from dd3g.nn.blocks import PictureEncoder, correspond_rgba
from dd3g.nn.checkpoint import CARD, build, find_device, find_weights, load_weights, read_config, save_folder
from dd3g.pepd.captured import CapturedPass
from dd3g.pepd.config import GeneratorConfig
from dd3g.pepd.elevation import degrees_of
from dd3g.pepd.frustum import resize
from dd3g.pepd.occupancy import OccupancyNet, Shape
from dd3g.pepd.pattern_extraction import CopiedTokens, PatternExtraction
from dd3g.pepd.perspective import seen_under
from dd3g.pepd.progressive_decoding import Frame, ProgressiveDecoding
from dd3g.pepd.solid import solidify
from dd3g.pepd.teacher_extraction import TeacherExtraction
from dd3g.picture.framing import check_how
from dd3g.whole import whole_seed


class Generator(nn.Module):
    """PEPD: pattern extraction, then progressive decoding (DD3G, arXiv 2504.00457; its sizes are not known).

    Example:
        >>> Generator.from_pretrained("nano").generate("chair.png", seed=0).save("chair.ply")
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or GeneratorConfig()
        self.picture = PictureEncoder(c.width, c.size, c.fine, c.mid)
        self.extraction = TeacherExtraction(c) if c.teacher else PatternExtraction(c)
        self.copied = CopiedTokens(c.width) if c.copy_tokens else None
        self.type_embedding = nn.Parameter(torch.randn(2, c.width) * 0.02)  # of imagined and copied tokens
        self.decoding = ProgressiveDecoding(c)
        shapes = [OccupancyNet(c.shape) for _ in range(c.shape_networks)] if c.shape else []
        self.shape = nn.ModuleList(shapes)  # trained apart
        self.register_load_state_dict_pre_hook(_with_names_of_today)

        self.captured: CapturedPass | None = None

    @property
    def rig(self) -> Cameras:
        """Cameras (V,) that the generator imagines from, the teacher's."""
        return self.config.rig_at(ELEVATION)

    def forward(
        self,
        noise: Tensor,
        cameras: Cameras,
        image: Tensor,
        apart: bool = False,
        front: Cameras | None = None,
    ) -> Gaussians | list[Gaussians]:
        """One pass.

        noise, cameras, image -> imagined tokens (B, V, W, h, w) -.
        cameras, image        -> copied tokens   (B, 1, W, h, w) --> decoding -> Gaussians (B, N)

        Args:
            noise: (B, V, C, h, w) standard normal, in the teacher's latent shape.
            cameras: (B, V) or (V,) the teacher's cameras; azimuths count from the input's.
            image: (B, 4, S, S) straight RGBA in 0..1.
            apart: keep imagined and copied Gaussians apart: (B, V*S*S), then (B, S*S), each pixel by pixel.
            front: (B,) or (1,) the input's camera; None: the first of the teacher's is.

        Returns:
            (B, N) Gaussians in the world of the cameras.
        """
        c = self.config
        cameras = cameras.expand(*noise.shape[:2])
        front = cameras[:, 0] if front is None else front.expand(len(image))
        fine, _, coarse, pooled = self.picture(image)
        seen = (image,) if c.teacher else (coarse, pooled)
        imagined = self.extraction(noise, cameras, *seen) + self.type_embedding[0, :, None, None]
        small = resize(image, c.size // 8 * c.expansion)
        prior = correspond_rgba(small, cameras.azimuths)
        frames = [Frame(imagined, prior, cameras, further=c.distance - RADIUS)]
        if self.copied is not None:
            tokens = self.copied(front, coarse)[:, None] + self.type_embedding[1, :, None, None]
            pixels = resize(image, c.size // 8 * c.copy_expansion)
            prior = torch.cat([pixels, F.avg_pool2d(fine, 8 // c.copy_expansion)], 1)
            frames.append(Frame(tokens, prior[:, None], front[:, None], gated=True))
        gaussians = self.decoding(frames)
        return gaussians if apart else Gaussians.cat(gaussians)

    def compiled(self, dtype: torch.dtype | None = None) -> Generator:
        """Itself; on CUDA, `generate` launches its pass at once from now on, after a warm-up of some passes.

        Worth it for many pictures. On other devices it changes nothing.

        Args:
            dtype: that the network multiplies in: bfloat16 for speed; None is that of its weights.
        """
        if self.type_embedding.device.type == "cuda" and (
            self.captured is None or self.captured.dtype != dtype
        ):
            self.captured = CapturedPass(self.eval(), dtype=dtype)
        return self

    @torch.no_grad()
    def generate(
        self,
        picture: Any,
        seed: int = 0,
        elevation: float | str = ELEVATION,
        raw: bool = False,
        refine: float = 0.0,
        matte: str = "auto",
        mask: Any = None,
        fov: float = FOVY,
        noise: Tensor | None = None,
    ) -> Gaussians:
        """Picture to Gaussians, the whole way for one user; what is doubtful becomes a Python warning.

        Args:
            picture: anything that `dd3g.load_image` reads, a `Picture`, or straight RGBA (4, S, S) framed as
                in training.
            seed: draws the noise, on the CPU: a seed means the same on every device.
            elevation: degrees by which the picture was taken from above; training saw -10 to 40. "auto" is
                what `dd3g.pepd.elevation` estimates, -10 to 50.
            raw: keep the network's soft splats instead of a solid body of opaque discs; see `solidify`.
            refine: seconds for which the visible discs are fitted to the picture.
            matte: as in `dd3g.load_image`.
            mask: as in `dd3g.load_image`.
            fov: degrees that the framed picture spans, see `seen_under`; less for a photo from far away.
            noise: (V, C, h, w) in place of that of the seed.

        Returns:
            (N,) Gaussians on the generator's device.

        Raises:
            UserError: when the picture cannot be read or shows nothing, the seed is not a whole number, an
                option is out of range, or there is no solid body to refine.
        """
        from dd3g.picture import as_picture

        seed = whole_seed(seed)
        check_how(elevation, fov, raw, refine)
        if (default := torch.get_default_dtype()) != torch.float32:
            raise UserError(
                f"torch's default is {default}, and the generator works in float32: "
                "torch.set_default_dtype(torch.float32), also before its weights are loaded"
            )
        if refine and self.config.surface == "off":
            raise UserError(
                "refine fits the discs of a solid body, and this generator makes none: leave it out"
            )
        rgba = as_picture(picture, matte, mask).rgba.float()
        degrees = degrees_of(elevation, rgba)
        device = self.type_embedding.device
        if (kept := self.type_embedding.dtype) != torch.float32:
            raise UserError(
                f"this generator's weights are {kept}, and it works in float32: call .float(), and "
                "compiled(dtype=torch.bfloat16) for speed on CUDA"
            )
        image = resize(rgba[None], self.config.size).to(device)
        if noise is None:
            drawn = torch.Generator().manual_seed(seed)
            noise = torch.randn(self.config.latent_shape, generator=drawn, dtype=torch.float32, device="cpu")
        noise = torch.as_tensor(noise, dtype=torch.float32)
        if tuple(noise.shape) != tuple(self.config.latent_shape):
            raise UserError(
                f"noise of shape {tuple(noise.shape)}: this generator takes {tuple(self.config.latent_shape)}"
            )
        rig, front = self.config.rig_at(degrees), Cameras.orbit([0.0], degrees, self.config.size)
        self.eval()
        inputs = noise[None].to(device), rig.to(device), image
        captured = self.captured
        passes = captured if captured is not None and captured.fits(*inputs) else self
        gaussians = passes(*inputs, front=front.to(device))[0]
        if not raw and self.config.surface != "off":
            networks = cast(Iterable[OccupancyNet], self.shape)
            found = [network.shape(rgba, front.elevations[0]) for network in networks]
            gaussians = solidify(gaussians, rgba, front, shape=Shape.mean(found) if found else None)
            if refine > 0:
                from dd3g.pepd.refinement import refined

                gaussians = refined(gaussians, rgba.cpu(), front, refine)
        if fov != FOVY:
            gaussians = seen_under(gaussians, front, fov)
        return gaussians.to(device)

    def generate_each(self, pictures: Iterable[Any], **how: Any) -> list[Gaussians]:
        """What `generate` makes of each of some pictures, or of a batch (B, 4, S, S), as if it were alone.

        Args:
            pictures: as `generate` takes them.
            **how: options of `generate`, for all of them.

        Raises:
            UserError: for a single picture, or as `generate`.
        """
        alone = isinstance(pictures, str | bytes | Path) or getattr(pictures, "ndim", 4) < 4
        if alone or not hasattr(pictures, "__iter__"):
            raise UserError(
                "`generate_each` takes several pictures: give a list, or one picture to `generate`"
            )
        return [self.generate(picture, **how) for picture in pictures]

    def with_shape(self, *networks: OccupancyNet) -> Generator:
        """Itself, with these networks in place of its own; the answers of several are averaged.

        Args:
            *networks: of one config, trained apart, with other seeds.

        Raises:
            UserError: when there are none, or their configs differ.
        """
        configs = [network.config for network in networks]
        if not configs or any(config != configs[0] for config in configs):
            raise UserError(
                f"{len(configs)} shape networks, not all of one config: give one or more that are"
            )
        self.config = replace(self.config, shape=configs[0], shape_networks=len(networks))
        self.shape = nn.ModuleList(networks).to(self.type_embedding.device)
        return self

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, file_bytes: int | None = None
    ) -> Path:
        """Write config.json and model.safetensors; see `dd3g.nn.checkpoint.save_folder`."""
        return save_folder(folder, self, {"kind": "generator", **asdict(self.config)}, dtype, file_bytes)

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
    def from_pretrained(
        cls, name: str | Path = "nano", device: str | torch.device = "cpu", **hub: str | None
    ) -> Generator:
        """Load a generator by the name of shipped weights, a local folder, or a hub id `owner/name`.

        Args:
            name: of the weights.
            device: as torch knows it, or "auto": CUDA where there is one, else the CPU.
            **hub: `revision`, `token` and `cache_dir` of a hub id, as huggingface_hub takes them.

        Raises:
            UserError: when nothing is found under that name, what is found is not a dd3g generator, or the
                device does not work.
        """
        folder = find_weights(name, **hub)
        model = build(folder, read_config(folder, "generator"), GeneratorConfig, cls)
        load_weights(folder, model)
        return model.to(find_device(str(device))).eval()


def _with_names_of_today(module: nn.Module, state: dict[str, Tensor], prefix: str, *more: Any) -> None:
    """Older files, two of nano's too, call the embedding "kind" and do not number the first shape network."""
    if f"{prefix}kind" in state:
        state[f"{prefix}type_embedding"] = state.pop(f"{prefix}kind")
    for name in [n for n in state if n.startswith(f"{prefix}shape.")]:
        own = name.removeprefix(f"{prefix}shape.")
        if not own[0].isdecimal():
            state[f"{prefix}shape.0.{own}"] = state.pop(name)
