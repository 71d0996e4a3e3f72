"""Where LGM's weights lie, and how they are read: safetensors in the published layout, of any size."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dd3g.errors import UserError, first_line
from dd3g.hub_models import HUB_MODELS, check_digest, listed
from distill.lgm.model import LGM
from distill.lgm.network import Layout

NAME = "lgm"


def load_lgm(source: str | Path = NAME, device: str | torch.device = "cpu") -> LGM:
    """Read an LGM; the file's tensors determine its layout.

    Args:
        source: "lgm" or "lgm@revision" for the published weights, fetched where they are not on this machine;
            a safetensors file; or a folder with one.
        device: where it goes; weights are float32 there.

    Raises:
        UserError: when nothing usable is there, or what is there turns Gaussians the wrong way.
    """
    path = find_lgm(source)
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            with torch.device("meta"):  # 1.7 GB of random numbers are not drawn first
                model = LGM(Layout.of(shapes))
            own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
            wrong = sorted(n for n in own.keys() | shapes.keys() if own.get(n) != shapes.get(n))
            if wrong:
                raise ValueError(f"{len(wrong)} tensors differ, first {wrong[0]!r}")
            model.load_state_dict({name: file.get_tensor(name).float() for name in own}, assign=True)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{path}: no weights of LGM ({first_line(error)}); copy the file again, or give {NAME!r} for the "
            "published ones"
        ) from error
    return model.requires_grad_(False).to(device).eval()


def find_lgm(source: str | Path) -> Path:
    """The file that `load_lgm` reads."""
    path, published = Path(source), HUB_MODELS[NAME]
    asked = None if path.exists() else listed(str(source))
    if asked and asked.repo == published.repo:
        path = asked.fetch() / asked.files[0]
        if asked.sha256:  # what was fetched has it
            return path
    elif path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"{path} holds {len(files)} safetensors files: give the one with LGM's weights")
        path = files[0]
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"{path}: no safetensors file or folder with one; give {NAME!r} for the published weights"
        )
    if path.stat().st_size == published.size:
        try:
            check_digest(path, published.sha256[published.files[0]])
        except UserError as error:
            raise UserError(
                f"{path} is as large as {published.files[0]} and is another file: damaged, or "
                f"{published.repo}'s model_fp16.safetensors, whose rotations are wrong; give {NAME!r} to "
                "fetch the right one"
            ) from error
    return path
