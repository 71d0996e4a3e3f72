"""Nodes for ComfyUI: a picture to 3D Gaussians, and 3D Gaussians to views.

ComfyUI itself is only imported where a file is to be written into its output folder.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dd3g import Cameras, Gaussians, Generator, load_image, rasterize

SPLATS = "DD3G_SPLATS"  # a list of Gaussians, one for each picture of a batch
SEEDS = 2**64
FORMATS = ("ply", "spz", "splat", "glb")
DEGREES = {"min": -80.0, "max": 80.0, "step": 1.0}


@lru_cache(maxsize=2)
def _generator(weights: str) -> Generator:
    return Generator.from_pretrained(weights, device="cuda" if torch.cuda.is_available() else "cpu")


class PictureToSplats:
    """Pictures of one object each to 3D Gaussians; with a prefix they are saved in the output folder."""

    CATEGORY = "dd3g"
    FUNCTION = "make"
    RETURN_TYPES = (SPLATS, "STRING")
    RETURN_NAMES = ("splats", "files")
    OUTPUT_NODE = True
    DESCRIPTION = "One picture to 3D Gaussians in one pass."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for them."""
        mask = "White where the object is: the MASK of Load Image has to go through Invert Mask first."
        return {
            "required": {
                "image": ("IMAGE",),
                "weights": ("STRING", {"default": "nano", "tooltip": "Shipped name, folder or hub id."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": SEEDS - 1}),
                "elevation": ("FLOAT", {"default": 10.0, **DEGREES}),
                "filename_prefix": ("STRING", {"default": "", "tooltip": "Empty: nothing is saved."}),
                "format": (list(FORMATS),),
            },
            "optional": {"mask": ("MASK", {"tooltip": mask})},
        }

    def make(
        self,
        image: Tensor,
        weights: str,
        seed: int,
        elevation: float,
        filename_prefix: str,
        format: str,
        mask: Tensor | None = None,
    ) -> tuple[list[Gaussians], str]:
        """Splats of each picture, and the files, a line each.

        Args:
            image: (B, H, W, 3 or 4) in 0..1.
            weights: of the generator.
            seed: of the first picture.
            elevation: degrees from which the pictures look down on their objects.
            filename_prefix: as that of Save Image; empty saves nothing.
            format: of saved files.
            mask: (1 or B, H, W) or (H, W), of any size, 1 where the object is; None leaves it to the matting
                model.

        Raises:
            ValueError: when there are several masks, and not one for each picture.
        """
        pictures = image.movedim(-1, 1)  # (B, C, H, W)
        if mask is not None:
            mask = mask.reshape(-1, 1, *mask.shape[-2:])
            if len(mask) not in (1, len(pictures)):
                raise ValueError(f"{len(mask)} masks for {len(pictures)} pictures: give one, or one for each")
            alpha = torch.nn.functional.interpolate(mask.to(pictures), pictures.shape[-2:], mode="bilinear")
            pictures = torch.cat([pictures[:, :3], alpha.expand(len(pictures), -1, -1, -1)], 1)
        model, splats = _generator(weights), []
        for i, picture in enumerate(pictures):
            found = load_image(picture)
            for warning in found.warnings:
                logging.getLogger("dd3g").warning(warning)
            made = model.generate(found, seed=(seed + i) % SEEDS, elevation=elevation)
            splats.append(made.to("cpu"))
        files = _save(splats, filename_prefix, format) if filename_prefix else []
        return splats, "\n".join(files)


class SplatsToViews:
    """3D Gaussians to pictures from even azimuths around them, the first from the front."""

    CATEGORY = "dd3g"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("views", "masks")
    DESCRIPTION = "Views from around an object."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for them."""
        return {
            "required": {
                "splats": (SPLATS,),
                "views": ("INT", {"default": 8, "min": 1, "max": 360}),
                "size": ("INT", {"default": 512, "min": 16, "max": 2048, "step": 16}),
                "elevation": ("FLOAT", {"default": 10.0, **DEGREES}),
                "background": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
            }
        }

    @torch.no_grad()
    def draw(
        self, splats: list[Gaussians], views: int, size: int, elevation: float, background: float
    ) -> tuple[Tensor, Tensor]:
        """Views of each object one after the other.

        Args:
            splats: one or more objects.
            views: of each, V.
            size: pixels per side.
            elevation: degrees of the cameras.
            background: grey level in 0..1.

        Returns:
            (B*V, size, size, 3) in 0..1, and (B*V, size, size), 1 where the object is.
        """
        cameras = Cameras.orbit([360.0 * i / views for i in range(views)], elevation, size)
        drawn = [rasterize(g, cameras, background, antialiased=True) for g in splats]
        rgb = torch.cat([d.rgb for d in drawn]).clamp(0, 1).movedim(1, -1)
        return rgb, torch.cat([d.alpha for d in drawn])[:, 0]


def _save(splats: list[Gaussians], prefix: str, format: str) -> list[str]:
    import folder_paths  # ComfyUI's own; it keeps prefixes inside the output folder

    folder, name, counter, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    paths = [os.path.join(folder, f"{name}_{counter + i:05}.{format}") for i in range(len(splats))]
    return [str(gaussians.save(path)) for gaussians, path in zip(splats, paths, strict=True)]


NODE_CLASS_MAPPINGS = {"Dd3gPictureToSplats": PictureToSplats, "Dd3gSplatsToViews": SplatsToViews}
NODE_DISPLAY_NAME_MAPPINGS = {
    "Dd3gPictureToSplats": "Picture to Splats (dd3g)",
    "Dd3gSplatsToViews": "Splats to Views (dd3g)",
}
