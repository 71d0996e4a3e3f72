"""Where LGM's weights lie, and how they are read: safetensors in the published layout, of any size."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dd3g.errors import UserError, first_line
from distill.lgm.model import LGM
from distill.lgm.network import Layout

NAME = "lgm"
REPO, FILE = "ashawkey/LGM", "model_fp16_fixrot.safetensors"
SIZE = 830_126_160  # bytes
SHA256 = "744d6324656342c64f871308e73db97f0eb51858d94329b30090e986a6d050ab"
LICENCE = f"code MIT; for the weights see the card at https://huggingface.co/{REPO}"


def load_lgm(source: str | Path = NAME, device: str | torch.device = "cpu") -> LGM:
    """Read an LGM; the file's tensors tell its layout.

    Args:
        source: "lgm" for the published weights, which are fetched on first use; a safetensors file; or a
            folder with one.
        device: where it goes; weights are float32 there.

    Raises:
        UserError: when nothing usable is there, or what is there turns Gaussians the wrong way.
    """
    path = find_lgm(source)
    check_rotations(path)
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
    if str(source) == NAME and not Path(source).exists():
        return fetched()
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"{path} holds {len(files)} safetensors files: give the one with LGM's weights")
        return files[0]
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"{path}: no safetensors file or folder with one; give {NAME!r} for the published weights"
        )
    return path


def fetched() -> Path:
    """The published file in the hub's cache, downloaded when it is missing; says so before.

    Raises:
        UserError: when the hub cannot be reached or may not be.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(REPO, FILE)
    if isinstance(found, str):
        return Path(found)
    what = f"the weights of LGM ({REPO}, {FILE}, {SIZE / 1e6:.0f} MB; {LICENCE})"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{what} are not on this machine, and HF_HUB_OFFLINE forbids fetching them: unset it once, or "
            "give a file or folder in place of 'lgm'"
        )
    print(f"fetching {what}, once", file=sys.stderr, flush=True)
    try:
        return Path(hf_hub_download(REPO, FILE))
    except Exception as error:  # the hub client raises a family of its own for network, rights and names
        raise UserError(
            f"{what} could not be fetched ({first_line(error)}): check that this machine reaches the hub, or "
            "give a file or folder in place of 'lgm'"
        ) from error


def check_rotations(path: Path) -> None:
    """Refuse the older published file of the same size, whose Gaussians are turned the wrong way.

    Raises:
        UserError: for a file as large as the right one with another hash.
    """
    if path.stat().st_size != SIZE:
        return
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            sha.update(block)
    if sha.hexdigest() != SHA256:
        raise UserError(
            f"{path}: as large as {FILE}, but sha256 {sha.hexdigest()[:16]}… instead of {SHA256[:16]}…: "
            f"damaged, or {REPO}'s model_fp16.safetensors, whose rotations are wrong; give 'lgm' to fetch "
            "the right one"
        )
